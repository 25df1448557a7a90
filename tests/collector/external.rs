//! What is outside of the cluster.

use std::{fs, net::Ipv4Addr, process::Command};

use podtap_tests::{collector::binary, frames::connection, mmdb, pcap::File};
use serde_json::Value;

use crate::read::{parse, print_with};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OFFICE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const GERMAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 130);
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

#[test]
fn networks_have_the_names_of_the_configuration_or_their_countries() {
    let frames: Vec<_> = [OFFICE, GERMAN, UNKNOWN]
        .into_iter()
        .zip(40_000..)
        .flat_map(|(server, port)| connection((CLIENT, port), (server, 443)))
        .collect();
    let file = File::of(&frames);
    let database = file.path().with_extension("mmdb");
    let networks = [(Ipv4Addr::new(198, 51, 100, 0), 24, "DE"), (Ipv4Addr::new(192, 0, 2, 0), 25, "FR")];
    fs::write(&database, mmdb::countries(&networks)).expect("it can be written");
    let arguments = ["--network", "office=198.51.100.0/25", "--countries", database.to_str().expect("text")];
    let map: Value = serde_json::from_str(&print_with(file.path(), &arguments, "map")).expect("JSON");
    let edges = map["edges"].as_array().expect("a list");
    assert_eq!(edges.len(), 3, "{map}");
    for (name, evidence) in
        [("country DE".into(), Some("country")), ("office".into(), Some("network")), (Value::Null, None)]
    {
        let edge = edges.iter().find(|edge| edge["server"]["name"] == name).expect("an edge");
        for known in ["country", "network", "dns", "sni"] {
            assert_eq!(edge["known"].get(known).is_some(), evidence == Some(known), "{edge}");
        }
    }
    for flow in parse(&print_with(file.path(), &arguments, "flows")) {
        let of = |end: &str| {
            (&flow[format!("{end}Addr")], &flow[format!("{end}Country")], &flow[format!("{end}SubnetLabel")])
        };
        for (address, country, label) in [of("Src"), of("Dst")] {
            let address: Ipv4Addr = address.as_str().and_then(|text| text.parse().ok()).expect("an address");
            assert_eq!(*country, if address == GERMAN { "DE".into() } else { Value::Null }, "{flow}");
            assert_eq!(*label, if address == OFFICE { "office".into() } else { Value::Null }, "{flow}");
        }
    }
    fs::remove_file(database).expect("it exists");
}

#[test]
fn what_is_no_database_is_refused() {
    let file = File::of(&connection((CLIENT, 40_000), (UNKNOWN, 443)));
    for (path, expected) in
        [(file.path(), "is no database of countries"), (std::path::Path::new("/nowhere"), "No such file")]
    {
        let output = Command::new(binary()).arg("--read").arg(file.path()).arg("--countries").arg(path).output();
        let output = output.expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(expected), "{errors}");
    }
}
