//! Metadata besides mirrored frames: whose frames they are, and how the node translates a pod's connections.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use podtap_model::{
    Direction, PodDetails, Receiver, Workload,
    metadata::{Metadata, MetadataFrame, PodMetadata, Translation, Tuple},
};
use podtap_tests::{
    capture::{Capture, injector},
    net::{Desired, traffic},
    wait::{PATIENCE, uninterrupted, until},
};

use crate::scene::{Scene, TAP, VNI, addresses, desired, receiver, remote_endpoint, sender};

const ETHER_TYPE: u16 = 0x88b5;
/// An address that only the node's rules know, as that of a Service.
const SERVICE: [u8; 4] = [10, 200, 0, 1];

fn metadata(capture: &Capture) -> Vec<MetadataFrame> {
    capture.so_far().iter().filter_map(|frame| MetadataFrame::decode(&frame.bytes, ETHER_TYPE)).collect()
}

fn translations(capture: &Capture) -> Vec<Translation> {
    let translations = metadata(capture).into_iter().filter_map(|frame| match frame.metadata {
        Metadata::Translation(translation) => Some(translation),
        Metadata::Pod(_) => None,
    });
    translations.collect()
}

fn details() -> PodDetails {
    PodDetails {
        node: Some("n1".into()),
        workload: Some(Workload { kind: "Deployment".into(), name: "web".into(), api_version: "apps/v1".into() }),
        labels: [("app".to_owned(), "web".to_owned())].into(),
    }
}

/// A tap of `web` with metadata, to two receivers on the other node: `mirror0`, for it, and `plain0`.
fn tap(scene: &mut Scene) -> [Capture; 2] {
    let with = Receiver { metadata: true, ..receiver(TAP, VNI, "mirror0") };
    scene.remote_agent.establish(&desired(vec![], vec![with, receiver(TAP, VNI + 1, "plain0")]));
    scene.remote.network().wait_for_carrier();
    let captures = ["mirror0", "plain0"].map(|name| Capture::start(scene.remote.network().path(), name));
    let endpoints = [remote_endpoint(VNI), remote_endpoint(VNI + 1)];
    let mut sender = sender(TAP, &scene.web, Direction::Both, &endpoints);
    sender.tap.metadata = true;
    sender.details = Some(details());
    scene.agent.establish(&desired(vec![sender], vec![]));
    captures
}

/// The node translates connections to the service to the client's port, and those to the node's port 30080 to that of web, and makes
/// them its own, so that answers come back through it.
fn translate(scene: &Scene, client: IpAddr) {
    let web = scene.web.addresses[0];
    let rules = format!(
        "table ip nat {{\n\
           chain before {{ type nat hook prerouting priority dstnat;\n\
             ip daddr 10.200.0.1 udp dport 53 dnat to {client}:5353\n\
             ip daddr 10.200.0.1 tcp dport 80 dnat to {client}:8080\n\
             ip daddr 10.88.0.1 udp dport 30080 dnat to {web}:8080\n\
           }}\n\
           chain after {{ type nat hook postrouting priority srcnat; ct status dnat masquerade; }}\n\
         }}\n"
    );
    scene.node.network().set("ipv4/ip_forward", "1");
    scene.node.network().try_run(&["nft", "-f", "-"], &rules).expect("nft takes the rules");
}

/// An exchange with a server behind a translated address. Returns the client's socket address and the one that the server saw.
fn exchange(
    from: &podtap_tests::net::Network,
    to: &podtap_tests::net::Network,
    server: SocketAddr,
    address: SocketAddr,
) -> (SocketAddr, SocketAddr) {
    // A program that another test starts now may still have the socket of the last exchange.
    let server = until("the server's port is free", PATIENCE, || to.within(|| UdpSocket::bind(server)));
    let client = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket can be made");
    client.connect(address).expect("there is a route");
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).expect("the option can be set");
    }
    client.send(b"?").expect("it can be sent");
    let mut buffer = [0; 16];
    let (_, seen) = uninterrupted(|| server.recv_from(&mut buffer)).expect("it arrives");
    server.send_to(b"!", seen).expect("it can be sent");
    uninterrupted(|| client.recv(&mut buffer)).expect("the answer arrives");
    (client.local_addr().expect("it is bound"), seen)
}

