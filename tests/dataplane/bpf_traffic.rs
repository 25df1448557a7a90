//! The programs on a real interface, under load.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use podtap_model::{Filter, Instruction, IpNet, Limit, Match, MirrorOptions, PortRange, Protocol, Sample};
use podtap_tests::{
    capture::{Capture, FrameDirection},
    net::traffic,
    pcap::{File, tcpdump, tshark},
    streams::segment,
    wait::until,
};
use tap_helper::bpf::{Maps, Programs, Settings};

use crate::{
    bpf_frames::{Chance, DISPLAY, Kinds, PCAP, compile, filter, frame},
    bpf_scene::{CLIENT, POD, Scene, compiled, filtering, inject, with},
};

/// Sends numbered datagrams from the client to the pod until `stop` is set; returns how many.
fn load(scene: &Scene, stop: &AtomicBool) -> u32 {
    let socket = scene.client.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket can be made");
    let _sink = scene.pod.within(|| UdpSocket::bind(SocketAddr::from((POD, 9)))).expect("a socket can be made");
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        socket.send_to(&number.to_be_bytes(), SocketAddr::from((POD, 9))).expect("it can be sent");
        number += 1;
        // In bursts, so that the capture and the load share the machine.
        if number.is_multiple_of(16) {
            thread::sleep(Duration::from_micros(200));
        }
    }
    number
}

/// Settings that select every datagram, each differently, and need the same programs.
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

/// Asserts that each number arrives once, and none that was not sent.
#[track_caller]
fn each_once(capture: Capture, sent: u32) {
    let numbers = |capture: &Capture| capture.count(|frame| frame.bytes.len() >= 46 && frame.bytes[23] == 17);
    until("all mirrored frames arrive", Duration::from_secs(10), || {
        let there = numbers(&capture);
        if there >= usize::try_from(sent).expect("it fits") { Ok(()) } else { Err(format!("{there} of {sent}")) }
    });
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    for frame in capture.stop().iter().filter(|frame| frame.bytes.len() >= 46 && frame.bytes[23] == 17) {
        *seen.entry(u32::from_be_bytes(*frame.bytes[42..].first_chunk().expect("four bytes"))).or_default() += 1;
    }
    let duplicates: Vec<_> = seen.iter().filter(|(_, times)| **times != 1).take(5).collect();
    assert!(duplicates.is_empty(), "{duplicates:?}");
    assert_eq!(seen.len(), usize::try_from(sent).expect("it fits"));
}

#[test]
fn a_change_leaves_no_gap_and_doubles_nothing() {
    let scene = Scene::with_cable();
    let variants = variants();
    let mut programs = Programs::load(&variants[0], None).expect("they load");
    scene.attach(&programs);
    let capture = Capture::start(scene.far.path(), "mirror0");
    let (stop, changes) = (AtomicBool::new(false), AtomicU32::new(0));
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| load(&scene, &stop));
        let start = Instant::now();
        for settings in variants.iter().cycle() {
            programs.maps_mut().configure(settings).expect("it is written");
            changes.fetch_add(1, Ordering::Relaxed);
            if start.elapsed() > Duration::from_secs(2) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("it sends")
    });
    println!("{} changes during {sent} frames", changes.load(Ordering::Relaxed));
    each_once(capture, sent);
}

#[test]
fn other_programs_leave_no_gap_and_double_nothing() {
    let scene = Scene::with_cable();
    let with = |k| compiled(vec![Instruction { code: 6, jt: 0, jf: 0, k }]);
    let mut programs = Programs::load(&with(1), None).expect("they load");
    scene.attach(&programs);
    let capture = Capture::start(scene.far.path(), "mirror0");
    let (stop, mut changes) = (AtomicBool::new(false), 0);
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| load(&scene, &stop));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            changes += 1;
            // The kernel frees the old ones when their filters have others.
            let code = if changes % 2 == 0 { 1 } else { u32::MAX };
            programs = Programs::load(&with(code), Some(programs.maps())).expect("they load");
            scene.attach(&programs);
        }
        stop.store(true, Ordering::Relaxed);
        sending.join().expect("it sends")
    });
    println!("{changes} changes during {sent} frames");
    each_once(capture, sent);
    // All of them have counted into the same maps.
    let seen = programs.maps().counters().expect("they can be read").ingress;
    assert!(seen.mirrored.frames >= sent.into() && seen.filtered.frames == 0, "{seen:?} of {sent}");
}

