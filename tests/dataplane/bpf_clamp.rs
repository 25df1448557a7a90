//! Clamping of mirrored frames on an underlay with the MTU of the pod's interface.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use podtap_model::{MirrorOptions, Oversize, Truncate};
use podtap_tests::{
    capture::{Capture, Frame},
    emulated,
    net::Network,
    streams::{Content, Stream, segment},
    wait::until,
};
use tap_helper::bpf::{Programs, Settings, frame_limit};

use crate::bpf_scene::{CLIENT, POD, Scene, inject, loaded};

/// The port of datagrams that are sent last.
const LAST: u16 = 4242;

fn scene(settings: &Settings) -> (Scene, Programs) {
    let scene = Scene::with_vxlan(1500);
    let programs = loaded(settings, None).expect("the programs load");
    scene.attach_clamp(&programs);
    scene.attach(&programs);
    (scene, programs)
}

fn truncated(truncate: Truncate) -> Settings {
    Settings { options: MirrorOptions { truncate: Some(truncate), ..MirrorOptions::default() }, ..clamped() }
}

fn clamped() -> Settings {
    Settings { frame_limit: Some(frame_limit(1500, false)), ..Settings::default() }
}

/// The byte at an offset of the stream.
fn pattern(at: usize) -> u8 {
    let mixed = (at as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_le_bytes()[at % 8]
}

/// Sends from the pod, or to it, and reads all of it.
fn transfer(scene: &Scene, ipv6: bool, from_pod: bool, bytes: usize) {
    let address: IpAddr = if ipv6 { "fd88::1".parse().expect("an address") } else { POD.into() };
    let target = SocketAddr::new(address, 5000);
    // The kernel may take a moment to notify IPv6 that a link is up.
    let listener = scene.pod.within(|| TcpListener::bind(target)).expect("the port is free");
    let connect = || scene.client.within(|| TcpStream::connect(target)).map_err(|error| error.to_string());
    let connected = until("the pod is reachable", Duration::from_secs(5), connect);
    let (accepted, _) = listener.accept().expect("the client is connected");
    let (mut from, mut to) = if from_pod { (accepted, connected) } else { (connected, accepted) };
    thread::scope(|scope| {
        scope.spawn(move || {
            let data: Vec<u8> = (0..bytes).map(pattern).collect();
            from.write_all(&data).expect("the receiver reads");
        });
        let mut buffer = vec![0; 1 << 20];
        while to.read(&mut buffer).expect("the stream is readable") > 0 {}
    });
}

/// The number of IPv4 fragments on the underlay, and the length of the longest frame.
fn wire(frames: &[Frame]) -> (usize, usize) {
    let ipv4 = frames.iter().filter(|frame| frame.bytes[12..14] == [8, 0]);
    let fragments = ipv4.filter(|frame| frame.bytes[20] & 0x3f != 0 || frame.bytes[21] != 0).count();
    (fragments, frames.iter().map(|frame| frame.bytes.len()).max().unwrap_or(0))
}

/// The mirrored frame inside a frame of the underlay.
fn mirrored(frame: &Frame) -> Option<&[u8]> {
    (frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 17).then(|| &frame.bytes[50..])
}

/// The mirrored frames inside frames of the underlay.
fn inner(frames: &[Frame]) -> Vec<Frame> {
    let inner = |frame: &Frame| Some(Frame { bytes: mirrored(frame)?.to_vec(), ..*frame });
    frames.iter().filter_map(inner).collect()
}

/// Bytes of TCP data in a frame.
fn data(frame: &[u8]) -> usize {
    segment(frame).map_or(0, |(_, _, data)| data.len())
}

fn is_udp(frame: &Frame) -> bool {
    frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 17
}

/// Asserts that the checksums of a TCP segment are right.
fn assert_checksums(frame: &[u8]) {
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let sum = |bytes: &[u8]| -> u32 {
        let all: u32 =
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
        (all & 0xffff) + (all >> 16)
    };
    let (addresses, begin, end) = match frame[12..14] {
        [8, 0] if frame[23] == 6 => {
            assert!(sum(&frame[14..34]) % 0xffff == 0, "checksum of the IP header: {frame:02x?}");
            (26, 34, 14 + word(16))
        }
        [0x86, 0xdd] if frame[20] == 6 => (22, 54, 54 + word(18)),
        _ => return,
    };
    let length = u32::try_from(end - begin).expect("the segment is short");
    let whole = sum(&frame[addresses..begin]) + 6 + length + sum(&frame[begin..end]);
    assert!(whole % 0xffff == 0, "checksum of the TCP header: {frame:02x?}");
}

/// A mirrored datagram with this port at both ends, captured with or without VXLAN.
fn is_last(frame: &Frame) -> bool {
    let port = LAST.to_be_bytes();
    let is_it = |bytes: &[u8]| {
        bytes.len() >= 42 && bytes[12..14] == [8, 0] && bytes[23] == 17 && bytes[34..38] == [port, port].concat()
    };
    is_it(&frame.bytes) || frame.bytes.get(50..).is_some_and(is_it)
}

/// Waits until the sum over the captured frames reaches `least`, and then for a datagram in each direction that follows everything else.
/// Returns the frames without these.
#[track_caller]
fn captured(scene: &Scene, capture: Capture, least: usize, count: impl Fn(&Frame) -> usize) -> Vec<Frame> {
    until("everything arrives", Duration::from_secs(20), || {
        let now: usize = capture.look(|frames| frames.iter().map(&count).sum());
        if now >= least { Ok(()) } else { Err(format!("{now} of {least}")) }
    });
    let ends = [POD, CLIENT].map(|address| SocketAddr::from((address, LAST)));
    let bind = |network: &Network, end| network.within(|| UdpSocket::bind(end)).expect("the port is free");
    let (pod, client) = (bind(&scene.pod, ends[0]), bind(&scene.client, ends[1]));
    pod.send_to(b"last", ends[1]).expect("the datagram is sent");
    client.send_to(b"last", ends[0]).expect("the datagram is sent");
    until("the last datagrams arrive", Duration::from_secs(20), || {
        let found = capture.count(is_last);
        if found == 2 { Ok(()) } else { Err(format!("{found} of 2")) }
    });
    let mut frames = capture.stop();
    frames.retain(|frame| !is_last(frame));
    frames
}

/// Transfers data, and asserts that no mirrored frame exceeds the MTU and nothing is lost.
fn assert_clamped(scene: &Scene, programs: &Programs, ipv6: bool, from_pod: bool, bytes: usize) {
    let under = Capture::start(scene.remote.path(), "under0");
    transfer(scene, ipv6, from_pod, bytes);
    let frames = captured(scene, under, bytes, |frame| mirrored(frame).map_or(0, data));
    let (fragments, longest) = wire(&frames);
    let counters = programs.maps().counters(0).expect("the counters are readable");
    println!(
        "IPv6: {ipv6}, from the pod: {from_pod}; {} frames, {fragments} fragments, longest {longest}",
        frames.len()
    );
    assert_eq!((fragments, longest), (0, 1514), "{counters:?}");
    for direction in [counters.ingress, counters.egress] {
        assert_eq!((direction.oversized.frames, direction.failed.frames), (0, 0));
    }
    let inner = inner(&frames);
    for frame in &inner {
        assert_checksums(&frame.bytes);
    }
    let content = Content::of(&inner);
    let [stream] = content.streams.values().collect::<Vec<_>>()[..] else { panic!("not one stream:\n{content}") };
    assert!(stream.is_whole() && stream.bytes.len() == bytes, "{content}");
    assert!(stream.bytes.iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "bytes changed");
}

#[test]
fn tcp_is_clamped_and_unchanged() {
    for (ipv6, from_pod) in [(false, true), (false, false), (true, true), (true, false)] {
        let (scene, programs) = scene(&clamped());
        assert_clamped(&scene, &programs, ipv6, from_pod, if emulated() { 4 << 20 } else { 64 << 20 });
    }
}

/// As on kernels that cannot reduce `gso_size` of GSO packets with a frag list.
#[test]
fn gso_packets_can_be_linearized_first() {
    let (scene, programs) = scene(&Settings { linearize: true, ..clamped() });
    for from_pod in [true, false] {
        assert_clamped(&scene, &programs, false, from_pod, 4 << 20);
    }
}

/// With a path MTU below the MTU of the underlay's interface.
#[test]
fn tcp_is_clamped_to_a_smaller_path_mtu() {
    for (mtu, offloads) in [(1400, true), (1400, false), (1300, false), (1300, true)] {
        let settings = Settings { frame_limit: Some(frame_limit(mtu, false)), ..Settings::default() };
        let (scene, programs) = scene(&settings);
        if !offloads {
            scene.pod.as_on_the_wire("eth0");
            scene.client.as_on_the_wire("eth0");
        }
        let under = Capture::start(scene.remote.path(), "under0");
        transfer(&scene, false, true, 1 << 20);
        let frames = captured(&scene, under, 1 << 20, |frame| mirrored(frame).map_or(0, data));
        let longest = usize::try_from(mtu).expect("an MTU fits") + 14;
        assert_eq!(wire(&frames), (0, longest), "{mtu}, {offloads}: {:?}", programs.maps().counters(0));
        let content = Content::of(&inner(&frames));
        assert!(content.streams.values().all(Stream::is_whole), "{content}");
    }
}

/// Segments that do not exceed the truncated length stay unchanged, even in a GSO packet.
#[test]
fn short_segments_are_not_truncated() {
    for (bytes, whole) in [(1514, true), (4096, true), (65_535, true), (1513, false)] {
        let (scene, programs) = scene(&truncated(Truncate { bytes: Some(bytes), ..Truncate::default() }));
        let mirror = Capture::start(scene.remote.path(), "mirror0");
        transfer(&scene, false, true, 1 << 20);
        // A truncated segment is shorter than its header says, so its data does not count.
        let least = if whole { 1 << 20 } else { 21 };
        let frames = captured(&scene, mirror, least, |frame| if whole { data(&frame.bytes) } else { 1 });
        let content = Content::of(&frames);
        let counters = programs.maps().counters(0).expect("the counters are readable");
        let arrived = content.streams.values().any(|stream| stream.is_whole() && stream.bytes.len() == 1 << 20);
        let truncated = counters.egress.truncated.frames > 0;
        assert_eq!((arrived, truncated), (whole, !whole), "{bytes}: {counters:?}\n{content}");
        assert_eq!(counters.egress.failed.frames, 0);
    }
}

/// Without GSO, each full-size segment becomes two, with and without checksum offload.
#[test]
fn full_size_segments_are_segmented() {
    for (checksum, ipv6) in [("on", false), ("off", false), ("on", true), ("off", true)] {
        let (scene, programs) = scene(&clamped());
        for network in [&scene.pod, &scene.client] {
            network.as_on_the_wire("eth0");
            network.run(&format!("ethtool -K eth0 tx {checksum}"));
        }
        for from_pod in [true, false] {
            assert_clamped(&scene, &programs, ipv6, from_pod, 4 << 20);
        }
        let counters = programs.maps().counters(0).expect("the counters are readable");
        assert!(counters.egress.mirrored.frames > 2900, "{counters:?}");
    }
}

/// As the kernel segments: FIN and PSH are in the last segment only, CWR in the first one only, and the IPv4 ID counts up.
#[test]
fn segments_have_the_header_that_the_kernel_would_give_them() {
    const ALL_BUT_SYN_AND_RST: u8 = 0xf9;
    let (scene, _programs) = scene(&clamped());
    let mirror = Capture::start(scene.remote.path(), "mirror0");
    let mut frame: Vec<u8> =
        [[2; 12].to_vec(), vec![8, 0, 0x45, 0, 0x05, 0xdc, 0xff, 0xff, 0x40, 0, 64, 6, 0, 0]].concat();
    frame.extend([POD, CLIENT].concat());
    frame.extend([&[0x13, 0x88, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, ALL_BUT_SYN_AND_RST][..], &[1; 6]].concat());
    frame.extend((54..1514).map(pattern));
    let word = |sum: u32| u16::try_from(0xffff - (sum % 0xffff)).expect("16 bits").to_be_bytes();
    let sum = |bytes: &[u8]| bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let checksum = word(sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&checksum);
    frame[50..52].fill(0);
    let checksum = word(sum(&frame[26..34]) + 6 + 1480 + sum(&frame[34..]));
    frame[50..52].copy_from_slice(&checksum);
    assert_checksums(&frame);
    inject(&scene.pod, "eth0", &[frame.clone()]);
    let is_tcp = |frame: &Frame| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 6 && data(&frame.bytes) > 0;
    let frames = captured(&scene, mirror, 2, |frame| usize::from(is_tcp(frame)));
    let segments: Vec<Vec<u8>> = frames.into_iter().filter(is_tcp).map(|frame| frame.bytes).collect();
    for segment in &segments {
        assert_checksums(segment);
    }
    let header = |frame: &Vec<u8>| (u16::from_be_bytes([frame[18], frame[19]]), frame[47]);
    let headers: Vec<(u16, u8)> = segments.iter().map(header).collect();
    assert_eq!(headers, [(0xffff, 0xf0), (0, 0x79)]);
    let payload: Vec<u8> = segments.iter().flat_map(|frame| frame[54..].to_vec()).collect();
    assert_eq!(payload, frame[54..]);
}

/// Sends datagrams of these sizes from the pod. Returns the length of each mirrored frame, and the number of fragments on the underlay.
fn datagrams(scene: &Scene, sizes: &[usize]) -> (Vec<usize>, usize) {
    let (under, mirror) =
        (Capture::start(scene.remote.path(), "under0"), Capture::start(scene.remote.path(), "mirror0"));
    let socket = scene.pod.within(|| UdpSocket::bind(SocketAddr::from((POD, 0)))).expect("a socket can be created");
    for size in sizes {
        socket.send_to(&vec![7; *size], "10.88.0.2:9").expect("the datagram is sent");
    }
    let frames = captured(scene, mirror, sizes.len(), |frame| usize::from(is_udp(frame)));
    let udp = frames.iter().filter(|frame| is_udp(frame));
    (udp.map(|frame| frame.bytes.len()).collect(), wire(&under.stop()).0)
}

#[test]
fn long_datagrams_are_fragmented_or_truncated_and_counted() {
    for (oversize, lengths, fragments) in
        [(Oversize::Fragment, [142, 1464, 1465, 1514], 4), (Oversize::Truncate, [142, 1464, 1464, 1464], 0)]
    {
        let (scene, programs) =
            scene(&Settings { options: MirrorOptions { oversize, ..MirrorOptions::default() }, ..clamped() });
        assert_eq!(datagrams(&scene, &[100, 1422, 1423, 1472]), (lengths.to_vec(), fragments), "{oversize:?}");
        let counters = programs.maps().counters(0).expect("the counters are readable");
        let oversized = [counters.ingress, counters.egress].map(|direction| direction.oversized.frames);
        assert_eq!((oversized, counters.egress.failed.frames), ([0, 2], 0));
    }
}

#[test]
fn frames_are_truncated() {
    for (truncate, lengths) in [
        (Truncate { bytes: Some(64), ..Truncate::default() }, [60, 64, 64]),
        (Truncate { headers_only: true, ..Truncate::default() }, [42, 42, 42]),
    ] {
        let (scene, programs) = scene(&truncated(truncate));
        assert_eq!(datagrams(&scene, &[18, 500, 1472]), (lengths.to_vec(), 0), "{truncate:?}");
        let mirror = Capture::start(scene.remote.path(), "mirror0");
        transfer(&scene, false, true, 1 << 20);
        let is_tcp = |frame: &Frame| frame.bytes[23] == 6;
        let frames = captured(&scene, mirror, 21, |frame| usize::from(is_tcp(frame)));
        let tcp: Vec<_> = frames.into_iter().filter(is_tcp).collect();
        let headers = |frame: &Frame| 34 + usize::from(frame.bytes[46] >> 4) * 4;
        let expected = |frame: &Frame| match truncate {
            Truncate { headers_only: true, .. } => frame.bytes.len() == headers(frame),
            // The kernel keeps the headers that it needs for the checksum.
            Truncate { .. } => frame.bytes.len() <= 66,
        };
        let wrong = tcp.iter().find(|frame| !expected(frame));
        assert!(wrong.is_none() && tcp.len() > 20, "{wrong:?}");
        // The length in the header is that of the original frame.
        assert!(tcp.iter().any(|frame| u16::from_be_bytes([frame.bytes[16], frame.bytes[17]]) > 1000));
        let counters = programs.maps().counters(0).expect("the counters are readable");
        assert!(counters.egress.truncated.frames > 10 && counters.egress.failed.frames == 0, "{counters:?}");
    }
}
