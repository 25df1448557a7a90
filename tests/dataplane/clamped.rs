//! Mirrored frames on an underlay with the pod's MTU, to which the helper's programs clamp them.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use podtap_model::{Direction, Endpoint, Oversize, Receiver};
use podtap_tests::{
    capture::{Capture, Frame},
    emulated,
    net::{Network, Sender, traffic},
    streams::{Content, segment},
    wait::until,
};

use crate::scene::{
    Scene, TAP, VNI, desired, endpoint, full_size, local_endpoint, receiver, remote_endpoint, same_streams, sender,
    until_it_segments,
};

const PERIOD: usize = 1_000_003;
/// Bytes in flight: fewer than the 1000 frames that a veth device queues (`net.core.netdev_max_backlog`), so that nothing is lost on a busy
/// machine.
const WINDOW: usize = 384 << 10;

/// One gigabyte, unless the kernel is emulated.
fn transferred() -> usize {
    if emulated() { 16 << 20 } else { 1 << 30 }
}

/// The sent bytes, which repeat with a period that is unrelated to any segment size.
fn period() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..PERIOD).map(|_| next()).collect()
}

/// A stream that is reassembled from its segments.
#[derive(Default)]
struct Reassembly {
    /// Sequence number of the first byte.
    first: Option<u32>,
    /// Length of the part without gaps.
    contiguous: usize,
    /// Parts after a gap: start and end.
    waiting: BTreeMap<usize, usize>,
    error: Option<String>,
}

impl Reassembly {
    fn take(&mut self, sequence: u32, syn: bool, data: &[u8], period: &[u8]) {
        if syn {
            self.first = Some(sequence.wrapping_add(1));
        }
        // The SYN has been acknowledged before the first byte is sent. Segments with data can overtake each other: the VXLAN device passes
        // on a frame that another capture still holds in another way than one that it may keep (gro_cells_receive, net/core/gro_cells.c).
        let Some(first) = self.first.filter(|_| !data.is_empty()) else { return };
        // Fewer than 2^31 bytes are sent.
        let Ok(at) = usize::try_from(sequence.wrapping_sub(first).cast_signed()) else {
            self.error.get_or_insert_with(|| "a segment before the first one".to_owned());
            return;
        };
        let offset = at % PERIOD;
        let (head, tail) = data.split_at(data.len().min(PERIOD - offset));
        if period[offset..offset + head.len()] != *head || period[..tail.len()] != *tail {
            let error = || format!("{} bytes in the segment at {at} are not those that were sent", data.len());
            self.error.get_or_insert_with(error);
        }
        self.waiting.entry(at).and_modify(|end| *end = (*end).max(at + data.len())).or_insert(at + data.len());
        while let Some(next) = self.waiting.first_entry().filter(|next| *next.key() <= self.contiguous) {
            self.contiguous = self.contiguous.max(next.remove());
        }
    }
}

/// Frames of VXLAN on the underlay.
#[derive(Default)]
struct Wire {
    frames: usize,
    fragments: usize,
    longest: usize,
}

impl Wire {
    fn take(&mut self, bytes: &[u8]) {
        if bytes[12..14] == [8, 0] {
            self.frames += 1;
            self.fragments += usize::from(bytes[20] & 0x3f != 0 || bytes[21] != 0);
            self.longest = self.longest.max(bytes.len());
        }
    }
}

