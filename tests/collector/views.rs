//! Translated endpoints: which server answered a connection to a service.

use std::{collections::BTreeMap, fs, net::IpAddr};

use serde_json::Value;

use crate::{
    network::{CLIENT, Path, Recording, SERVICE, SERVICE_PORT, Truth, address, names, pod_of, servers},
    read,
};

const CONNECTIONS: usize = 200;

/// Makes connections to the service. Returns what the client and the servers captured, and who answered.
fn connections() -> ([std::path::PathBuf; 2], Truth) {
    let path = Path::new();
    path.serve();
    let recordings =
        [(&path.client, "views-client"), (&path.server, "views-server")].map(|(n, name)| Recording::start(n, name, 0));
    let truth: Truth = (0..CONNECTIONS).map(|_| path.request((SERVICE, SERVICE_PORT), 1000)).collect();
    assert_eq!(truth.len(), CONNECTIONS, "no port is used twice");
    (recordings.map(|recording| recording.end(&path)), truth)
}

/// The flows to the service, by the client's port.
fn requests(flows: &[Value]) -> BTreeMap<u16, &Value> {
    let to_service = flows.iter().filter(|flow| address(&flow["DstAddr"]) == IpAddr::from(SERVICE));
    to_service.map(|flow| (u16::try_from(flow["SrcPort"].as_u64().expect("a port")).expect("a port"), flow)).collect()
}

#[test]
fn the_server_that_answered_is_known_for_each_connection_to_a_service() {
    let ([client, server], truth) = connections();
    let names = names(&servers());

    // Both ends are tapped.
    let merged = read::merge(&[client.clone(), server]);
    let flows = read::flows(&merged, Some(&names));
    let found = requests(&flows);
    assert_eq!(found.len(), CONNECTIONS);
    for (port, server) in &truth {
        let flow = found[port];
        assert_eq!(flow["XlatBy"], "join", "{flow}");
        assert_eq!(address(&flow["XlatDstAddr"]), IpAddr::from(*server), "{flow}");
        assert_eq!(flow["XlatDstK8S_Name"], pod_of(*server), "{flow}");
        assert_eq!((address(&flow["SrcAddr"]), &flow["SrcK8S_OwnerName"]), (IpAddr::from(CLIENT), &"client".into()));
        assert_eq!(
            (&flow["DstServiceName"], &flow["PayloadBytes"]),
            (&"web".into(), &4.into()),
            "{flow} {}",
            merged.display()
        );
    }
    let of_tcp = flows.iter().filter(|flow| flow["Proto"] == 6).count();
    assert_eq!(of_tcp, 2 * CONNECTIONS, "both views are one flow");
    assert_eq!(
        read::print(&merged, Some(&names), "list"),
        "client in namespace shop calls:\n  - web in namespace shop\n"
    );

    assert_eq!(
        read::print(&merged, Some(&names), "mermaid"),
        "flowchart LR\n  n0[\"client.shop\"]\n  n1[\"web.shop\"]\n  n0 --> n1\n"
    );

    // Only the client is: the workload is known, and no pod is guessed.
    let flows = read::flows(&client, Some(&names));
    let found = requests(&flows);
    assert_eq!(found.len(), CONNECTIONS);
    for flow in found.values() {
        assert_eq!((&flow["XlatBy"], &flow["XlatDstK8S_OwnerName"]), (&"endpoints".into(), &"web".into()), "{flow}");
        assert!(flow.get("XlatDstAddr").is_none() && flow.get("XlatDstK8S_Name").is_none(), "{flow}");
    }
    // With one server behind the service, it is that one.
    let flows = read::flows(&client, Some(&crate::network::names(&servers()[..1])));
    assert!(requests(&flows).values().all(|flow| flow["XlatDstK8S_Name"] == "web-2"));
    fs::remove_file(merged).expect("it exists");
}
