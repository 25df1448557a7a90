//! Receivers segment only while somebody reads them.

use std::{
    env,
    net::{IpAddr, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use podtap_model::{Direction, Endpoint, Receiver};
use podtap_tests::{
    capture::Capture,
    net::{Desired, Helper, Network, Node, Pod, Program, traffic},
    wait::{PATIENCE, until},
};

use crate::{
    receivers::dissect,
    scene::{Scene, TAP, VNI, desired, local_endpoint, peer, receiver, segments, sender, until_it_segments},
};

/// Datagrams in one GSO packet, and bytes of each.
const DATAGRAMS: usize = 20;
const DATAGRAM: usize = 1000;

/// How often each reader is started: `PODTAP_READERS` times.
fn times() -> u32 {
    env::var("PODTAP_READERS").map_or(5, |text| text.parse().expect("a number"))
}

/// Taps `web` to an interface of the same node that has had no reader yet.
fn tap(scene: &mut Scene, vni: u32) -> Desired {
    let endpoint: Endpoint = local_endpoint(vni);
    let senders = vec![sender(TAP, &scene.web, Direction::Both, &[endpoint])];
    let request = Desired { generation: i64::from(vni), ..desired(senders, vec![receiver(TAP, vni, "mirror0")]) };
    scene.agent.establish(&request);
    request
}

fn alias(node: &Node) -> String {
    peer(node.network(), "mirror0")["ifalias"].as_str().expect("it has an alias").to_owned()
}

/// A request that is prepared, so that it can follow the start of a reader at once.
struct Request {
    socket: UdpSocket,
    listening: UdpSocket,
}

impl Request {
    fn prepare(client: &Network, server: &Network, to: IpAddr) -> Self {
        let listening = server.within(|| UdpSocket::bind((to, 0))).expect("the address exists");
        let socket = client.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket can be created");
        let size = i32::try_from(DATAGRAM).expect("it is small");
        setsockopt(&socket, UdpGsoSegment, &size).expect("the kernel supports UDP GSO (Linux 4.18)");
        traffic::ping(client, to, 10, 1);
        Self { socket, listening }
    }

    /// Sends it as one GSO packet.
    fn send(&self) {
        let target = self.listening.local_addr().expect("the socket is bound");
        let sent = self.socket.send_to(&vec![0x5a; DATAGRAMS * DATAGRAM], target).expect("the frame is sent");
        assert_eq!(sent, DATAGRAMS * DATAGRAM);
    }
}

/// With its checksums.
#[test]
fn a_promiscuous_reader_sees_its_first_request_as_on_the_wire() {
    let mut scene = Scene::new().with_offloads();
    let to = scene.web.addresses[0];
    for time in 0..times() {
        for (number, reader) in (0..).zip(["tcpdump", "tshark"]) {
            let file = scene.node.directory().join(format!("{reader}{time}.pcap"));
            let path = file.display().to_string();
            tap(&mut scene, VNI + 10 * time + number);
            assert_eq!(segments(scene.node.network(), "mirror0"), Ok(false), "it costs nothing until somebody reads");
            let request = Request::prepare(&scene.client, scene.web.network(), to);
            let (node, network) = (&scene.node, scene.node.network());
            let program = match reader {
                "tcpdump" => {
                    let command = ["tcpdump", "-U", "-i", "mirror0", "-w", &path, "udp"];
                    Program::start(node, network, &command, "listening on")
                }
                _ => Program::start(node, network, &["tshark", "-i", "mirror0", "-w", &path], "Capture started"),
            };
            // Usually it does already, but not on a machine whose cores are busy.
            until_it_segments(network, "mirror0");
            request.send();
            let frames = until("it has the request", PATIENCE, || {
                // More traffic completes the batches of libpcap.
                traffic::ping(&scene.client, to, 10, 1);
                let mut frames = dissect(&file, &["frame.len", "udp.length", "udp.checksum.status"]);
                frames.retain(|frame| !frame[1].is_empty());
                let bytes: usize =
                    frames.iter().filter_map(|frame| frame[1].parse::<usize>().ok()).map(|length| length - 8).sum();
                if bytes >= DATAGRAMS * DATAGRAM { Ok(frames) } else { Err(format!("{frames:?}")) }
            });
            let expected = [(DATAGRAM + 42).to_string(), (DATAGRAM + 8).to_string(), "1".to_owned()];
            assert_eq!(frames, vec![expected.to_vec(); DATAGRAMS], "{reader}, for the {time}th time");
            program.end();
        }
    }
    assert_eq!(segments(scene.node.network(), "mirror0"), Ok(true), "the next reader finds it ready");
}

/// It reads flows, not frames.
#[test]
fn softflowd_counts_its_first_request_as_on_the_wire() {
    let mut scene = Scene::new().with_offloads();
    let to = scene.web.addresses[0];
    for time in 0..times() {
        tap(&mut scene, VNI + time);
        let request = Request::prepare(&scene.client, scene.web.network(), to);
        let (node, network) = (&scene.node, scene.node.network());
        let [control, pid] =
            ["ctl", "pid"].map(|name| node.directory().join(format!("{name}{time}")).display().to_string());
        let command = ["softflowd", "-i", "mirror0", "-n", "127.0.0.1:9", "-d", "-c", &control, "-p", &pid];
        let softflowd = Program::start(node, network, &command, "Exporting flows");
        until_it_segments(network, "mirror0");
        request.send();
        let expected = format!("octets>:{} packets>:{DATAGRAMS} ", DATAGRAMS * (DATAGRAM + 28));
        until("softflowd has the flow", PATIENCE, || {
            // More traffic completes the batches of libpcap.
            traffic::ping(&scene.client, to, 1400, 50);
            let flows = network.try_run(&["softflowctl", "-c", &control, "dump-flows"], "")?;
            let reversed = expected.replace('>', "<");
            if flows.contains(&expected) || flows.contains(&reversed) { Ok(()) } else { Err(flows) }
        });
        // Killed, because after a signal it may wait for another packet before it ends.
        drop(softflowd);
    }
}

/// Lets another program change the peer of the receiver's interface, which then does not segment.
fn stop_segmenting(node: &Node) {
    let name = peer(node.network(), "mirror0")["ifname"].as_str().expect("a name").to_owned();
    node.network().run(&format!("ethtool -K {name} tx on tso on gso on tx-udp-segmentation on"));
}

/// Starts the next helper after one was killed.
fn start_helper(scene: &mut Scene, request: &mut Desired) {
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    request.generation += 1;
    scene.agent.establish(request);
}

/// A packet socket that is not promiscuous is found by polling. From then on the receiver segments always, also with the next helper.
#[test]
fn a_reader_that_the_kernel_does_not_report_sees_frames_as_on_the_wire_the_next_time() {
    let mut scene = Scene::new().with_offloads();
    let to = scene.web.addresses[0];
    let mut request = tap(&mut scene, VNI);
    let first = Capture::not_promiscuous(scene.node.network().path(), "mirror0");
    until_it_segments(scene.node.network(), "mirror0");
    until("that is recorded", Duration::from_secs(5), || match alias(&scene.node) {
        alias if alias.ends_with(" readers=unreported") => Ok(()),
        alias => Err(alias),
    });
    let _ = first.stop();
    scene.helper.kill();
    stop_segmenting(&scene.node);
    start_helper(&mut scene, &mut request);
    until_it_segments(scene.node.network(), "mirror0");
    for _ in 0..times() {
        let capture = Capture::not_promiscuous(scene.node.network().path(), "mirror0");
        let gso = Request::prepare(&scene.client, scene.web.network(), to);
        gso.send();
        until("the request has arrived", PATIENCE, || {
            let datagrams = capture.count(|frame| frame.bytes.len() == DATAGRAM + 42);
            if datagrams == DATAGRAMS { Ok(()) } else { Err(datagrams) }
        });
        let _ = capture.stop();
    }
}

/// Readers of a pod's receiver, one of them of all interfaces.
#[test]
fn readers_in_a_pod_are_found() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.node);
    for (number, interface) in (0..).zip(["mirror0", "any"]) {
        let vni = VNI + number;
        let inside = Receiver { pod: Some(consumer.model()), ..receiver(TAP, vni, "mirror0") };
        let senders = vec![sender(TAP, &scene.web, Direction::Both, &[local_endpoint(vni)])];
        scene.agent.establish(&Desired { generation: i64::from(vni), ..desired(senders, vec![inside]) });
        let network = consumer.network();
        assert_eq!(segments(network, "mirror0"), Ok(false), "it has no reader");
        let command = ["tcpdump", "-i", interface, "-w", "/dev/null"];
        let tcpdump = Program::start(&scene.node, network, &command, "listening on");
        until_it_segments(network, "mirror0");
        tcpdump.end();
    }
}