fn tuple(source: SocketAddr, destination: SocketAddr) -> Tuple {
    Tuple {
        source: source.ip(),
        source_port: source.port(),
        destination: destination.ip(),
        destination_port: destination.port(),
    }
}

#[test]
fn translations_of_connections_from_and_to_the_pod_are_sent() {
    let mut scene = Scene::new();
    let client_address = addresses(&scene.client)[0];
    translate(&scene, client_address);
    let [mirror, plain] = tap(&mut scene);
    scene.client.ip("route add default via 10.88.0.1\n");

    let service = SocketAddr::from((SERVICE, 53));
    let server = SocketAddr::new(client_address, 5353);
    let (from, seen) = exchange(scene.web.network(), &scene.client, server, service);
    let as_client = Translation { protocol: 17, original: tuple(from, service), reply: tuple(server, seen), zone: 0 };
    assert_ne!(from.ip(), seen.ip(), "the node made the connection its own");

    let node_port = SocketAddr::from(([10, 88, 0, 1], 30080));
    let server = SocketAddr::new(scene.web.addresses[0], 8080);
    let (mut from, seen) = exchange(&scene.client, scene.web.network(), server, node_port);
    from.set_ip(client_address);
    let as_server = Translation { protocol: 17, original: tuple(from, node_port), reply: tuple(server, seen), zone: 0 };

    until("both translations arrive", PATIENCE, || {
        let found = translations(&mirror);
        if found.contains(&as_client) && found.contains(&as_server) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // As another tool shows them.
    let shown = scene.node.network().run("conntrack -L -p udp");
    for Tuple { source, source_port, destination, destination_port } in [as_client, as_server].map(|t| t.reply) {
        let words = format!("src={source} dst={destination} sport={source_port} dport={destination_port}");
        assert!(shown.contains(&words), "no {words} in {shown}");
    }
    // Connections without translation are none, and neither are those of others.
    traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[1, 2]);
    let stranger = scene.node.client();
    stranger.ip("route add default via 10.88.0.1\n");
    let server = SocketAddr::new(client_address, 5353);
    let (other, _) = exchange(&stranger, &scene.client, server, service);
    exchange(scene.web.network(), &scene.client, server, service);
    until("the next translation arrives", PATIENCE, || {
        let found = translations(&mirror);
        if found.len() == 3 { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert!(translations(&mirror).iter().all(|translation| translation.original.source_port != other.port()));
    assert_eq!(metadata(&plain), [], "the other receiver's consumers get none");
    assert!(plain.count(|frame| frame.bytes[12..14] == [8, 0]) > 0, "but frames of the pod");
}

/// A collector that begins to capture in the middle of a connection knows its server, too.
#[test]
fn translations_of_connections_from_before_the_tap_are_sent_while_they_last() {
    // More than the helper reads at once, and more than it sends at once.
    const CONNECTIONS: usize = 1000;
    let mut scene = Scene::new();
    let client_address = addresses(&scene.client)[0];
    translate(&scene, client_address);
    scene.client.ip("route add default via 10.88.0.1\n");
    let (service, server) = (SocketAddr::from((SERVICE, 80)), SocketAddr::new(client_address, 8080));
    let listener = scene.client.within(|| TcpListener::bind(server)).expect("the port is free");
    let connect = || {
        let client = scene.web.network().within(|| TcpStream::connect(service)).expect("it is translated");
        (client, listener.accept().expect("a connection"))
    };
    let open: Vec<_> = (0..CONNECTIONS).map(|_| connect()).collect();
    let mut expected: Vec<Translation> = open
        .iter()
        .map(|(client, (_, seen))| {
            let from = client.local_addr().expect("it is bound");
            Translation { protocol: 6, original: tuple(from, service), reply: tuple(server, *seen), zone: 0 }
        })
        .collect();
    let (other, accepted) = connect();
    let port_of_other = other.local_addr().expect("it is bound").port();
    drop(other);
    drop(accepted);
    until("conntrack knows them, and that one is over", PATIENCE, || {
        let shown = scene.node.network().run("conntrack -L -p tcp");
        let is_over =
            |line: &str| line.contains("TIME_WAIT") && line.contains(&format!("sport={port_of_other} dport=80 "));
        let established = shown.lines().filter(|line| line.contains("ESTABLISHED")).count();
        if established == CONNECTIONS && shown.lines().any(is_over) { Ok(()) } else { Err(format!("{established}")) }
    });

    let [mirror, plain] = tap(&mut scene);
    let by_port = |translation: &Translation| translation.original.source_port;
    expected.sort_by_key(by_port);
    until("the translations arrive", PATIENCE, || {
        let mut found = translations(&mirror);
        found.sort_by_key(by_port);
        // Read again, when the tap is established and the pod is told of.
        found.dedup();
        if found == expected { Ok(()) } else { Err(format!("{}", found.len())) }
    });
    assert_eq!(metadata(&plain), []);
}

#[test]
fn a_receiver_is_told_of_the_pod_at_first() {
    let mut scene = Scene::new();
    let [mirror, plain] = tap(&mut scene);
    let start = Instant::now();
    let pod = until("the pod is told of", Duration::from_secs(10), || match metadata(&mirror).first() {
        Some(MetadataFrame { tap, pod, metadata: Metadata::Pod(metadata) }) => {
            assert_eq!((&**tap, &**pod), (TAP, &*scene.web.uid));
            Ok(metadata.clone())
        }
        other => Err(format!("{other:?}")),
    });
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "web"));
    assert_eq!(pod.details, details());
    assert!(pod.tap.starts_with("PodTap "), "{}", pod.tap);
    assert_eq!(pod.addresses, scene.web.addresses.iter().copied().collect());
    let link = &scene.web.network().json("ip -j link show dev eth0")[0];
    assert_eq!(link["address"], pod.mac.as_str());
    // It is told of again after pauses that double, not with each change.
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI), remote_endpoint(VNI + 1)]);
    sender.tap.metadata = true;
    sender.tap.peers = vec![[10, 88, 0, 99].into()];
    scene.agent.establish(&Desired { generation: 2, ..desired(vec![sender], vec![]) });
    scene.traffic();
    let told = metadata(&mirror);
    let most = 2 + (start.elapsed().as_millis() / 500 + 1).ilog2();
    assert!((1..=most as usize).contains(&told.len()), "{} times in {:?}", told.len(), start.elapsed());
    assert!(told.iter().all(|frame| *frame == told[0]), "{told:?}");
    assert_eq!(metadata(&plain), []);
}

