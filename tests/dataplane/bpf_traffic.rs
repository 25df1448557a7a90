//! The programs on an interface with real traffic.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use podtap_model::{Filter, Instruction, IpNet, Limit, Match, MirrorOptions, PortRange, Protocol, Sample};
use podtap_tests::{
    capture::{Capture, Frame, FrameDirection},
    net::traffic,
    pcap::{File, tcpdump, tshark},
    streams::segment,
    wait::until,
};
use tap_helper::bpf::{Maps, Settings};

use crate::{
    bpf_frames::{DISPLAY, Kinds, PCAP, Random, compile, filter, frame},
    bpf_scene::{CLIENT, POD, Scene, compiled, filtering, inject, loaded, with},
};

/// Sends numbered datagrams from the client to the pod until `stop` is set. Returns how many.
fn load(scene: &Scene, stop: &AtomicBool) -> u32 {
    let socket = scene.client.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket can be created");
    let _sink = scene.pod.within(|| UdpSocket::bind(SocketAddr::from((POD, 9)))).expect("a socket can be created");
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        socket.send_to(&number.to_be_bytes(), SocketAddr::from((POD, 9))).expect("the datagram is sent");
        number += 1;
        // Sent in bursts, to leave time for the capture.
        if number.is_multiple_of(16) {
            thread::sleep(Duration::from_micros(200));
        }
    }
    number
}

/// Different settings that all mirror every datagram and need the same programs.
fn variants() -> Vec<Settings> {
    let udp = Match { protocol: Some(Protocol::Udp), ..Match::default() };
    let network = IpNet::new(CLIENT.into(), 24).expect("a prefix");
    let range = |port| PortRange { port, end_port: None };
    let from = Match { cidrs: vec![network], ports: vec![range(9)], ..Match::default() };
    let tcp = Match { protocol: Some(Protocol::Tcp), ports: (0..60).map(range).collect(), ..Match::default() };
    vec![
        Settings::default(),
        filtering(vec![udp], vec![]),
        filtering(vec![from], vec![tcp.clone()]),
        filtering(vec![], vec![tcp]),
    ]
}

/// Asserts that every datagram was mirrored exactly once.
#[track_caller]
fn assert_each_once(capture: Capture, sent: u32) {
    let numbers = |capture: &Capture| capture.count(|frame| frame.bytes.len() >= 46 && frame.bytes[23] == 17);
    until("all datagrams are mirrored", Duration::from_secs(10), || {
        let count = numbers(&capture);
        if count >= usize::try_from(sent).expect("the count fits") { Ok(()) } else { Err(format!("{count} of {sent}")) }
    });
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    for frame in capture.stop().iter().filter(|frame| frame.bytes.len() >= 46 && frame.bytes[23] == 17) {
        *seen.entry(u32::from_be_bytes(*frame.bytes[42..].first_chunk().expect("four bytes"))).or_default() += 1;
    }
    let duplicates: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).take(5).collect();
    assert!(duplicates.is_empty(), "{duplicates:?}");
    assert_eq!(seen.len(), usize::try_from(sent).expect("the count fits"));
}

#[test]
fn changing_settings_loses_and_duplicates_no_frame() {
    let scene = Scene::with_veth();
    let variants = variants();
    let mut programs = loaded(&variants[0], None).expect("the programs load");
    scene.attach(&programs);
    let capture = Capture::start(scene.remote.path(), "mirror0");
    let (stop, changes) = (AtomicBool::new(false), AtomicU32::new(0));
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| load(&scene, &stop));
        let start = Instant::now();
        for settings in variants.iter().cycle() {
            programs.maps_mut().configure(settings).expect("the maps are written");
            changes.fetch_add(1, Ordering::Relaxed);
            if start.elapsed() > Duration::from_secs(2) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("the sender does not panic")
    });
    println!("{} changes during {sent} frames", changes.load(Ordering::Relaxed));
    assert_each_once(capture, sent);
}

