//! The tables and views of docs/scale.md, with what three collectors have seen of the same connections.

use std::{fs, net::Ipv4Addr, process::Command, time::Duration};

use podtap_model::{
    EtherType,
    metadata::{Metadata, MetadataFrame, PodMetadata},
};
use podtap_tests::{
    collector::{binary, pod},
    frames::{ACK, End, FIN, SYN, tcp},
    mmdb,
    pcap::{self, output},
};
use serde_json::{Value, json};

use crate::sql::{Directory, Document, Engine};

const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const CART: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const PAYMENTS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 5);
const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const ABROAD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 0);
/// 2026-11-23 10:10:00 UTC.
const START: u64 = 1_795_428_600_000;

fn names() -> Value {
    json!({"pods": [pod("web-1", "web", WEB), pod("cart-1", "cart", CART), pod("payments-1", "payments", PAYMENTS)],
        "services": [{"namespace": "shop", "name": "front", "addresses": [SERVICE], "ports": [{"port": 80}]}],
        "nodes": [{"name": "n1", "addresses": [NODE]}]})
}

/// A view of a connection: all views of one have the same number, and of it the sequence numbers. A request of 7 bytes, a response of 8.
fn view(number: u32, client: End, server: End) -> Vec<Vec<u8>> {
    let (mine, theirs) = (number << 8, number << 9);
    vec![
        tcp(client, server, SYN, (mine, 0), b""),
        tcp(server, client, SYN | ACK, (theirs, mine + 1), b""),
        tcp(client, server, ACK, (mine + 1, theirs + 1), b"request"),
        tcp(server, client, ACK, (theirs + 1, mine + 8), b"response"),
        tcp(client, server, FIN | ACK, (mine + 8, theirs + 9), b""),
        tcp(server, client, FIN | ACK, (theirs + 9, mine + 9), b""),
    ]
}

/// What a tap tells of its pod.
fn identity(name: &str, address: Ipv4Addr) -> Vec<u8> {
    let pod = PodMetadata {
        namespace: "shop".into(),
        name: format!("{name}-1"),
        addresses: [address.into()].into(),
        mac: "02:00:00:00:00:01".into(),
        tap: format!("PodTap shop/{name}"),
        ..PodMetadata::default()
    };
    let uid = |text: &str| text.parse().expect("a UID");
    let frame = MetadataFrame { tap: uid("tap"), pod: uid(&pod.name), metadata: Metadata::Pod(pod) };
    frame.encode([2, 0, 0, 0, 0, 1], EtherType::default().get()).expect("it is not too long")
}

/// What a collector prints of frames, one a millisecond.
fn collect(directory: &Directory, frames: Vec<Vec<u8>>) -> String {
    let names_file = directory.join("names.json");
    fs::write(&names_file, names().to_string()).expect("it can be written");
    let file = pcap::File::timed((START..).map(Duration::from_millis).zip(frames));
    let mut command = Command::new(binary());
    let countries = directory.join("countries.mmdb");
    fs::write(&countries, mmdb::countries(&[(ABROAD, 24, "NL")])).expect("it can be written");
    command.arg("--read").arg(file.path()).args([
        "--print",
        "flows",
        "--names",
        &names_file,
        "--countries",
        &countries,
    ]);
    String::from_utf8(output(&mut command)).expect("text")
}

#[test]
fn views_of_three_collectors_are_joined() {
    let directory = Directory::new("scale");
    // A tap of web sends to the first collector, one of cart to the second, and one of payments to the third.
    let mut frames =
        [identity("web", WEB), identity("cart", CART), identity("payments", PAYMENTS)].map(|frame| vec![frame]);
    for number in 1..=20_u16 {
        let (port, id) = (40_000 + number, u32::from(number));
        // By a Service. Of every other one, the node replaces the client's address.
        let client = if number % 2 == 0 { (NODE, port) } else { (WEB, port) };
        frames[0].extend(view(id, (WEB, port), (SERVICE, 80)));
        frames[1].extend(view(id, client, (CART, 8080)));
    }
    for number in 21..=25_u16 {
        // By the address of the pod: both views are alike.
        let (client, server) = ((WEB, 40_000 + number), (PAYMENTS, 443));
        frames[0].extend(view(number.into(), client, server));
        frames[2].extend(view(number.into(), client, server));
    }
    // Two clients of one country.
    for number in 26..=27_u16 {
        let client = Ipv4Addr::from(u32::from(ABROAD) + u32::from(number));
        frames[2].extend(view(number.into(), (client, 40_000), (PAYMENTS, 443)));
    }
    let mut inserts = Vec::new();
    for (number, frames) in frames.into_iter().enumerate() {
        let lines = collect(&directory, frames);
        assert_eq!(lines.lines().count(), [50, 40, 14][number], "{lines}");
        let path = directory.join(&format!("replica-{number}.jsonl"));
        fs::write(&path, lines).expect("it can be written");
        inserts.push(format!("INSERT INTO flows_queue SELECT * FROM file('{path}', JSONEachRow)"));
    }
    let kafka = "ENGINE = Kafka\nSETTINGS kafka_broker_list = 'kafka:9092', kafka_topic_list = 'podtap-flows', kafka_group_name = 'clickhouse',\n  \
        kafka_format = 'JSONEachRow', kafka_num_consumers = 4, kafka_thread_per_consumer = 1";
    let now = ("now('UTC')", "toDateTime('2026-11-23 11:10:00', 'UTC')");
    let document = Document::read("docs/scale.md", &[(kafka, "ENGINE = Null"), now]);
    assert_eq!(document.len(), 3);
    let block = |section, number| document.block(section, Engine::ClickHouse, number);
    let refresh = ["REFRESH", "WAIT"].map(|step| format!("SYSTEM {step} VIEW connections_to_edges"));
    // Other collectors come after the first refresh, when only the Service is known.
    let (first, late) = inserts.split_at(1);
    let filled = [block("In ClickHouse", 0), first, &refresh, late, &refresh].concat();
    let ask = |question: &[String]| Engine::ClickHouse.run(&[&filled, question].concat());
    // Each connection in the cluster is in the flows of two collectors.
    let views =
        "SELECT count() AS connections, min(Views) AS least, max(Views) AS most FROM connections WHERE Client.1 > 0";
    let views = ask(&[views.to_owned()]);
    assert_eq!(views, [json!({"connections": 25, "least": 2, "most": 2})]);
    let edge = |namespace: &str, client: &str, server: &str, count: u32| {
        json!({"ClientNamespace": namespace, "Client": client, "ServerNamespace": "shop", "Server": server,
            "connections": count, "failed": 0, "sent": 7 * count, "received": 8 * count})
    };
    assert_eq!(
        ask(block("Queries", 1)),
        [edge("shop", "web", "cart", 20), edge("shop", "web", "payments", 5), edge("", "NL", "payments", 2)]
    );
    // The twentieth's last frame, after the frame of the tap.
    assert_eq!(ask(block("Queries", 0)), [json!({"last_used": START + 20 * 6})]);
}