/// A pod may send what it likes, also with a VLAN tag, which packet sockets show apart from the frame.
#[test]
fn a_pod_cannot_send_metadata() {
    let mut scene = Scene::new();
    let [mirror, _plain] = tap(&mut scene);
    until("the pod is told of", PATIENCE, || if metadata(&mirror).is_empty() { Err("not yet") } else { Ok(()) });
    let own = metadata(&mirror)[0].clone();
    let forged = MetadataFrame {
        metadata: Metadata::Pod(PodMetadata {
            namespace: "kube-system".into(),
            name: "forged".into(),
            addresses: [[10, 0, 0, 1].into()].into(),
            mac: "02:00:00:00:00:01".into(),
            ..PodMetadata::default()
        }),
        ..own.clone()
    };
    let frame = forged.encode([2, 0, 0, 0, 0, 1], ETHER_TYPE).expect("it is not too long");
    let tagged = [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
    let mut injector = injector(scene.web.network(), "eth0");
    for frame in [&frame, &tagged] {
        injector.write_all(&[&[0; 10], &frame[..]].concat()).expect("it can be sent");
    }
    // What comes after them has arrived.
    traffic::ping(&scene.client, scene.web.addresses[0], 77, 2);
    until("the frames of the ping arrive", PATIENCE, || {
        let pings = mirror.count(|frame| frame.bytes.len() == 14 + 20 + 8 + 77);
        if pings >= 4 { Ok(()) } else { Err(format!("{pings}")) }
    });
    let told = metadata(&mirror);
    assert!(told.iter().all(|frame| *frame == own), "{told:?}");
}