/// No frame on the underlay is fragmented or exceeds the MTU.
#[test]
fn a_gigabyte_arrives_byte_for_byte() {
    for from_pod in [true, false] {
        let mut scene = Scene::with_underlay(1500).with_offloads();
        tap(&mut scene, remote_endpoint(VNI), |_| ());
        let address = SocketAddr::new(scene.web.addresses[0], 5000);
        let remote = scene.remote.network().path();
        let wire = Capture::fold(remote, "under0", Wire::default(), |wire, _, bytes| wire.take(bytes))
            .expect("the interface exists");
        let pattern = period();
        let mirrored = Capture::fold(remote, "mirror0", Reassembly::default(), move |stream, _, bytes| {
            let from = |flow: &[u8]| (flow[8..10] == 5000_u16.to_be_bytes()) == from_pod;
            if let Some((_, sequence, data)) = segment(bytes).filter(|(flow, ..)| from(flow)) {
                // IPv4 without options.
                let syn = bytes[14 + 20 + 13] & 2 != 0;
                stream.take(sequence, syn, data, &pattern);
            }
        })
        .expect("the interface exists");

        let total = transferred();
        let arrived = |sent: usize, window: usize| {
            let start = Instant::now();
            while mirrored.look(|stream| stream.error.is_none() && stream.contiguous + window < sent) {
                let state =
                    |stream: &Reassembly| (stream.contiguous, stream.waiting.first_key_value().map(|(at, _)| *at));
                assert!(start.elapsed() < Duration::from_secs(60), "{sent} sent, arrived: {:?}", mirrored.look(state));
                thread::yield_now();
            }
        };
        transfer(scene.web.network(), &scene.client, address, from_pod, total, |sent| arrived(sent, WINDOW));
        arrived(total, 0);
        let (stream, wire) = (mirrored.stop(), wire.stop());
        println!(
            "{total} bytes, from the pod: {from_pod}; {} frames on the underlay, {} fragments, longest {}",
            wire.frames, wire.fragments, wire.longest
        );
        assert_eq!((stream.contiguous, stream.waiting.len(), stream.error), (total, 0, None));
        assert_eq!((wire.fragments, wire.longest), (0, 1514));
    }
}

/// Transfers bytes of the pattern. Calls `pause` at intervals with the number of bytes sent.
fn transfer(web: &Network, client: &Network, to: SocketAddr, from_pod: bool, total: usize, pause: impl Fn(usize)) {
    let listener = web.within(|| TcpListener::bind(to)).expect("the port is free");
    let connected = client.within(|| TcpStream::connect(to)).expect("the pod answers");
    let (accepted, _) = listener.accept().expect("the client is connected");
    let (mut from, mut into) = if from_pod { (accepted, connected) } else { (connected, accepted) };
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut buffer, mut read) = (vec![0; 1 << 20], 0);
            while let Ok(size @ 1..) = into.read(&mut buffer) {
                read += size;
            }
            read
        });
        let pattern = period();
        let (mut sent, step) = (0, WINDOW / 3);
        while sent < total {
            let offset = sent % PERIOD;
            let size = step.min(total - sent).min(PERIOD - offset);
            from.write_all(&pattern[offset..offset + size]).expect("the receiver reads");
            sent += size;
            pause(sent);
        }
        drop(from);
        assert_eq!(reader.join().expect("the reader does not panic"), total, "the pod's own transfer is complete");
    });
}

fn tap(scene: &mut Scene, to: Endpoint, change: impl FnOnce(&mut Sender)) {
    let ipv6 = to.address.is_ipv6();
    scene.remote_agent.establish(&desired(vec![], vec![Receiver { ipv6, ..receiver(TAP, VNI, "mirror0") }]));
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[to]);
    change(&mut sender);
    scene.agent.establish(&desired(vec![sender], vec![]));
    scene.remote.network().wait_for_carrier();
}

/// Sends datagrams with these payloads from the pod. Returns the lengths of the mirrored frames.
fn lengths(scene: &Scene, payloads: &[usize]) -> Vec<usize> {
    let mirror = Capture::start(scene.remote.network().path(), "mirror0");
    let address = scene.web.addresses[0];
    traffic::udp(scene.web.network(), &scene.client, scene.client_addresses()[0], payloads);
    let of_pod = |frame: &Frame| {
        frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 17 && IpAddr::from(source(frame)) == address
    };
    until("all mirrored frames arrive", Duration::from_secs(10), || {
        let count = mirror.count(of_pod);
        if count == payloads.len() { Ok(()) } else { Err(format!("{count}")) }
    });
    mirror.stop().iter().filter(|frame| of_pod(frame)).map(|frame| frame.bytes.len()).collect()
}

fn source(frame: &Frame) -> [u8; 4] {
    *frame.bytes[26..].first_chunk().expect("an address")
}

