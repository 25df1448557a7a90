//! What tools capture at a receiver: frames as on the wire or, with raw frames, as the kernel has them.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{IpAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use podtap_model::{Direction, FrameFormat, Receiver};
use podtap_tests::{
    capture::{Capture, FrameDirection, injector},
    net::{Helper, Network, Node, Pod, Program, traffic},
    wait::{uninterrupted, until},
};

use crate::scene::{
    Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, same_streams, sender,
};

/// The largest frame of a pod with MTU 1500.
const LARGEST: usize = 1514;

/// A tap to both nodes, with offloads in the pod.
fn tapped(change: impl Fn(Receiver) -> Receiver) -> Scene {
    let mut scene = Scene::new().with_offloads();
    let endpoints = [remote_endpoint(VNI), local_endpoint(VNI + 1)];
    scene.remote_agent.establish(&desired(vec![], vec![change(receiver(TAP, VNI, "mirror0"))]));
    let local = change(receiver(TAP, VNI + 1, "mirror1"));
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &endpoints)], vec![local]));
    for node in [&scene.remote, &scene.node] {
        node.network().wait_for_carrier();
    }
    scene
}

/// Starts `tshark`, which writes the frames of an interface to a file.
fn record(node: &Node, interface: &str, file: &Path) -> Program {
    let file = file.display().to_string();
    Program::start(node, node.network(), &["tshark", "-i", interface, "-B", "64", "-w", &file], "Capture started")
}

/// Fields of the frames in a file as `tshark` dissects them, one line per frame.
pub fn dissect(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let file = file.display().to_string();
    let mut command: Vec<&str> =
        "tshark -r FILE -T fields -o tcp.check_checksum:TRUE -o udp.check_checksum:TRUE -o ip.check_checksum:TRUE"
            .split(' ')
            .map(|word| if word == "FILE" { &file } else { word })
            .collect();
    command.extend(fields.iter().flat_map(|field| ["-e", field]));
    let text = Network::new().try_run(&command, "").expect("tshark reads what it wrote");
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// Stops `tshark` after it has written all captured frames.
fn finish_recording(program: Program, capture: &Capture, file: &Path) {
    until("all frames are written", Duration::from_secs(10), || {
        let expected: usize = capture.so_far().iter().map(|frame| frame.bytes.len() + 32).sum();
        let written = fs::metadata(file).map_err(|error| error.to_string())?.len();
        if usize::try_from(written).is_ok_and(|written| written >= expected) {
            Ok(())
        } else {
            Err(format!("{written} of {expected} bytes; {}", program.errors()))
        }
    });
    program.end();
}

const CHECKSUMS: [&str; 5] = [
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
];

/// Asserts that no frame exceeds the pod's MTU and that every checksum is right. Returns the number of checksums of each kind.
fn assert_readable(file: &Path) -> [usize; 5] {
    // The last ones are only shown.
    let shown = ["frame.number", "ip.src", "tcp.seq_raw", "tcp.analysis.flags"];
    let fields: Vec<&str> = ["frame.len"].into_iter().chain(CHECKSUMS).chain(shown).collect();
    let frames = dissect(file, &fields);
    let mut counts = [0; 5];
    for frame in &frames {
        assert!(frame[0].parse::<usize>().is_ok_and(|length| length <= LARGEST), "{frame:?}");
        for (index, status) in frame[1..=CHECKSUMS.len()].iter().enumerate().filter(|(_, status)| !status.is_empty()) {
            // 1 is "good".
            assert_eq!(status, "1", "{}: {frame:?}", CHECKSUMS[index]);
            counts[index] += 1;
        }
    }
    counts
}

#[test]
fn tools_see_frames_as_on_the_wire() {
    let scene = tapped(|receiver| receiver);
    let at_pod = Capture::start(scene.web.network().path(), "eth0");
    let receivers = [(&scene.remote, "mirror0"), (&scene.node, "mirror1")];
    let captures = receivers.map(|(node, interface)| {
        let file = node.directory().join("frames.pcapng");
        (record(node, interface, &file), Capture::start(node.network().path(), interface), file)
    });
    for address in &scene.web.addresses {
        traffic::ping(&scene.client, *address, 1000, 3);
        traffic::udp(&scene.client, scene.web.network(), *address, &[100, 1400]);
        traffic::tcp(&scene.client, scene.web.network(), *address, 4 << 20);
    }
    for (program, capture, file) in captures {
        same_streams(&at_pod, &capture, 4);
        assert!(at_pod.count(|frame| frame.bytes.len() > 10 * LARGEST) > 10, "the pod has GSO packets");
        finish_recording(program, &capture, &file);
        let frames = capture.stop();
        assert!(frames.iter().all(|frame| frame.bytes.len() <= LARGEST && frame.direction == FrameDirection::In));
        let [ip, tcp, udp, icmp, icmpv6] = assert_readable(&file);
        assert!(ip > 5000 && tcp > 10_000 && udp >= 8 && icmp >= 6 && icmpv6 >= 6, "{ip} {tcp} {udp} {icmp} {icmpv6}");
    }
}

/// Whether an interface takes GSO packets as they are.
fn segments_later(network: &Network, interface: &str) -> bool {
    let features = network.run(&format!("ethtool -k {interface}"));
    features.lines().any(|line| line.trim() == "tx-tcp-segmentation: on")
}

#[test]
fn a_raw_receiver_shows_gso_packets() {
    let scene = tapped(|receiver| Receiver { frame_format: FrameFormat::Raw, ..receiver });
    assert!(segments_later(scene.remote.network(), "mirror0"));
    let at_pod = Capture::start(scene.web.network().path(), "eth0");
    let captures = [(&scene.remote, "mirror0"), (&scene.node, "mirror1")]
        .map(|(node, interface)| Capture::start(node.network().path(), interface));
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 4 << 20);
    for capture in captures {
        same_streams(&at_pod, &capture, 2);
        assert!(capture.count(|frame| frame.bytes.len() > LARGEST) > 10);
    }
}