/// The next helper knows a reader by what the kernel says of the interface.
#[test]
fn a_receiver_segments_for_a_reader_that_started_without_a_helper() {
    let mut scene = Scene::new();
    let mut request = tap(&mut scene, VNI);
    scene.helper.kill();
    let command = ["tcpdump", "-i", "mirror0", "-w", "/dev/null"];
    let tcpdump = Program::start(&scene.node, scene.node.network(), &command, "listening on");
    assert_eq!(segments(scene.node.network(), "mirror0"), Ok(false), "no helper runs");
    start_helper(&mut scene, &mut request);
    until_it_segments(scene.node.network(), "mirror0");
    tcpdump.end();
}

/// It stays ready for the next one for a while. What another program changes meanwhile is repaired.
#[test]
fn a_receiver_stops_segmenting_a_minute_after_its_last_reader() {
    let mut scene = Scene::new();
    tap(&mut scene, VNI);
    let network = scene.node.network();
    let command = ["tcpdump", "-i", "mirror0", "-w", "/dev/null"];
    let tcpdump = Program::start(&scene.node, network, &command, "listening on");
    until_it_segments(network, "mirror0");
    tcpdump.end();
    let end = Instant::now();
    stop_segmenting(&scene.node);
    until_it_segments(network, "mirror0");
    // Two full reconciliations.
    until("it no longer segments", Duration::from_secs(150), || match segments(network, "mirror0") {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(end.elapsed() > Duration::from_secs(55), "after {:?}", end.elapsed());
    assert!(!alias(&scene.node).contains("readers="), "{}", alias(&scene.node));
}

/// Nobody notices a reader while no helper runs.
#[test]
fn receivers_segment_without_a_helper() {
    let mut scene = Scene::new();
    let request = tap(&mut scene, VNI);
    assert_eq!(segments(scene.node.network(), "mirror0"), Ok(false));
    scene.helper.terminate();
    assert_eq!(segments(scene.node.network(), "mirror0"), Ok(true));
    stop_segmenting(&scene.node);
    let input = serde_json::to_string(&request.state()).expect("JSON");
    let (status, _, errors) = Helper::once(&scene.node, &["apply", "FILE"], &input);
    assert!(status.success(), "{errors}");
    assert_eq!(segments(scene.node.network(), "mirror0"), Ok(true));
}
