//! Deduplication between two pods of a tap, with a pod that is not tapped, directly and through a Service.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use podtap_model::{Deduplicate, Direction, NodeStatus, State};
use podtap_tests::{
    capture::{Capture, Difference, Frame},
    checksum,
    net::{Desired, Network, Pod, traffic},
    wait::until,
};

use crate::scene::{Scene, TAP, VNI, desired, receiver, remote_endpoint, sender};

/// The address of a Service, which the node translates as kube-proxy does.
const SERVICE: &str = "10.96.0.10";
/// The port of a server that is above the ports of its clients.
const HIGH: u16 = 60_000;

/// A tap of both pods with `deduplicate`, to two receivers.
fn once(pods: [&Pod; 2], peers: &[IpAddr], generation: i64) -> Desired {
    let senders = pods.map(|pod| {
        let mut sender = sender(TAP, pod, Direction::Both, &[remote_endpoint(VNI), remote_endpoint(VNI + 1)]);
        sender.tap.options.deduplicate = Some(Deduplicate::default());
        sender.tap.peers = peers.to_vec();
        sender
    });
    Desired { generation, ..desired(senders.to_vec(), vec![]) }
}

/// Translates two ports of the Service to ports of the pod. Its replies to `client` go through the node, as between two nodes.
fn serve(scene: &Scene, pod: &Pod, client: &Pod, ports: [(u16, u16); 2]) {
    let node = scene.node.network();
    let rule = |(port, target): (u16, u16)| {
        format!("add rule nat pre ip daddr {SERVICE} tcp dport {port} dnat to {}:{target}\n", pod.addresses[0])
    };
    let chain = "add chain nat pre { type nat hook prerouting priority -100 ; }";
    let rules = format!("add table nat\n{chain}\n{}", ports.map(rule).concat());
    node.try_run(&["nft", "-f", "-"], &rules).expect("the node translates addresses");
    for (setting, value) in [("ip_forward", "1"), ("conf/all/send_redirects", "0"), ("conf/cni0/send_redirects", "0")] {
        node.set(&format!("ipv4/{setting}"), value);
    }
    pod.network()
        .ip(&format!("route add {}/32 via 10.88.0.1 table 7\nrule add sport {HIGH} table 7\n", client.addresses[0]));
    pod.network().ip(&format!("rule add sport {} table 7\n", ports[0].1));
}

/// A connection to `to`, which leads to a port of `server`: both of its ends.
fn open(client: &Network, to: SocketAddr, server: &Pod, port: u16) -> [TcpStream; 2] {
    let listen = SocketAddr::new(server.addresses[0], port);
    let listener = server.network().within(|| TcpListener::bind(listen)).expect("the port is free");
    let stream = client.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(10))).expect("it connects");
    [stream, listener.accept().expect("it is connected").0]
}

/// Sends bytes from each end to the other.
fn exchange(ends: &[TcpStream; 2], count: usize) {
    for [from, to] in [[&ends[0], &ends[1]], [&ends[1], &ends[0]]] {
        let (mut from, mut to) = (from, to);
        let mut buffer = vec![0; count];
        to.set_read_timeout(Some(Duration::from_secs(10))).expect("the option can be set");
        from.write_all(&vec![7; count]).expect("it can be sent");
        to.read_exact(&mut buffer).expect("it arrives");
    }
}

/// Traffic of every kind between two pods, and of one of them with a client that is not tapped.
fn traffic_between(scene: &Scene, one: &Pod, other: &Pod) {
    for (from, to) in [(one, other), (other, one)] {
        for address in &to.addresses {
            traffic::ping(from.network(), *address, 100, 3);
            traffic::udp(from.network(), to.network(), *address, &[1, 300, 3000]);
            traffic::tcp(from.network(), to.network(), *address, 20_000);
        }
    }
    for address in &one.addresses {
        traffic::ping(&scene.client, *address, 50, 2);
        traffic::tcp(&scene.client, one.network(), *address, 5000);
        traffic::udp(one.network(), &scene.client, scene.client_addresses()[usize::from(address.is_ipv6())], &[700]);
    }
}

fn comparable(mut frames: Vec<Frame>) -> Vec<Frame> {
    frames.retain(|frame| !frame.is_announcement());
    for frame in &mut frames {
        checksum::unify_zero(&mut frame.bytes);
    }
    frames
}

/// Source and destination of an IP packet.
fn ends(frame: &Frame) -> Option<[IpAddr; 2]> {
    let bytes = &frame.bytes;
    match bytes.get(12..14)? {
        [8, 0] => Some([26, 30].map(|at| IpAddr::from(*bytes[at..].first_chunk::<4>().expect("a header")))),
        [0x86, 0xdd] => Some([22, 38].map(|at| IpAddr::from(*bytes[at..].first_chunk::<16>().expect("a header")))),
        _ => None,
    }
}