/// The sender does not change, and all frames arrive in each format.
#[test]
fn the_frame_format_can_be_changed() {
    let mut scene = Scene::new();
    let before = scene.remote.network().snapshot();
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    let pod = scene.web.network().snapshot();
    for raw in [true, false, true, false] {
        let frame_format = if raw { FrameFormat::Raw } else { FrameFormat::Wire };
        scene
            .remote_agent
            .establish(&desired(vec![], vec![Receiver { frame_format, ..receiver(TAP, VNI, "mirror0") }]));
        let remote = scene.remote.network();
        assert_eq!((remote.devices_of(TAP).len(), segments_later(remote, "mirror0")), (3, raw));
        if raw {
            // The VXLAN device would merge segments.
            remote.run(&format!("ethtool -K {} gro off", remote.vxlan_devices()[0]));
        }
        let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
    assert_eq!(pod.differences(&scene.web.network().snapshot()), [""; 0]);
    scene.remote_agent.request(&desired(vec![], vec![]));
    scene.remote_agent.until("everything is removed", |report| report.receivers.is_empty());
    assert_eq!(before.differences(&scene.remote.network().snapshot()), [""; 0]);
}

/// UDP GSO packets, frames with a VLAN tag, and frames of a pod with a large MTU.
///
/// The receiver is on another node. For one on the same node, the kernel mistakes what follows a VLAN tag for the tag
/// (`vxlan_encap_bypass`, `drivers/net/vxlan/vxlan_core.c`).
#[test]
fn udp_gso_packets_tagged_frames_and_jumbo_frames_arrive() {
    let mut scene = Scene::new().with_offloads();
    let captures = scene.tap_to_remote(Direction::Both);
    let (web, client) = (scene.web.network(), &scene.client);
    let file = scene.remote.directory().join("frames.pcapng");
    let tshark = record(&scene.remote, "mirror0", &file);
    let mut tagged = injector(client, "eth0");
    for number in 0..20 {
        let frame = tagged_gso_packet(number);
        assert_eq!(tagged.write(&frame).expect("the frame is sent"), frame.len());
    }
    for address in &scene.web.addresses {
        gso_packet(client, *address, web);
    }
    until("all segments and datagrams arrive", Duration::from_secs(10), || {
        let count = captures.receiver.count(|frame| frame.bytes.ends_with(&[0x5a; 1000]));
        if count == 20 * 10 + 2 * 20 { Ok(()) } else { Err(format!("{count}")) }
    });
    finish_recording(tshark, &captures.receiver, &file);
    let fields = ["frame.len", "vlan.id", "ip.checksum.status", "tcp.checksum.status", "udp.checksum.status"];
    let frames = dissect(&file, &fields);
    let count = |column: usize, value: &str| frames.iter().filter(|frame| frame[column] == value).count();
    assert!(count(1, "7") == 200 && count(3, "1") == 200 && count(4, "1") >= 40, "{frames:?}");
    for frame in &frames {
        let tag = if frame[1].is_empty() { 0 } else { 4 };
        assert!(frame[0].parse::<usize>().is_ok_and(|length| length <= LARGEST + tag), "{frame:?}");
        assert!(frame[2..].iter().all(|status| status.is_empty() || status == "1"), "{frame:?}");
    }

    for network in [web, client] {
        network.ip("link set eth0 mtu 9000\n");
    }
    for port in scene.node.network().json("ip -j link show type veth") {
        let name = port["ifname"].as_str().expect("a name");
        if name.starts_with("veth") {
            scene.node.network().ip(&format!("link set {name} mtu 9000\n"));
        }
    }
    traffic::ping(client, scene.web.addresses[0], 8900, 3);
    traffic::tcp(client, web, scene.web.addresses[0], 200_000);
    until("large frames arrive", Duration::from_secs(10), || {
        let pings = captures.receiver.count(|frame| frame.bytes.len() == 8942);
        if pings == 6 { Ok(()) } else { Err(pings.to_string()) }
    });
    // Clamped to the underlay, whose MTU is 7000 bytes smaller.
    same_streams(&captures.pod, &captures.receiver, 20 + 2);
    assert_eq!(captures.receiver.count(|frame| frame.bytes.len() > 9014), 0);
}

/// Ten TCP segments in one broadcast GSO packet with a VLAN tag and a partial checksum, as a device with offloads gets it.
fn tagged_gso_packet(number: u8) -> Vec<u8> {
    let payload = [0x5a; 10_000];
    // struct virtio_net_hdr: flags and GSO type (checksum needed, TCP over IPv4), header length, GSO size, start and offset of the
    // checksum.
    let offloads: Vec<u8> = [0x0101_u16, 58, 1000, 38, 16].iter().flat_map(|word: &u16| word.to_ne_bytes()).collect();
    let ethernet = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 7, 8, 0];
    let total: u16 = 40 + 10_000;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let fold = |bytes: &[u8], more: u32| {
        let sum = more + bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
        u16::try_from((sum & 0xffff) + (sum >> 16)).expect("one carry")
    };
    let checksum = !fold(&ip, 0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    // A partial checksum is the sum of the pseudo-header.
    let pseudo_header = fold(&ip[12..20], 6 + 20 + 10_000).to_be_bytes();
    let mut tcp = vec![1, 0, 2, number, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 16, 0, 0, 0, 0, 0];
    tcp[16..18].copy_from_slice(&pseudo_header);
    [offloads.as_slice(), &ethernet, &ip, &tcp, &payload].concat()
}

/// Sends twenty datagrams of equal size with one call (UDP GSO).
fn gso_packet(client: &Network, to: IpAddr, server: &Network) {
    let listening = server.within(|| UdpSocket::bind((to, 0))).expect("the address exists");
    let any: IpAddr = if to.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
    let socket = client.within(|| UdpSocket::bind((any, 0))).expect("a socket can be created");
    setsockopt(&socket, UdpGsoSegment, &1000).expect("the kernel supports UDP GSO (Linux 4.18)");
    traffic::ping(client, to, 10, 1);
    let target = listening.local_addr().expect("the socket is bound");
    assert_eq!(socket.send_to(&vec![0x5a; 20_000], target).expect("the frame is sent"), 20_000);
}

/// It counts the packets and bytes of each flow as on the wire.
#[test]
fn softflowd_reports_the_flow() {
    let mut scene = Scene::new().with_offloads();
    let captures = scene.tap_to_remote(Direction::Both);
    let remote = &scene.remote;
    let collector = remote.network().within(|| UdpSocket::bind("127.0.0.1:0")).expect("a socket can be created");
    collector.set_read_timeout(Some(Duration::from_secs(10))).expect("the option can be set");
    let to = collector.local_addr().expect("the socket is bound").to_string();
    let [control, pid] =
        ["softflowd.ctl", "softflowd.pid"].map(|name| remote.directory().join(name).display().to_string());
    let command = ["softflowd", "-i", "mirror0", "-n", &to, "-d", "-c", &control, "-p", &pid];
    let softflowd = Program::start(remote, remote.network(), &command, "Exporting flows");
    // Not more than fits into libpcap's default buffer.
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 100_000);
    let softflowctl = |command: &str| remote.network().try_run(&["softflowctl", "-c", &control, command], "");
    let expected = until("softflowd has seen all frames", Duration::from_secs(60), || {
        // libpcap delivers frames in batches. More traffic completes the batch.
        traffic::ping(&scene.client, scene.web.addresses[0], 10, 1);
        let expected = wire(&captures);
        let flows = softflowctl("dump-flows")?;
        let has = |(packets, octets): &(u64, u64)| {
            [">", "<"]
                .iter()
                .any(|direction| flows.contains(&format!("octets{direction}:{octets} packets{direction}:{packets} ")))
        };
        if expected.len() == 2 && expected.values().all(has) {
            Ok(expected)
        } else {
            Err(format!("{expected:?}\n{flows}{}", softflowctl("statistics")?))
        }
    });
    // Both directions of the flow in NetFlow version 5: a header of 24 bytes, and records of 48.
    softflowctl("expire-all").expect("softflowd accepts the command");
    let mut buffer = [0; 2000];
    let length = uninterrupted(|| collector.recv(&mut buffer)).expect("a report arrives");
    let number =
        |record: &[u8], at: usize| u64::from(u32::from_be_bytes(*record[at..].first_chunk().expect("4 bytes")));
    let found: BTreeMap<Vec<u8>, (u64, u64)> = buffer[24..length]
        .chunks_exact(48)
        .filter(|record| record[38] == 6)
        .map(|record| (record[32..36].to_vec(), (number(record, 16), number(record, 20))))
        .collect();
    assert_eq!(found, expected);
    // Killed, because after a signal it may wait for another packet before it ends.
    drop(softflowd);
}