#[test]
fn datagrams_that_do_not_fit_are_fragmented_or_truncated() {
    for (oversize, expected, fragments) in [(Oversize::Fragment, 1514, 4), (Oversize::Truncate, 1464, 0)] {
        let mut scene = Scene::with_underlay(1500);
        tap(&mut scene, remote_endpoint(VNI), |sender| {
            (sender.tap.options.oversize, sender.tap.direction) = (oversize, Direction::Egress);
        });
        let remote = scene.remote.network().path();
        let wire = Capture::fold(remote, "under0", Wire::default(), |wire, _, bytes| wire.take(bytes))
            .expect("the interface exists");
        assert_eq!(lengths(&scene, &[100, 1422, 1472, 1472]), [142, 1464, expected, expected], "{oversize:?}");
        assert_eq!(wire.stop().fragments, fragments, "{oversize:?}");
    }
}

/// The kernel does not fragment VXLAN over IPv6: TCP is clamped as usual, and other frames are truncated instead of lost.
#[test]
fn nothing_is_lost_over_an_ipv6_underlay() {
    let mut scene = Scene::with_underlay(1500).with_offloads();
    let to = Endpoint { address: "fd66::2".parse().expect("an address"), ..remote_endpoint(VNI) };
    tap(&mut scene, to, |_| ());
    let remote = scene.remote.network().path();
    let [at_pod, mirror] =
        [(scene.web.network().path(), "eth0"), (remote, "mirror0")].map(|(path, name)| Capture::start(path, name));
    for address in &scene.web.addresses {
        traffic::tcp(&scene.client, scene.web.network(), *address, 4 << 20);
    }
    same_streams(&at_pod, &mirror, 4);
    let content = Content::of(&mirror.stop());
    assert!(content.streams.values().all(|stream| stream.is_whole() && stream.bytes.len() == 4 << 20));
    let wire = Capture::start(remote, "under0");
    assert_eq!(lengths(&scene, &[100, 1402, 1403, 1472]), [142, 1444, 1444, 1444]);
    assert!(wire.stop().iter().all(|frame| frame.bytes.len() <= 1514));
}

/// One write of many datagrams (UDP GSO), as QUIC servers do. Each is mirrored in fragments.
#[test]
fn every_datagram_of_a_udp_gso_packet_arrives() {
    let mut scene = Scene::with_underlay(1500).with_offloads();
    tap(&mut scene, remote_endpoint(VNI), |sender| sender.tap.direction = Direction::Egress);
    let mirror = Capture::start(scene.remote.network().path(), "mirror0");
    until_it_segments(scene.remote.network(), "mirror0");
    let to = SocketAddr::new(scene.client_addresses()[0], 9);
    let socket = scene.web.network().within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket can be created");
    setsockopt(&socket, UdpGsoSegment, &1472).expect("the option can be set");
    let payload: Vec<u8> = (0..10 * 1472_usize).map(|at| (at / 1472).to_le_bytes()[0]).collect();
    socket.send_to(&payload, to).expect("the datagrams are sent");
    until("each arrives once, reassembled", Duration::from_secs(10), || {
        let frames = mirror.so_far();
        let udp = frames.iter().filter(|frame| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 17);
        let mut found: Vec<(usize, u8)> = udp.map(|frame| (frame.bytes.len(), frame.bytes[42])).collect();
        found.sort_unstable();
        let expected: Vec<(usize, u8)> = (0..10).map(|number| (1514, number)).collect();
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// A path of which the node just learned that it is narrower than its interface says: no event reports that. Mirrored frames that
/// fit the interface do not affect the pod's routes.
#[test]
fn a_path_mtu_that_the_node_learned_does_not_affect_the_pod() {
    let mut scene = Scene::with_underlay(1500);
    let (remote, behind) = (scene.remote.network(), Network::new());
    let path = behind.path().display();
    remote.ip(&format!("link add narrow0 mtu 1400 type veth peer name narrow0 mtu 1400 netns {path}\n"));
    for (network, number) in [(remote, 1), (&behind, 2)] {
        network.ip(&format!(
            "link set narrow0 addrgenmode none\naddr add 10.67.0.{number}/24 dev narrow0\nlink set narrow0 up\n"
        ));
    }
    remote.set("ipv4/ip_forward", "1");
    behind.ip("route add default via 10.67.0.1\n");
    scene.node.network().ip("route add 10.67.0.0/24 via 10.66.0.2\n");
    let to = [endpoint([10, 67, 0, 2], VNI)];
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &to)], vec![]));
    let node = scene.node.network();
    until("the node learns the path MTU", Duration::from_secs(10), || {
        let _ = node.try_run(&["ping", "-q", "-c", "1", "-W", "1", "-M", "do", "-s", "1472", "10.67.0.2"], "");
        let route = node.run("ip route get 10.67.0.2");
        if route.contains("mtu 1400") { Ok(()) } else { Err(route) }
    });

    let web = scene.web.network();
    let wire = Capture::start(behind.path(), "narrow0");
    for (address, size) in scene.client_addresses().into_iter().zip([1400, 1380]) {
        // Mirrored, these frames have 1442 bytes: with the headers of VXLAN they fit 1500 bytes, but not 1400.
        let output = web.run(&format!("ping -c 5 -i 0.01 -W 10 -M do -s {size} {address}"));
        assert!(output.contains("5 received"), "{output}");
        let route = web.run(&format!("ip route get {address}"));
        assert!(!route.contains("mtu"), "{route}");
    }
    until("the frames were mirrored on that path", Duration::from_secs(10), || match wire.count(|_| true) {
        count if count >= 40 => Ok(()),
        count => Err(count.to_string()),
    });
}