#[test]
fn replacing_programs_loses_and_duplicates_no_frame() {
    let scene = Scene::with_veth();
    let with = |k| compiled(vec![Instruction { code: 6, jt: 0, jf: 0, k }]);
    let mut programs = loaded(&with(1), None).expect("the programs load");
    scene.attach(&programs);
    let capture = Capture::start(scene.remote.path(), "mirror0");
    let (stop, mut changes) = (AtomicBool::new(false), 0);
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| load(&scene, &stop));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            changes += 1;
            // The kernel frees the old programs when their filters have new ones.
            let code = if changes % 2 == 0 { 1 } else { u32::MAX };
            programs = loaded(&with(code), Some(programs.maps())).expect("the programs load");
            scene.attach(&programs);
        }
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("the sender does not panic")
    });
    println!("{changes} changes during {sent} frames");
    assert_each_once(capture, sent);
    // All programs share one set of counters.
    let seen = programs.maps().counters(0).expect("the counters are readable").ingress;
    assert!(seen.mirrored.frames >= sent.into() && seen.filtered.frames == 0, "{seen:?} of {sent}");
}

/// Frames and bytes that the pod's interface counted: received, sent.
fn interface(scene: &Scene) -> [(u64, u64); 2] {
    let links = scene.pod.json("ip -j -s link show dev eth0");
    let count = |direction: &str| {
        let field = |name: &str| links[0]["stats64"][direction][name].as_u64().expect("a number");
        (field("packets"), field("bytes"))
    };
    [count("rx"), count("tx")]
}

#[test]
fn counters_add_up_to_those_of_the_interface() {
    let scene = Scene::with_veth();
    for network in [&scene.pod, &scene.client] {
        network.as_on_the_wire("eth0");
    }
    let udp = Match { protocol: Some(Protocol::Udp), ..Match::default() };
    let settings = with(MirrorOptions {
        filter: Some(Filter { exclude: vec![udp], ..Filter::default() }),
        sample: Some(Sample { one_in_flows: 2 }),
        limit: Some(Limit { bits_per_second: Some(2_000_000.into()), ..Limit::default() }),
        ..MirrorOptions::default()
    });
    let programs = loaded(&settings, None).expect("the programs load");
    scene.attach(&programs);
    let before = interface(&scene);
    for _ in 0..10 {
        traffic::tcp(&scene.client, &scene.pod, POD.into(), 300_000);
        traffic::tcp(&scene.pod, &scene.client, CLIENT.into(), 30_000);
        traffic::udp(&scene.client, &scene.pod, POD.into(), &[0, 100, 1472, 1473, 20_000]);
        traffic::ping(&scene.client, POD.into(), 56, 3);
    }
    // The last segments of a connection may still be in flight.
    let counters = until("the counters add up to the interface's", Duration::from_secs(10), || {
        let (after, counters) = (interface(&scene), programs.maps().counters(0).expect("the counters are readable"));
        let shown: [_; 2] = std::array::from_fn(|at| (after[at].0 - before[at].0, after[at].1 - before[at].1));
        let counted =
            [counters.ingress, counters.egress].map(|direction| (direction.seen().frames, direction.seen().bytes));
        if shown == counted { Ok(counters) } else { Err(format!("{shown:?} at the interface, {counted:?} counted")) }
    });
    for direction in [counters.ingress, counters.egress] {
        println!("{direction:?}");
        for part in [direction.mirrored, direction.filtered, direction.sampled_out, direction.rate_limited] {
            assert!(part.frames > 0 && part.bytes > 0, "{direction:?}");
        }
    }
}

