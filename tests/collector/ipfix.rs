//! IPFIX of the exporter, read by nfcapd and tshark.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use podtap_tests::{
    exporter::export,
    frames::{ACK, tcp, udp},
    net::Network,
    pcap,
};
use serde_json::Value;

use crate::{
    network::{CLIENT, SERVER_PORT, SERVICE, SERVICE_PORT, names, pod_of, servers},
    peers::{NFCAPD, Nfcapd, directions, is_counted, recorded, stored, theirs},
    read,
    views::connections,
};

/// The flows that nfdump shows of lines that the exporter sent.
fn nfdump(lines: &str, settings: &str) -> Vec<Value> {
    let nfcapd = Nfcapd::start();
    let sinks = format!("sinks: [{{name: flows, ipfix: {{host: localhost, port: {NFCAPD}{settings}}}}}]");
    let exported = export(&nfcapd.network, lines, &sinks);
    assert!(exported.status.success(), "{}", exported.errors);
    nfcapd.end()
}

#[test]
fn flows_packets_and_octets_in_nfdump_are_those_of_the_lines_and_of_softflowd() {
    let file = recorded("ipfix");
    let lines = read::print(&file, None, "flows");
    let ours = directions(&lines);
    assert!(ours.len() >= 80, "{ours:?}");
    assert_eq!(ours, theirs(&file));
    let count = |flows: &[Value]| flows.iter().filter(|flow| is_counted(flow)).count();
    let flows = nfdump(&lines, ", biflow: false");
    assert_eq!(stored(&flows), ours);
    assert_eq!(count(&flows), read::parse(&lines).len());
    let flows = nfdump(&lines, "");
    assert_eq!(stored(&flows), ours);
    // But for the datagrams that end the recording, each has both directions.
    assert_eq!(count(&flows), 41);
    fs::remove_file(file).expect("it exists");
}

#[test]
fn nfdump_shows_translated_addresses() {
    let (files, truth) = connections("ipfix");
    let merged = read::merge(&files);
    let lines = read::print(&merged, Some(&names(&servers())), "flows");
    let flows = nfdump(&lines, "");
    let mut found = BTreeMap::new();
    for flow in flows.iter().filter(|flow| flow["dst4_addr"] == SERVICE.to_string()) {
        assert_eq!(
            (&flow["src4_xlt_ip"], &flow["dst_port"]),
            (&CLIENT.to_string().into(), &SERVICE_PORT.into()),
            "{flow}"
        );
        assert_eq!(
            (&flow["src_xlt_port"], &flow["dst_xlt_port"]),
            (&flow["src_port"].to_string().into(), &SERVER_PORT.to_string().into())
        );
        let server: Ipv4Addr = flow["dst4_xlt_ip"].as_str().and_then(|text| text.parse().ok()).expect("an address");
        assert!(flow["out_packets"].as_u64() > Some(3) && flow["out_bytes"].as_u64() > Some(1000), "{flow}");
        found.insert(u16::try_from(flow["src_port"].as_u64().expect("a port")).expect("16 bits"), server);
    }
    assert_eq!(found, truth);
    // The datagrams that end the recordings are not translated.
    let others: Vec<_> = flows.iter().filter(|flow| flow["proto"] == 17).collect();
    assert!(!others.is_empty() && others.iter().all(|flow| flow.get("dst4_xlt_ip").is_none()), "{others:?}");

    // Antrea's records are about the pods.
    let sinks = "sinks: [{name: flows, ipfix: {host: 127.0.0.1, profile: antrea}}]";
    for shown in [over_udp(&lines, sinks), over_tcp(&lines, &sinks.replace("antrea", "antrea, transport: TCP"))] {
        let all = antrea(&shown);
        let found: BTreeMap<u16, String> = all
            .iter()
            .filter(|(_, names)| names.get(&109).is_some_and(|service| service == b"shop/web"))
            .map(|(port, names)| {
                assert_eq!(
                    (&*names[&100], &*names[&101], &*names[&102]),
                    (&b"shop"[..], &b"client-1"[..], &b"shop"[..])
                );
                // Both pods are on one node; the service has an address and a port.
                assert_eq!((&*names[&137], &*names[&108]), (&[1][..], &[0, 80][..]));
                assert_eq!(names[&106], SERVICE.octets());
                (*port, String::from_utf8(names[&103].clone()).expect("text"))
            })
            .collect();
        let expected = truth.iter().map(|(port, server)| (*port, pod_of(*server))).collect();
        assert_eq!(found, expected);
    }
    fs::remove_file(merged).expect("it exists");
}

