//! IPFIX of the exporter in goflow2, a collector written in Go.

use std::{
    collections::BTreeMap,
    env, fs,
    net::Ipv4Addr,
    path::Path,
    process::{self, Command, Stdio},
    time::Duration,
};

use podtap_tests::{
    child::Killed,
    collector::{binary, pod},
    exporter::export,
    frames::connection,
    net::Network,
    pcap,
    wait::{PATIENCE, until},
};
use serde_json::{Value, json};

/// What it knows only if it is told: elements of enterprises, and the direction.
const MAPPING: &str = "
formatter:
  fields: [type, bytes, packets, src_addr, dst_addr, src_port, dst_port, tcp_flags, reverse_bytes, reverse_packets, direction, source, destination]
  protobuf:
    - { name: reverse_bytes, index: 1001, type: varint }
    - { name: reverse_packets, index: 1002, type: varint }
    - { name: direction, index: 1003, type: varint }
    - { name: source, index: 1004, type: string }
    - { name: destination, index: 1005, type: string }
ipfix:
  mapping:
    - { field: 1, penprovided: true, pen: 29305, destination: reverse_bytes }
    - { field: 2, penprovided: true, pen: 29305, destination: reverse_packets }
    - { field: 239, destination: direction }
    - { field: 101, penprovided: true, pen: 56506, destination: source }
    - { field: 103, penprovided: true, pen: 56506, destination: destination }
";
const CONNECTIONS: u16 = 100;
const FIRST_PORT: u16 = 40_000;

/// The collector's lines of connections between two pods.
fn lines(directory: &Path) -> String {
    let [client, server] = [1, 2].map(|last| Ipv4Addr::new(10, 0, 0, last));
    let names = directory.join("names.json");
    let pods = [pod("web-1", "web", client), pod("cart-1", "cart", server)];
    fs::write(&names, json!({"pods": pods}).to_string()).expect("a file");
    let frames: Vec<_> =
        (FIRST_PORT..FIRST_PORT + CONNECTIONS).flat_map(|port| connection((client, port), (server, 80))).collect();
    let file = pcap::File::timed((0..).map(Duration::from_millis).zip(frames));
    let mut collector = Command::new(binary());
    collector.arg("--read").arg(file.path()).arg("--names").arg(names).args(["--print", "flows"]);
    String::from_utf8(pcap::output(&mut collector)).expect("text")
}

#[test]
fn goflow2_shows_both_directions_and_names() {
    let directory = env::temp_dir().join(format!("podtap-goflow2-{}", process::id()));
    fs::create_dir_all(&directory).expect("it can be made");
    let [mapping, output] = ["mapping.yaml", "flows.json"].map(|name| directory.join(name));
    fs::write(&mapping, MAPPING).expect("a file");
    let network = Network::new();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/interop/goflow2/goflow2");
    let mut goflow2 = Command::new("nsenter");
    goflow2.arg(format!("--net={}", network.path().display())).arg(program).args(["-addr", "127.0.0.1:8080"]);
    // Several workers may read records before the templates that came first, and drop them.
    goflow2.args([
        "-listen",
        "netflow://127.0.0.1:4739?workers=1",
        "-format",
        "json",
        "-produce",
        "sample",
        "-mapping",
    ]);
    goflow2.arg(&mapping).stdout(fs::File::create(&output).expect("a file")).stderr(Stdio::null());
    let _goflow2 = Killed(goflow2.spawn().expect("tests/interop/prepare.sh has built it"));
    until("goflow2 listens", PATIENCE, || match network.run("ss -Hlun sport = :4739") {
        sockets if sockets.is_empty() => Err("nothing does"),
        _ => Ok(()),
    });
    let lines = lines(&directory);
    let sinks = "sinks: [{name: goflow2, ipfix: {host: 127.0.0.1, profile: antrea}}]";
    let exported = export(&network, &lines, sinks);
    assert!(exported.status.success(), "{}", exported.errors);
    let flows: Vec<Value> = until("goflow2 has printed all flows", PATIENCE, || {
        let text = fs::read_to_string(&output).expect("a file");
        let flows: Vec<_> = text.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
        if flows.len() >= usize::from(CONNECTIONS) { Ok(flows) } else { Err(text) }
    });
    assert_eq!(flows.len(), usize::from(CONNECTIONS));

    // Packets and octets of each direction, by the client's port.
    let number = |flow: &Value, key: &str| flow[key].as_u64().unwrap_or_else(|| panic!("{key} of {flow}"));
    let mut expected: BTreeMap<u64, [(u64, u64); 2]> = BTreeMap::new();
    for line in lines.lines() {
        let flow: Value = serde_json::from_str(line).expect("an object");
        let packets = number(&flow, "Packets");
        let is_reply = flow.get("Reply").is_some();
        let port = number(&flow, if is_reply { "DstPort" } else { "SrcPort" });
        expected.entry(port).or_default()[usize::from(is_reply)] = (packets, number(&flow, "Bytes") - 14 * packets);
    }
    let counts = |flow: &Value| {
        [("packets", "bytes"), ("reverse_packets", "reverse_bytes")]
            .map(|(packets, bytes)| (number(flow, packets), number(flow, bytes)))
    };
    let found: BTreeMap<_, _> = flows.iter().map(|flow| (number(flow, "src_port"), counts(flow))).collect();
    assert_eq!(found, expected);
    // Of a name, it shows the bytes.
    let hexadecimal = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    for flow in flows {
        assert_eq!((&flow["type"], &flow["direction"]), (&"IPFIX".into(), &1.into()), "{flow}");
        assert_eq!((&flow["src_addr"], &flow["dst_addr"]), (&"10.0.0.1".into(), &"10.0.0.2".into()), "{flow}");
        assert_eq!((&flow["dst_port"], &flow["tcp_flags"]), (&80.into(), &0x13.into()), "{flow}");
        assert_eq!(
            [&flow["source"], &flow["destination"]],
            [hexadecimal("web-1"), hexadecimal("cart-1")].each_ref(),
            "{flow}"
        );
    }
    fs::remove_dir_all(directory).expect("it exists");
}