#[test]
fn a_gso_packet_counts_as_its_segments() {
    let scene = Scene::with_veth();
    let programs = loaded(&Settings::default(), None).expect("the programs load");
    scene.attach(&programs);
    // Retransmissions count again, so the expected bytes come from a capture.
    let capture = Capture::start(scene.pod.path(), "eth0");
    traffic::tcp(&scene.client, &scene.pod, POD.into(), 4_000_000);
    let frames = capture.stop();
    let entered =
        frames.iter().filter(|frame| frame.direction == FrameDirection::In).filter_map(|frame| segment(&frame.bytes));
    let entered = entered.map(|(_, _, data)| u64::try_from(data.len()).expect("a frame is short")).sum::<u64>();
    let links = scene.pod.json("ip -j -s link show dev eth0");
    let counters = programs.maps().counters(0).expect("the counters are readable");
    let shown = links[0]["stats64"]["rx"]["packets"].as_u64().expect("a number");
    let seen = counters.ingress.seen();
    println!("{} frames; the interface counts {shown}", seen.frames);
    // 4 MB in segments of 1448 bytes with headers.
    assert!(seen.frames >= 2763 && shown < 2763, "{seen:?} {shown}");
    let payload = seen.bytes - seen.frames * 66;
    // Some headers have another length: of the first and last frames, and of selective acknowledgements.
    assert!(entered >= 4_000_000 && payload.abs_diff(entered) < 20_000, "{payload} of {entered}: {seen:?}");
}

#[test]
fn the_maps_of_a_running_program_can_be_adopted() {
    let scene = Scene::with_veth();
    let settings = variants().remove(1);
    let programs = loaded(&settings, None).expect("the programs load");
    scene.attach(&programs);
    let ids = programs.ids().expect("the programs have IDs");
    traffic::udp(&scene.client, &scene.pod, POD.into(), &[10; 5]);
    // Only the filters reference the programs now.
    drop(programs);
    traffic::udp(&scene.client, &scene.pod, POD.into(), &[10; 7]);

    let mut maps = Maps::adopt(ids[0]).expect("the program is adopted");
    let mirrored = |maps: &Maps| maps.counters(0).expect("the counters are readable").ingress.mirrored.frames;
    assert!(maps.is_configured(&settings));
    assert_eq!(mirrored(&maps), 12);
    let sctp = Match { protocol: Some(Protocol::Sctp), ..Match::default() };
    maps.configure(&filtering(vec![sctp], vec![])).expect("the maps are written");
    traffic::udp(&scene.client, &scene.pod, POD.into(), &[10; 3]);
    assert_eq!(mirrored(&maps), 12);

    // Programs that continue with the adopted maps.
    let continued = loaded(&settings, Some(&maps)).expect("the programs load");
    scene.attach(&continued);
    traffic::udp(&scene.client, &scene.pod, POD.into(), &[10; 3]);
    assert_eq!(mirrored(&maps), 15);
    let ids = continued.ids().expect("the programs have IDs");
    drop((continued, maps));
    // Without filters nothing references the programs, and the kernel frees them after a while.
    scene.pod.run("tc qdisc del dev eth0 clsact");
    until("the programs are freed", Duration::from_secs(5), || match Maps::adopt(ids[0]) {
        Err(_) => Ok(()),
        Ok(_) => Err("the program still exists".to_owned()),
    });
}