/// Packets and bytes that arrived of each direction of TCP over IPv4, by its ports.
fn wire(captures: &Captures) -> BTreeMap<Vec<u8>, (u64, u64)> {
    let mut found: BTreeMap<Vec<u8>, (u64, u64)> = BTreeMap::new();
    for frame in captures.receiver.so_far().iter().filter(|frame| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 6)
    {
        let sums = found.entry(frame.bytes[34..38].to_vec()).or_default();
        sums.0 += 1;
        sums.1 += u64::from(u16::from_be_bytes([frame.bytes[16], frame.bytes[17]]));
    }
    found
}

/// Broadcast frames, and frames to the node and to the receiver's devices, sent on each of these devices.
#[test]
fn frames_that_a_consumer_sends_are_dropped() {
    let mut scene = Scene::new();
    let _captures = scene.tap_to_remote(Direction::Both);
    let remote = scene.remote.network();
    let elsewhere =
        [(remote, "under0"), (remote, "cni0"), (remote, "lo"), (scene.web.network(), "eth0"), (&scene.client, "eth0")]
            .map(|(network, interface)| Capture::start(network.path(), interface));
    let listening = remote.within(|| UdpSocket::bind("0.0.0.0:7777")).expect("a socket can be created");
    listening.set_nonblocking(true).expect("the option can be set");
    for device in remote.devices_of(TAP) {
        let mac = |name: &str| {
            let text = remote.json(&format!("ip -j link show dev {name}"))[0]["address"].as_str().map(str::to_owned);
            text.expect("a device has an address")
                .split(':')
                .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"))
                .collect::<Vec<u8>>()
        };
        for to in [vec![0xff; 6], mac("under0"), mac(&device), mac("mirror0")] {
            // Without offloads; Ethernet, IPv4 and UDP to port 7777 of the node.
            let ip = [0x45, 0, 0, 0x30, 0, 0, 0, 0, 64, 17, 0x66, 0x37, 10, 66, 0, 9, 10, 66, 0, 2];
            let udp = [0x12, 0x34, 0x1e, 0x61, 0, 28, 0, 0];
            let frame = [&[0; 10][..], &to, &[2, 0, 0, 0, 0, 1, 8, 0], &ip, &udp, b"consumer consumer 20"].concat();
            injector(remote, &device).write_all(&frame).expect("a consumer may send");
        }
    }
    traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[10; 20]);
    for capture in elsewhere {
        let found = capture.stop().into_iter().find(|frame| frame.bytes.windows(9).any(|part| part == b"consumer "));
        assert_eq!(found, None);
    }
    assert_eq!(
        uninterrupted(|| listening.recv(&mut [0; 100])).map_err(|error| error.kind()),
        Err(std::io::ErrorKind::WouldBlock)
    );
}