/// The routes from the pod to the client, without the age of what was learned.
fn routes(scene: &Scene) -> Vec<String> {
    let web = scene.web.network();
    let shown = scene.client_addresses().into_iter().map(|address| web.run(&format!("ip -d route get {address}")));
    shown
        .map(|route| route.split_whitespace().filter(|word| !word.ends_with("sec")).collect::<Vec<_>>().join(" "))
        .collect()
}

/// Full-size pings and datagrams over IPv4 and IPv6, 12 frames of each from the pod and to it.
fn full_size_traffic(scene: &Scene) {
    for address in scene.client_addresses() {
        traffic::ping(scene.web.network(), address, full_size(address), 3);
        traffic::udp(scene.web.network(), &scene.client, address, &[full_size(address); 3]);
    }
}

#[track_caller]
fn await_frames(capture: &Capture, length: usize, expected: usize) {
    until("the full-size frames arrive", Duration::from_secs(10), || {
        match capture.count(|frame| frame.bytes.len() == length) {
            count if count == expected => Ok(()),
            count => Err(format!("{count} of {expected} frames of {length} bytes")),
        }
    });
}

/// Mirrored frames that exceed the MTU of the underlay do not affect the pod's routes.
#[test]
fn the_pods_path_mtu_does_not_change() {
    let mut scene = Scene::with_underlay(1500);
    tap(&mut scene, remote_endpoint(VNI), |_| ());
    let before = routes(&scene);
    let mirror = Capture::start(scene.remote.network().path(), "mirror0");
    full_size_traffic(&scene);
    await_frames(&mirror, 1514, 24);
    assert_eq!(routes(&scene), before);
    assert!(!routes(&scene).iter().any(|route| route.contains("mtu")), "{:?}", routes(&scene));
}

/// With a receiver on the pod's node as well, IPv6 frames that leave the pod are truncated, and all others arrive whole at both.
#[test]
fn the_pods_path_mtu_does_not_change_with_destinations_here_and_elsewhere() {
    let mut scene = Scene::with_underlay(1500);
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let to = [remote_endpoint(VNI), local_endpoint(VNI + 1)];
    let tapped = sender(TAP, &scene.web, Direction::Both, &to);
    scene.agent.establish(&desired(vec![tapped], vec![receiver(TAP, VNI + 1, "mirror1")]));
    let networks = [(scene.remote.network(), "mirror0"), (scene.node.network(), "mirror1")];
    let mirrors = networks.map(|(network, name)| {
        network.wait_for_carrier();
        Capture::start(network.path(), name)
    });
    let before = routes(&scene);
    full_size_traffic(&scene);
    for mirror in &mirrors {
        await_frames(mirror, 1514, 18);
        await_frames(mirror, 1464, 6);
    }
    assert_eq!(routes(&scene), before);
}