/// The number that a frame carries as its source address.
fn number(frame: &[u8]) -> usize {
    frame[8..12].iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// A frame to the receiver of another one, which no other frame resembles.
fn last(frame: &[u8]) -> Vec<u8> {
    // An EtherType for local experiments (IEEE 802).
    [&frame[..6], &[2, 0, 255, 255, 255, 255], &[0x88, 0xb6], &[0; 46]].concat()
}

fn is_last(frame: &Frame) -> bool {
    frame.bytes[6..14] == [2, 0, 255, 255, 255, 255, 0x88, 0xb6]
}

/// Random frames, sent to the pod. The kernel strips their VLAN tags on receive, and mirroring does not restore them.
#[test]
fn filters_mirror_the_frames_that_tcpdump_and_tshark_select() {
    let mut random = Random::new(6);
    let scene = Scene::with_veth();
    let mut programs = loaded(&Settings::default(), None).expect("the programs load");
    scene.attach(&programs);
    let (mut pairs, mut matched) = (0, 0);
    for round in 0..12 {
        // tshark for frames with tags and extension headers; tcpdump for truncated frames, even without a whole IP header.
        let encapsulated = round % 3 == 0;
        let kinds = Kinds { encapsulated, truncated: !encapsulated };
        let frames: Vec<_> = (0..200_u32)
            .map(|number| {
                let mut frame = frame(&mut random, kinds);
                frame[8..12].copy_from_slice(&number.to_be_bytes());
                if kinds.truncated && random.one_in(4) {
                    frame.truncate(14 + random.below(21));
                }
                frame
            })
            .collect();
        let file = File::of(&frames);
        let filter = filter(&mut random, kinds.truncated);
        let Filter { include, exclude, .. } = filter.clone();
        programs.maps_mut().configure(&filtering(include, exclude)).expect("the maps are written");
        let expected = if encapsulated {
            tshark(file.path(), &DISPLAY.write(&filter, "src"))
        } else {
            tcpdump(file.path(), &PCAP.write(&filter, "src"))
        };
        let capture = Capture::start(scene.remote.path(), "mirror0");
        let classified = || programs.maps().counters(0).expect("the counters are readable").ingress.seen().frames;
        let before = classified();
        inject(&scene.client, "eth0", &frames);
        let ours = || {
            let mut found: Vec<_> = capture
                .so_far()
                .iter()
                .filter(|frame| frame.bytes[6..8] == [2, 0] && !is_last(frame))
                .map(|frame| number(&frame.bytes))
                .collect();
            found.sort_unstable();
            found
        };
        until(&format!("{filter:?} selects them"), Duration::from_secs(5), || {
            let (done, found) = (classified() - before, ours());
            let all = usize::try_from(done).is_ok_and(|done| done >= frames.len());
            if all && found == expected {
                Ok(())
            } else {
                Err(format!("{done} classified; {found:?}, not {expected:?}"))
            }
        });
        // A frame may have been mirrored but not captured yet: one that is mirrored in any case follows it.
        programs.maps_mut().configure(&Settings::default()).expect("the maps are written");
        inject(&scene.client, "eth0", &[last(&frames[0])]);
        until("the last frame is mirrored", Duration::from_secs(5), || {
            if capture.count(is_last) == 1 { Ok(()) } else { Err("not yet") }
        });
        assert_eq!(ours(), expected, "unchanged");
        (pairs, matched) = (pairs + frames.len(), matched + expected.len());
    }
    println!("{matched} of {pairs} pairs match");
    assert!(matched * 20 > pairs && matched * 20 < pairs * 19);
}

#[test]
fn expressions_see_a_stripped_tag() {
    let mut random = Random::new(7);
    let scene = Scene::with_veth();
    let frames: Vec<_> = (0..300_u32)
        .map(|number| {
            // Not truncated: the kernel drops frames with an incomplete tag.
            let mut frame = frame(&mut random, Kinds { encapsulated: true, truncated: false });
            frame[8..12].copy_from_slice(&number.to_be_bytes());
            frame
        })
        .collect();
    let file = File::of(&frames);
    for expression in
        ["vlan 5", "vlan 6 and tcp", "ether[12:2] = 0x88a8 and vlan and vlan", "not vlan", "vlan and len > 70"]
    {
        let settings = compiled(compile(expression));
        let programs = loaded(&settings, None).expect("the programs load");
        scene.attach(&programs);
        let capture = Capture::start(scene.remote.path(), "mirror0");
        inject(&scene.client, "eth0", &frames);
        let expected = tcpdump(file.path(), expression);
        assert!(!expected.is_empty(), "{expression}");
        until(expression, Duration::from_secs(5), || {
            let found = capture.so_far();
            let mut found: Vec<_> =
                found.iter().filter(|frame| frame.bytes[6..8] == [2, 0]).map(|frame| number(&frame.bytes)).collect();
            found.sort_unstable();
            if found == expected { Ok(()) } else { Err(format!("{found:?}, not {expected:?}")) }
        });
    }
}
