//! Copies on an underlay with the MTU of the pod's interface.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use podtap_tests::{
    capture::{Capture, Frame},
    wait::until,
};
use tap_helper::bpf::{Oversize, Programs, Settings, Truncate, frame_limit};

use crate::bpf_scene::{POD, Scene};

const BYTES: usize = 64 << 20;

fn scene(settings: &Settings) -> (Scene, Programs) {
    let scene = Scene::with_tunnel(1500);
    let programs = Programs::load(settings, None).expect("they load");
    scene.attach_fit(&programs);
    scene.attach(&programs);
    (scene, programs)
}

fn fitted() -> Settings {
    Settings { frame_limit: Some(frame_limit(1500, false)), ..Settings::default() }
}

/// The byte at a place of the stream.
fn pattern(at: usize) -> u8 {
    let mixed = (at as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_le_bytes()[at % 8]
}

/// Sends from the pod, or to it, and reads all of it.
fn transfer(scene: &Scene, from_pod: bool, bytes: usize) {
    let listener = scene.pod.within(|| TcpListener::bind(SocketAddr::from((POD, 5000)))).expect("the port is free");
    let near = scene.client.within(|| TcpStream::connect(SocketAddr::from((POD, 5000)))).expect("it listens");
    let (far, _) = listener.accept().expect("it is connected");
    let (mut from, mut to) = if from_pod { (far, near) } else { (near, far) };
    thread::scope(|scope| {
        scope.spawn(move || {
            let data: Vec<u8> = (0..bytes).map(pattern).collect();
            from.write_all(&data).expect("the other end reads");
        });
        let mut buffer = vec![0; 1 << 20];
        while to.read(&mut buffer).expect("it can be read") > 0 {}
    });
}

/// Frames of IPv4 on the underlay that are in parts, and the longest frame.
fn wire(frames: &[Frame]) -> (usize, usize) {
    let ipv4 = frames.iter().filter(|frame| frame.bytes[12..14] == [8, 0]);
    let fragments = ipv4.filter(|frame| frame.bytes[20] & 0x3f != 0 || frame.bytes[21] != 0).count();
    (fragments, frames.iter().map(|frame| frame.bytes.len()).max().unwrap_or(0))
}

/// The stream from one end, put together by sequence numbers; nothing may be there twice with other bytes.
fn stream(frames: &[Frame], from_pod: bool) -> Vec<u8> {
    let (mut parts, mut first) = (BTreeMap::new(), None);
    for frame in frames {
        let bytes = &frame.bytes;
        let port = u16::from_be_bytes([bytes[34], bytes[35]]);
        if bytes[12..14] != [8, 0] || bytes[23] != 6 || (port == 5000) != from_pod {
            continue;
        }
        let sequence = u32::from_be_bytes(*bytes[38..].first_chunk().expect("a header"));
        if bytes[47] & 2 != 0 {
            first = Some(sequence.wrapping_add(1));
        }
        let end = 14 + usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        let start = 34 + usize::from(bytes[46] >> 4) * 4;
        // Ethernet pads what is short.
        parts.insert(sequence, bytes[start..end].to_vec());
    }
    let first = first.expect("the first segment is there");
    let mut whole = Vec::new();
    let mut parts: Vec<_> = parts.into_iter().map(|(at, part)| (at.wrapping_sub(first) as usize, part)).collect();
    parts.sort();
    for (at, part) in parts.into_iter().filter(|(_, part)| !part.is_empty()) {
        assert!(at <= whole.len(), "{} bytes are missing at {}", at - whole.len(), whole.len());
        let known = (whole.len() - at).min(part.len());
        assert!(whole[at..at + known] == part[..known], "other bytes at {at}");
        whole.extend_from_slice(&part[known..]);
    }
    whole
}

fn settle(capture: &Capture) {
    let mut before = usize::MAX;
    until("nothing more comes", Duration::from_secs(20), || {
        thread::sleep(Duration::from_millis(200));
        let now = capture.count(|_| true);
        let same = now == before;
        before = now;
        if same { Ok(()) } else { Err(now.to_string()) }
    });
}

#[test]
fn tcp_fits_the_wire_and_is_the_same() {
    for from_pod in [true, false] {
        let (scene, programs) = scene(&fitted());
        scene.far.run("ethtool -K copy0 gro off");
        let (under, copies) = (Capture::start(scene.far.path(), "under0"), Capture::start(scene.far.path(), "copy0"));
        transfer(&scene, from_pod, BYTES);
        settle(&copies);
        let (fragments, longest) = wire(&under.stop());
        let counters = programs.running().counters().expect("they can be read");
        println!("from the pod: {from_pod}; {fragments} fragments, longest frame {longest}; {counters:?}");
        // A full-size segment that is alone is no superframe. There are few, and each is counted.
        let alone = counters.oversized.frames;
        assert_eq!((fragments, longest), (2 * usize::try_from(alone).expect("they are few"), 1514));
        assert!(alone < 50 && counters.failed.frames == 0, "{alone} alone");
        let got = stream(&copies.stop(), from_pod);
        assert_eq!(got.len(), BYTES);
        assert!(got.iter().enumerate().all(|(at, byte)| *byte == pattern(at)), "bytes changed");
    }
}

/// Datagrams of these sizes from the pod, and what arrived of them: length of each copy.
fn datagrams(scene: &Scene, sizes: &[usize]) -> (Vec<usize>, usize) {
    let (under, copies) = (Capture::start(scene.far.path(), "under0"), Capture::start(scene.far.path(), "copy0"));
    let socket = scene.pod.within(|| UdpSocket::bind(SocketAddr::from((POD, 0)))).expect("a socket can be made");
    for size in sizes {
        socket.send_to(&vec![7; *size], "10.88.0.2:9").expect("it can be sent");
    }
    settle(&copies);
    let frames = copies.stop();
    let udp = frames.iter().filter(|frame| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 17);
    (udp.map(|frame| frame.bytes.len()).collect(), wire(&under.stop()).0)
}

#[test]
fn what_cannot_be_fitted_is_fragmented_or_cut_and_counted() {
    for (oversize, lengths, fragments) in
        [(Oversize::Fragment, [142, 1464, 1465, 1514], 4), (Oversize::Truncate, [142, 1464, 1464, 1464], 0)]
    {
        let (scene, programs) = scene(&Settings { oversize, ..fitted() });
        assert_eq!(datagrams(&scene, &[100, 1422, 1423, 1472]), (lengths.to_vec(), fragments), "{oversize:?}");
        let counters = programs.running().counters().expect("they can be read");
        assert_eq!((counters.oversized.frames, counters.failed.frames), (2, 0));
    }
}

#[test]
fn copies_are_cut() {
    for (truncate, lengths) in [(Truncate::Bytes(64), [60, 64, 64]), (Truncate::Headers, [42, 42, 42])] {
        let (scene, programs) = scene(&Settings { truncate: Some(truncate), ..fitted() });
        assert_eq!(datagrams(&scene, &[18, 500, 1472]), (lengths.to_vec(), 0), "{truncate:?}");
        let copies = Capture::start(scene.far.path(), "copy0");
        transfer(&scene, true, 1 << 20);
        settle(&copies);
        let tcp: Vec<_> = copies.stop().into_iter().filter(|frame| frame.bytes[23] == 6).collect();
        let headers = |frame: &Frame| 34 + usize::from(frame.bytes[46] >> 4) * 4;
        let wanted = |frame: &Frame| match truncate {
            Truncate::Headers => frame.bytes.len() == headers(frame),
            // The kernel keeps what it needs for a checksum: here less than that.
            Truncate::Bytes(_) => frame.bytes.len() <= 66,
        };
        let wrong = tcp.iter().find(|frame| !wanted(frame));
        assert!(wrong.is_none() && tcp.len() > 20, "{wrong:?}");
        // The length in the header is that of the whole.
        assert!(tcp.iter().any(|frame| u16::from_be_bytes([frame.bytes[16], frame.bytes[17]]) > 1000));
        let counters = programs.running().counters().expect("they can be read");
        assert!(counters.truncated.frames > 10 && counters.failed.frames == 0, "{counters:?}");
    }
}