/// Frames and bytes that an interface has counted: received, sent.
fn interface(scene: &Scene) -> [(u64, u64); 2] {
    let links = scene.pod.json("ip -j -s link show dev eth0");
    let count = |side: &str| {
        let field = |name: &str| links[0]["stats64"][side][name].as_u64().expect("a number");
        (field("packets"), field("bytes"))
    };
    [count("rx"), count("tx")]
}

#[test]
fn the_outcomes_add_up_to_what_the_interface_saw() {
    let scene = Scene::with_cable();
    for network in [&scene.pod, &scene.client] {
        network.as_on_the_wire("eth0");
    }
    let udp = Match { protocol: Some(Protocol::Udp), ..Match::default() };
    let settings = with(MirrorOptions {
        filter: Some(Filter { exclude: vec![udp], ..Filter::default() }),
        sample: Some(Sample { one_in_flows: 2 }),
        limit: Some(Limit { bits_per_second: Some(2_000_000.into()), packets_per_second: None }),
        ..MirrorOptions::default()
    });
    let programs = Programs::load(&settings, None).expect("they load");
    scene.attach(&programs);
    let before = interface(&scene);
    for _ in 0..10 {
        traffic::tcp(&scene.client, &scene.pod, POD.into(), 300_000);
        traffic::tcp(&scene.pod, &scene.client, CLIENT.into(), 30_000);
        traffic::udp(&scene.client, &scene.pod, POD.into(), &[0, 100, 1472, 1473, 20_000]);
        traffic::ping(&scene.client, POD.into(), 56, 3);
    }
    // Everything has been answered, but the last segments of a connection may still be in flight.
    let counters = until("the counters add up to the interface's", Duration::from_secs(10), || {
        let (after, counters) = (interface(&scene), programs.maps().counters().expect("they can be read"));
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
    let scene = Scene::with_cable();
    let programs = Programs::load(&Settings::default(), None).expect("they load");
    scene.attach(&programs);
    // Retransmissions count, too.
    let capture = Capture::start(scene.pod.path(), "eth0");
    traffic::tcp(&scene.client, &scene.pod, POD.into(), 4_000_000);
    let frames = capture.stop();
    let entered =
        frames.iter().filter(|frame| frame.direction == FrameDirection::In).filter_map(|frame| segment(&frame.bytes));
    let entered = entered.map(|(_, _, data)| u64::try_from(data.len()).expect("a frame is short")).sum::<u64>();
    let links = scene.pod.json("ip -j -s link show dev eth0");
    let counters = programs.maps().counters().expect("they can be read");
    let shown = links[0]["stats64"]["rx"]["packets"].as_u64().expect("a number");
    let seen = counters.ingress.seen();
    println!("{} frames where the interface counts {shown}", seen.frames);
    // 4 MB in segments of 1448 bytes, with their headers, and acknowledgements of as much in the other direction.
    assert!(seen.frames >= 2763 && shown < 2763, "{seen:?} {shown}");
    let payload = seen.bytes - seen.frames * 66;
    // The first and the last frames, and selective acknowledgements, have longer headers.
    assert!(entered >= 4_000_000 && payload.abs_diff(entered) < 20_000, "{payload} of {entered}: {seen:?}");
}

#[test]
fn a_helper_that_starts_finds_what_runs() {
    let scene = Scene::with_cable();
    let settings = variants().remove(1);
    let programs = Programs::load(&settings, None).expect("they load");
    scene.attach(&programs);
    let ids = programs.ids().expect("they have numbers");
    traffic::udp(&scene.client, &scene.pod, POD.into(), &[10; 5]);
    // The helper ends; now only the filters refer to the programs.
    drop(programs);
    traffic::udp(&scene.client, &scene.pod, POD.into(), &[10; 7]);

    let mut maps = Maps::adopt(ids[0]).expect("it is found");
    let mirrored = |maps: &Maps| maps.counters().expect("they can be read").ingress.mirrored.frames;
    assert!(maps.is_configured(&settings));
    assert_eq!(mirrored(&maps), 12);
    let nothing = Match { protocol: Some(Protocol::Sctp), ..Match::default() };
    maps.configure(&filtering(vec![nothing], vec![])).expect("it is written");
    traffic::udp(&scene.client, &scene.pod, POD.into(), &[10; 3]);
    assert_eq!(mirrored(&maps), 12);

    // A program of the next helper, for a filter that has to be recreated.
    let again = Programs::load(&settings, Some(&maps)).expect("they load");
    scene.attach(&again);
    traffic::udp(&scene.client, &scene.pod, POD.into(), &[10; 3]);
    assert_eq!(mirrored(&maps), 15);
    let ids = again.ids().expect("they have numbers");
    drop((again, maps));
    // Nothing refers to them once the filters are deleted; the kernel frees them some time later.
    scene.pod.run("tc qdisc del dev eth0 clsact");
    until("they are gone", Duration::from_secs(5), || match Maps::adopt(ids[0]) {
        Err(_) => Ok(()),
        Ok(_) => Err("there".to_owned()),
    });
}

/// The number that a frame carries as its source address.
fn number(frame: &[u8]) -> usize {
    frame[8..12].iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Random frames, sent to the pod through a veth pair. The kernel strips tags on receipt, and nothing inserts them again.
#[test]
fn what_is_mirrored_is_what_readers_select() {
    let mut chance = Chance::new(6);
    let scene = Scene::with_cable();
    let mut programs = Programs::load(&Settings::default(), None).expect("they load");
    scene.attach(&programs);
    let (mut pairs, mut matched) = (0, 0);
    for round in 0..12 {
        // tshark for frames with tags and extension headers; tcpdump for short ones, even those too short for an IP header.
        let wrapped = round % 3 == 0;
        let kinds = Kinds { wrapped, short: !wrapped };
        let frames: Vec<_> = (0..200_u32)
            .map(|number| {
                let mut frame = frame(&mut chance, kinds);
                frame[8..12].copy_from_slice(&number.to_be_bytes());
                if kinds.short && chance.one_in(4) {
                    frame.truncate(14 + chance.below(21));
                }
                frame
            })
            .collect();
        let file = File::of(&frames);
        let filter = filter(&mut chance, kinds.short);
        let Filter { include, exclude, .. } = filter.clone();
        programs.maps_mut().configure(&filtering(include, exclude)).expect("it is written");
        let expected = if wrapped {
            tshark(file.path(), &DISPLAY.write(&filter, "src"))
        } else {
            tcpdump(file.path(), &PCAP.write(&filter, "src"))
        };
        let capture = Capture::start(scene.far.path(), "mirror0");
        let classified = || programs.maps().counters().expect("they can be read").ingress.seen().frames;
        let before = classified();
        inject(&scene.client, "eth0", &frames);
        let ours = || {
            let mut found: Vec<_> = capture
                .so_far()
                .iter()
                .filter(|frame| frame.bytes[6..8] == [2, 0])
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
        // The last of those frames may have been mirrored, and not captured, yet.
        thread::sleep(Duration::from_millis(50));
        assert_eq!(ours(), expected, "still");
        (pairs, matched) = (pairs + frames.len(), matched + expected.len());
    }
    println!("{matched} of {pairs} pairs match");
    assert!(matched * 20 > pairs && matched * 20 < pairs * 19);
}

#[test]
fn a_stripped_tag_is_seen_by_expressions() {
    let mut chance = Chance::new(7);
    let scene = Scene::with_cable();
    let frames: Vec<_> = (0..300_u32)
        .map(|number| {
            // Not short: the kernel drops frames with half a tag.
            let mut frame = frame(&mut chance, Kinds { wrapped: true, short: false });
            frame[8..12].copy_from_slice(&number.to_be_bytes());
            frame
        })
        .collect();
    let file = File::of(&frames);
    for expression in
        ["vlan 5", "vlan 6 and tcp", "ether[12:2] = 0x88a8 and vlan and vlan", "not vlan", "vlan and len > 70"]
    {
        let settings = compiled(compile(expression));
        let programs = Programs::load(&settings, None).expect("they load");
        scene.attach(&programs);
        let capture = Capture::start(scene.far.path(), "mirror0");
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