#[test]
fn ipv6_is_shown_as_well() {
    let lines = concat!(
        r#"{"TimeFlowStartMs":1767261600000,"TimeFlowEndMs":1767261602000,"Etype":34525,"Proto":6,"Bytes":954,"Packets":6,"Flags":27,"#,
        r#""SrcAddr":"fd00::2","SrcPort":40000,"DstAddr":"fd96::5","DstPort":80,"XlatBy":"conntrack","XlatSrcAddr":"fd00::2","#,
        r#""XlatSrcPort":40000,"XlatDstAddr":"fd00::7","XlatDstPort":8080}"#,
        "\n",
        r#"{"TimeFlowStartMs":1767261600000,"TimeFlowEndMs":1767261602000,"Etype":34525,"Proto":6,"Bytes":10070,"Packets":5,"Flags":27,"#,
        r#""SrcAddr":"fd96::5","SrcPort":80,"DstAddr":"fd00::2","DstPort":40000,"Reply":true}"#,
        "\n",
        r#"{"TimeFlowStartMs":1767261600000,"TimeFlowEndMs":1767261602000,"Etype":34525,"Proto":58,"Bytes":236,"Packets":2,"#,
        r#""IcmpType":128,"IcmpCode":0,"SrcAddr":"fd00::2","DstAddr":"fd00::7"}"#,
        "\n"
    );
    let flows = nfdump(lines, "");
    let [tcp, icmp] = &flows[..] else { panic!("{flows:?}") };
    let expected = [
        ("src6_addr", "fd00::2"),
        ("dst6_addr", "fd96::5"),
        // nfdump 1.7.1 does not read the translated addresses of IPv6.
        ("dst_xlt_port", "8080"),
        ("first", "2026-01-01T10:00:00.000"),
        ("last", "2026-01-01T10:00:02.000"),
        ("tcp_flags", "...AP.SF"),
    ];
    for (key, value) in expected {
        assert_eq!(tcp[key], value, "{tcp}");
    }
    for (key, value) in [("in_packets", 6), ("in_bytes", 870), ("out_packets", 5), ("out_bytes", 10_000)] {
        assert_eq!(tcp[key], value, "{tcp}");
    }
    for (key, value) in [("proto", 58), ("icmp_type", 128), ("icmp_code", 0), ("in_bytes", 208)] {
        assert_eq!(icmp[key], value, "{icmp}");
    }

    // Names and payload, which nfdump does not know.
    let lines = lines.replacen(r#""Proto":6"#, r#""Proto":6,"PayloadBytes":500,"SrcK8S_Name":"web-1","SrcK8S_Namespace":"shop","SrcK8S_Type":"Pod","TlsSni":"example.org""#, 1);
    let shown = over_udp(&lines, "sinks: [{name: flows, ipfix: {host: 127.0.0.1}}]");
    for text in [
        "Virtual Station Name: shop/web-1",
        "ApplicationName: example.org",
        "Post NAT Destination IPv6 Address: fd00::7",
        "Post NAPT Destination Transport Port: 8080",
        "Initiator Octets: 500",
        "Biflow Direction: Initiator (1)",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    let named = "sinks: [{name: flows, ipfix: {host: 127.0.0.1, profile: netobserv, enterprise: 4242}}]";
    let shown = over_udp(&lines, named);
    for text in [
        "Private Enterprise Number: 4242",
        "Information Element Name: sourcePodNamespace",
        "Type 7734: Value (hex bytes): 77 65 62 2d 31",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
}

const PORT: u16 = 4739;
const EXPORTER: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 40_000);
const COLLECTOR: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, PORT);

/// What tshark shows of the datagrams that are sent.
fn over_udp(lines: &str, sinks: &str) -> String {
    let network = Network::new();
    let socket = network.within(|| UdpSocket::bind(COLLECTOR)).expect("a socket");
    let exported = export(&network, lines, sinks);
    assert!(exported.status.success(), "{}", exported.errors);
    socket.set_nonblocking(true).expect("a socket");
    let (mut frames, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                assert!(length <= 1400, "{length}");
                frames.push(udp(EXPORTER, COLLECTOR, &buffer[..length]));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    dissected(&frames)
}

/// Likewise, of a connection.
fn over_tcp(lines: &str, sinks: &str) -> String {
    let network = Network::new();
    let listener = network.within(|| TcpListener::bind(COLLECTOR)).expect("a socket");
    let reader = thread::spawn(move || {
        let mut stream = Vec::new();
        listener.accept().and_then(|(mut connection, _)| connection.read_to_end(&mut stream)).map(|_| stream)
    });
    let exported = export(&network, lines, sinks);
    assert!(exported.status.success(), "{}", exported.errors);
    let stream = reader.join().expect("it does not panic").expect("it is read");
    // Segments do not end where messages do.
    let mut sequence = 1;
    let mut frames = Vec::new();
    for segment in stream.chunks(1000) {
        frames.push(tcp(EXPORTER, COLLECTOR, ACK, (sequence, 1), segment));
        sequence += 1000;
    }
    dissected(&frames)
}

/// tshark's text about IPFIX, which must be without errors.
fn dissected(frames: &[Vec<u8>]) -> String {
    let file = pcap::File::timed((0..).map(Duration::from_millis).zip(frames));
    let text = pcap::output(Command::new("tshark").args(["-n", "-O", "cflow", "-r"]).arg(file.path()));
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("Cisco NetFlow/IPFIX"), "{text}");
    for error in ["Malformed", "Expert Info", "no template found"] {
        assert!(!text.contains(error), "{error}: {text}");
    }
    text
}

/// Antrea's elements of each flow, by the port of its source.
fn antrea(shown: &str) -> Vec<(u16, BTreeMap<u16, Vec<u8>>)> {
    let mut flows: Vec<(u16, BTreeMap<u16, Vec<u8>>)> = Vec::new();
    for line in shown.lines().map(str::trim) {
        if let Some(port) = line.strip_prefix("SrcPort: ") {
            let number = port.split(' ').next().and_then(|number| number.parse().ok());
            flows.push((number.expect("a port"), BTreeMap::new()));
        } else if let Some((_, entry)) = line.split_once("(Project Antrea) Type ")
            && let Some((id, bytes)) = entry.split_once(": Value (hex bytes): ")
            && let Some((_, elements)) = flows.last_mut()
        {
            let bytes = bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
            elements.insert(id.parse().expect("an ID"), bytes);
        }
    }
    flows
}