/// Whenever the helper is killed, an interface with the requested name belongs to a complete receiver.
#[test]
fn the_interface_gets_its_name_last() {
    let node = Node::new();
    let consumer = Pod::start(&node);
    let network = consumer.network();
    let inside = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "mirror0") };
    let input = serde_json::to_string(&desired(vec![], vec![inside]).state()).expect("JSON");
    let mut complete = 0;
    for requests in 0.. {
        assert!(Helper::once(&node, &["purge"], "").0.success());
        assert_eq!(network.devices_of(TAP), [""; 0], "after {requests} requests");
        let ended = !Helper::killed_after(&node, requests, &["apply", "FILE"], &input);
        let links = network.json("ip -j -d link show");
        if links.iter().any(|link| link["ifname"] == "mirror0") {
            let vxlan = network.vxlan_devices()[0].clone();
            let up = |link: &&serde_json::Value| link["flags"].to_string().contains("\"UP\"");
            let redirects = network.mirrors(&vxlan);
            assert_eq!(redirects.len(), 1, "after {requests} requests");
            for device in [&vxlan, &redirects[0].to] {
                let link = links.iter().find(|link| link["ifname"] == **device).expect("the device exists");
                assert!(up(&link), "{device} after {requests} requests");
            }
            assert_eq!(offloads(network), [""; 0], "after {requests} requests");
            complete += 1;
        }
        if ended {
            assert!(requests > 20 && complete > 1, "{requests} {complete}");
            break;
        }
    }
}

/// Offloads of receivers' interfaces that are on.
pub fn offloads(network: &Network) -> Vec<String> {
    let interfaces = network.devices_of(TAP).into_iter().filter(|device| device.starts_with("mirror"));
    let on = |device: String| {
        // A device that was deleted since it was listed counts as not repaired, too.
        let text =
            network.try_run(&["ethtool", "-k", &device], "").unwrap_or_else(|_| "tx-checksumming: on".to_owned());
        let lines: Vec<String> = text.lines().map(|line| format!("{device} {}", line.trim())).collect();
        let matters = |line: &&String| {
            let offload = ["tx-checksum", "segmentation", "generic-receive", "rx-gro", "tx-gso"];
            offload.iter().any(|name| line.contains(name)) && line.ends_with(": on")
        };
        lines.iter().filter(matters).cloned().collect::<Vec<_>>()
    };
    interfaces.flat_map(on).collect()
}
