//! Translated endpoints: which server answered a connection to a service.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path as FilePath, PathBuf},
};

use podtap_model::{
    EtherType,
    metadata::{Metadata, MetadataFrame, PodMetadata, Translation, Tuple},
};
use serde_json::Value;

use crate::{
    network::{CLIENT, Path, Recording, SERVER_PORT, SERVICE, SERVICE_PORT, Truth, address, names, pod_of, servers},
    read,
};

const CONNECTIONS: usize = 200;

/// Makes connections to the service. Returns what the client and the servers captured, and who answered.
pub fn connections(name: &str) -> ([PathBuf; 2], Truth) {
    let path = Path::new();
    path.serve();
    let recordings = [(&path.client, "client"), (&path.server, "server")]
        .map(|(n, end)| Recording::start(n, &format!("{name}-{end}"), 0));
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
    let ([client, server], truth) = connections("views");
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

    // The client's tap tells how its node translates, and who it is; the servers' taps tell who they are.
    let told = told(&client, &truth);
    for names in [Some(&names), None] {
        let flows = read::flows(&told, names);
        let found = requests(&flows);
        assert_eq!(found.len(), CONNECTIONS);
        for (port, server) in &truth {
            let flow = found[port];
            assert_eq!((&flow["XlatBy"], &flow["Opener"]), (&"conntrack".into(), &"syn".into()), "{flow}");
            assert_eq!(address(&flow["XlatDstAddr"]), IpAddr::from(*server), "{flow}");
            assert_eq!((&flow["XlatDstK8S_Name"], &flow["SrcK8S_Type"]), (&pod_of(*server).into(), &"Pod".into()));
            // Without the API server, a pod is its own workload.
            let workload = if names.is_some() { "web".to_owned() } else { pod_of(*server) };
            assert_eq!(flow["XlatDstK8S_OwnerName"], workload, "{flow}");
        }
    }
    let listed = read::print(&told, None, "list");
    let lines = servers().map(|server| format!("  - {} in namespace shop\n", pod_of(server))).concat();
    assert_eq!(listed, format!("client-1 in namespace shop calls:\n{lines}"));
    fs::remove_file(told).expect("it exists");
}

/// What taps send: the frames of the client's pod and how its node translates them, each connection a frame after its SYN, and who the pods
/// are. The answers of the servers tell here what conntrack does.
fn told(client: &FilePath, truth: &Truth) -> PathBuf {
    let mut waiting: Vec<Vec<u8>> = servers().map(|server| identity(&pod_of(server), server)).into();
    waiting.push(identity("client-1", CLIENT));
    let file = fs::read(client).expect("it was written");
    let (header, mut rest) = file.split_at(24);
    let mut written = header.to_vec();
    while !rest.is_empty() {
        let length = rest[8..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)) as usize;
        let (record, behind) = rest.split_at(16 + length);
        for told in waiting.drain(..) {
            let length = u32::try_from(told.len()).expect("it is short").to_ne_bytes();
            written.extend([&record[..8], &length, &length, &told].concat());
        }
        written.extend(record);
        rest = behind;
        let captured = &record[16..];
        // IPv4 without options, TCP, and of the flags only SYN.
        if captured[12..15] == [8, 0, 0x45] && captured[23] == 6 && captured[47] == 2 {
            let port = u16::from_be_bytes([captured[34], captured[35]]);
            let tuple = |from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)| Tuple {
                source: from.0.into(),
                source_port: from.1,
                destination: to.0.into(),
                destination_port: to.1,
            };
            let original = tuple((CLIENT, port), (SERVICE, SERVICE_PORT));
            let reply = tuple((truth[&port], SERVER_PORT), (CLIENT, port));
            let translation = Translation { protocol: 6, original, reply, zone: 0 };
            waiting.push(metadata("client-1", Metadata::Translation(translation)));
        }
    }
    let told = client.with_extension("told.pcap");
    fs::write(&told, written).expect("it can be written");
    told
}

/// The frame in which a tap tells who a pod is.
pub fn identity(name: &str, address: Ipv4Addr) -> Vec<u8> {
    let (name, mac) = (name.to_owned(), "02:00:00:00:00:01".to_owned());
    let addresses = [address.into()].into();
    metadata(
        &name.clone(),
        Metadata::Pod(PodMetadata { namespace: "shop".into(), name, addresses, mac, ..PodMetadata::default() }),
    )
}

/// A frame with metadata about a pod.
fn metadata(pod: &str, metadata: Metadata) -> Vec<u8> {
    let uid = |text: &str| text.parse().expect("a UID");
    let frame = MetadataFrame { tap: uid("tap"), pod: uid(pod), metadata };
    frame.encode([2, 0, 0, 0, 0, 1], EtherType::default().get()).expect("it is not too long")
}