fn is_between(frame: &Frame, one: &Pod, other: &Pod) -> bool {
    let of = |pod: &Pod, address: IpAddr| pod.addresses.contains(&address);
    ends(frame).is_some_and(|[a, b]| of(one, a) && of(other, b) || of(other, a) && of(one, b))
}

/// Whether the first or second port is [`HIGH`].
fn is_high(frame: &Frame) -> bool {
    frame.bytes[12..14] == [8, 0] && [34, 36].iter().any(|at| frame.bytes[*at..*at + 2] == HIGH.to_be_bytes())
}

#[track_caller]
fn arrive(receiver: &Capture, expected: impl Fn() -> Vec<Frame>) {
    until("each frame arrives as often as expected", Duration::from_secs(10), || {
        let (sent, mirrored) = (comparable(expected()), comparable(receiver.so_far()));
        let difference = Difference::between(&sent, &mirrored);
        if difference.is_none() { Ok(()) } else { Err(format!("{} and {}\n{difference}", sent.len(), mirrored.len())) }
    });
}

fn is_active(status: &NodeStatus) -> bool {
    status.senders.len() == 2 && status.senders.iter().all(|sender| sender.state == State::Active)
}

#[test]
fn flows_between_two_tapped_pods_are_mirrored_once_and_all_others_in_full() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    let receivers = [(VNI, "mirror0"), (VNI + 1, "mirror1")].map(|(vni, name)| receiver(TAP, vni, name));
    scene.remote_agent.establish(&desired(vec![], receivers.to_vec()));
    let service = |port| SocketAddr::new(SERVICE.parse().expect("an address"), port);
    serve(&scene, &other, &scene.web, [(80, 8080), (443, HIGH)]);
    let web = scene.web.network();
    // Older than the tap, and with the higher port at the server.
    web.set("ipv4/ip_local_port_range", "30000 30100");
    let old = open(web, service(443), &other, HIGH);
    web.set("ipv4/ip_local_port_range", "32768 59999");

    let both = [&scene.web, &other];
    let status = scene.agent.establish(&once(both, &[], 1));
    for (sender, pod) in status.senders.iter().zip(both) {
        assert_eq!((&*sender.pod_uid, &sender.addresses), (&*pod.uid, &pod.addresses));
    }
    let peers = both.map(|pod| pod.addresses.clone()).concat();
    let programs = web.programs("eth0");
    scene.agent.request(&once(both, &peers, 2));
    // The first report about it: the senders stay active, with their programs.
    let status = scene.agent.until("the peers are known", |status| status.observed_generation == Some(2));
    assert!(is_active(&status), "{status:#?}");
    assert_eq!(web.programs("eth0"), programs);

    scene.remote.network().wait_for_carrier();
    let receivers = ["mirror0", "mirror1"].map(|name| Capture::start(scene.remote.network().path(), name));
    let at = both.map(|pod| Capture::start(pod.network().path(), "eth0"));
    exchange(&old, 3000);
    exchange(&open(web, service(80), &other, 8080), 3000);
    traffic_between(&scene, &scene.web, &other);
    let expected = || {
        // Both see the same frames of each other. Behind the Service, the other sees those that it leaves to the client.
        let mut frames = at[1].so_far();
        frames.retain(|frame| !is_between(frame, &scene.web, &other) || is_high(frame));
        [at[0].so_far(), frames].concat()
    };
    for receiver in &receivers {
        arrive(receiver, expected);
    }
    traffic::ping(&scene.client, scene.web.addresses[0], 77, 2);
    for receiver in &receivers {
        arrive(receiver, expected);
    }
    assert!(at[0].count(|frame| is_between(frame, &scene.web, &other)) > 100, "they exchange frames");
    let through_service = |frame: &Frame| ends(frame).is_some_and(|ends| ends.contains(&service(80).ip()));
    for receiver in receivers {
        assert!(receiver.count(through_service) > 10, "the client has used the Service");
        assert!(
            receiver.count(|frame| is_high(frame) && is_between(frame, &scene.web, &other)) > 2,
            "the old connection"
        );
        let _ = receiver.stop();
    }
    let _ = at.map(Capture::stop);

    // One of them is no longer mirrored: the helper of its node has reported that, or it is to be removed.
    scene.agent.request(&once(both, &scene.web.addresses, 3));
    scene.agent.until("there is one peer", |status| status.observed_generation == Some(3) && is_active(status));
    let receiver = Capture::start(scene.remote.network().path(), "mirror0");
    let at_web = Capture::start(scene.web.network().path(), "eth0");
    traffic::udp(other.network(), scene.web.network(), scene.web.addresses[0], &[10; 5]);
    until("the pod mirrors all of its flows", Duration::from_secs(10), || {
        let sent = at_web.so_far();
        let mirrored = receiver.so_far();
        let missing = sent.iter().filter(|frame| !mirrored.iter().any(|other| other.bytes == frame.bytes)).count();
        if sent.len() >= 10 && missing == 0 { Ok(()) } else { Err(format!("{missing} of {} are missing", sent.len())) }
    });
}
