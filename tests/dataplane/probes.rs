//! Probes: they take the path of mirrored frames, say which pods deliver, and no consumer sees them.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::Mark};
use podtap_model::{Direction, EtherType, FrameFormat, NodeStatus, Receiver};
use podtap_tests::{
    capture::{Capture, Frame, injector},
    net::{Desired, Helper, Network, traffic},
    wait::until,
};

use serde_json::Value;

use crate::scene::{
    Captures, PORT, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender, until_it_segments,
};

/// The EtherType of probes, unless another one is requested.
const ETHER_TYPE: u16 = 0x88b5;
/// The IP packet with the longest frame of a pod of MTU 1500, which fits the underlay.
const FULL_SIZE: usize = 1514 + 36;

/// A tap of `web` with probes, at one of the two nodes.
fn request(scene: &Scene) -> Desired {
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    sender.tap.probe = true;
    desired(vec![sender], vec![])
}

/// Establishes the tap and a receiver on the other node, and waits until its probes arrive there.
fn establish(scene: &mut Scene, receiver: Receiver) {
    scene.remote_agent.establish(&desired(vec![], vec![receiver]));
    let request = request(scene);
    scene.agent.establish(&request);
    until_probes(scene, "the probes arrive", &[&scene.web.uid.clone()], &[]);
}

/// Waits for a report of the receiving node.
#[track_caller]
fn until_probes(scene: &mut Scene, what: &str, pods: &[&str], without_full_size: &[&str]) -> NodeStatus {
    scene.remote_agent.until(what, |status| {
        let [receiver] = &status.receivers[..] else { return false };
        receiver.pods_with_probes == pods && receiver.pods_without_full_size_probes == without_full_size
    })
}

/// Whether a VXLAN packet of the underlay carries a probe, and the length of the IP packet.
fn probe_in(frame: &Frame, ether_type: u16) -> Option<usize> {
    // Ethernet, IPv4, UDP and VXLAN.
    let bytes = &frame.bytes;
    let is_vxlan = bytes.len() >= 64 && bytes[12..14] == [8, 0] && bytes[36..38] == PORT.to_be_bytes();
    (is_vxlan && bytes[62..64] == ether_type.to_be_bytes()).then(|| bytes.len() - 14)
}

fn is_probe(frame: &Frame) -> bool {
    frame.bytes[12..14] == ETHER_TYPE.to_be_bytes()
}

/// The lengths of the IP packets with probes in a capture.
fn probes(capture: &Capture) -> Vec<usize> {
    capture.so_far().iter().filter_map(|frame| probe_in(frame, ETHER_TYPE)).collect()
}

/// Consumers of an interface see the frames of the pod, and no probe.
fn assert_hidden(format: FrameFormat) {
    let mut scene = Scene::new();
    let underlay = Capture::start(scene.remote.network().path(), "under0");
    establish(&mut scene, Receiver { frame_format: format, ..receiver(TAP, VNI, "mirror0") });
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    let start = Instant::now();
    until("probes of both sizes arrive", Duration::from_secs(10), || {
        let lengths = probes(&underlay);
        let full_size = lengths.iter().filter(|length| **length == FULL_SIZE).count();
        if lengths.len() >= 5 && full_size >= 2 { Ok(()) } else { Err(format!("{lengths:?}")) }
    });
    assert!(start.elapsed() > Duration::from_secs(2), "there is at most one per second");
    let lengths = probes(&underlay);
    assert!(lengths.iter().all(|length| *length == FULL_SIZE || *length < 300), "{lengths:?}");
    // The frames of the pod are the same as ever, and there are no others.
    scene.traffic();
    captures.same(&scene, |_| true);
    assert!(underlay.so_far().iter().filter(|frame| probe_in(frame, ETHER_TYPE).is_some()).all(zero_padded));
}

/// The kernel pads a probe with zeroes, and not with what its memory held before.
fn zero_padded(frame: &Frame) -> bool {
    // Behind the outer headers and the Ethernet header, a probe has 168 bytes.
    frame.bytes[64 + 168..].iter().all(|byte| *byte == 0)
}

/// A path that carries less than the frames of pods gets no longer probes than it carries.
#[test]
fn fit_the_path() {
    const MTU: usize = 1400;
    let mut scene = Scene::with_underlay(u32::try_from(MTU).expect("it fits"));
    let underlay = Capture::start(scene.remote.network().path(), "under0");
    establish(&mut scene, receiver(TAP, VNI, "mirror0"));
    until("a full-size probe arrives", Duration::from_secs(10), || {
        if probes(&underlay).contains(&MTU) { Ok(()) } else { Err(format!("{:?}", probes(&underlay))) }
    });
    assert!(probes(&underlay).iter().all(|length| *length <= MTU));
}

#[test]
fn consumers_see_none() {
    assert_hidden(FrameFormat::Wire);
}

#[test]
fn consumers_of_raw_frames_see_none() {
    assert_hidden(FrameFormat::Raw);
}

/// `tshark` decodes a probe as what it is.
#[test]
fn are_vxlan_frames_with_the_ether_type_of_local_experiments() {
    let mut scene = Scene::new();
    establish(&mut scene, receiver(TAP, VNI, "mirror0"));
    let fields = "-T fields -e vxlan.vni -e eth.dst -e eth.type -e frame.len";
    let decode = format!("-d udp.port=={PORT},vxlan");
    let command = format!("tshark -i under0 -c 2 -a duration:8 {decode} -Y eth.type==0x88b5 {fields}");
    let printed = scene.remote.network().run(&command);
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split('\t').collect()).collect();
    assert!(!lines.is_empty(), "{printed}");
    for line in lines {
        assert_eq!(line[0], VNI.to_string());
        assert!(line[1].ends_with("01:80:c2:00:00:0e"), "{printed}");
        assert!(line[2].ends_with("0x88b5"), "{printed}");
    }
}

#[test]
fn arrive_at_a_receiver_on_the_pods_node() {
    let mut scene = Scene::new();
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]);
    sender.tap.probe = true;
    let request = desired(vec![sender], vec![receiver(TAP, VNI, "mirror0")]);
    scene.agent.request(&request);
    let uid = scene.web.uid.clone();
    scene.agent.until("probes of the pod arrive", |status| {
        status.receivers.first().is_some_and(|receiver| receiver.pods_with_probes == [uid.clone()])
    });
    // Those of full size, too, for longer than they may be missing.
    let underlay = Capture::start(scene.web.network().path(), &scene.web.network().vxlan_devices()[0]);
    until("probes are sent", Duration::from_secs(20), || match underlay.count(is_probe) {
        count if count >= 8 => Ok(()),
        count => Err(count.to_string()),
    });
    let longest = underlay.so_far().iter().filter(|frame| is_probe(frame)).map(|frame| frame.bytes.len()).max();
    assert_eq!(longest, Some(1514), "the longest that the pod sends");
    let now = scene.agent.establish(&Desired { generation: 2, ..request });
    assert_eq!(
        (&now.receivers[0].pods_with_probes, now.receivers[0].pods_without_full_size_probes.len()),
        (&vec![uid], 0)
    );
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn another_ether_type_is_possible() {
    const OTHER: u16 = 0x88b6;
    let mut scene = Scene::new();
    let probe_ether_type = Some(EtherType::try_from(OTHER).expect("an EtherType"));
    let at_receiver = Desired { probe_ether_type, ..desired(vec![], vec![receiver(TAP, VNI, "mirror0")]) };
    scene.remote_agent.establish(&at_receiver);
    let underlay = Capture::start(scene.remote.network().path(), "under0");
    let at_sender = Desired { probe_ether_type, ..request(&scene) };
    scene.agent.establish(&at_sender);
    let uid = scene.web.uid.clone();
    until_probes(&mut scene, "the probes arrive", &[&uid], &[]);
    assert!(underlay.so_far().iter().any(|frame| probe_in(frame, OTHER).is_some()));
    assert_eq!(probes(&underlay), [0; 0]);
    // What pods send with the default is now mirrored, and shown.
    let capture = Capture::start(scene.remote.network().path(), "mirror0");
    inject(scene.web.network(), "eth0", ETHER_TYPE);
    until("the pod's frame is mirrored", Duration::from_secs(5), || match capture.count(is_probe) {
        0 => Err("it is not"),
        _ => Ok(()),
    });
}

/// Sends a frame with an EtherType through an interface.
fn inject(network: &Network, interface: &str, ether_type: u16) {
    let mut socket = injector(network, interface);
    let mark = 0x7074_6170;
    setsockopt(&socket, Mark, &mark).expect("a test may set marks");
    let header = [&[1, 0x80, 0xc2, 0, 0, 0x0e, 2, 0, 0, 0, 0, 2][..], &ether_type.to_be_bytes()].concat();
    // A probe of version 1, as far as the pod can know it.
    let frame = [&header[..], &[1], &[b'F'; 199]].concat();
    let _ = socket.write(&[&[0; 10], &frame[..]].concat());
}

/// A pod's frames with the EtherType of probes are not mirrored, and what it sends to the device is dropped.
#[test]
fn a_pod_cannot_send_one() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    // No probes of the helper.
    let sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    scene.agent.establish(&desired(vec![sender], vec![]));
    let underlay = Capture::start(scene.remote.network().path(), "under0");
    let receiver = Capture::start(scene.remote.network().path(), "mirror0");
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    let sent = Capture::start(web.path(), "eth0");
    for interface in ["eth0", &vxlan] {
        for _ in 0..5 {
            inject(web, interface, ETHER_TYPE);
        }
    }
    until("the pod has sent them", Duration::from_secs(5), || match sent.count(is_probe) {
        5 => Ok(()),
        count => Err(count.to_string()),
    });
    // Mirrored after them.
    traffic::ping(&scene.client, scene.web.addresses[0], 1, 2);
    until("the pings are mirrored", Duration::from_secs(5), || match receiver.count(|frame| !is_probe(frame)) {
        count if count >= 4 => Ok(()),
        count => Err(count.to_string()),
    });
    assert_eq!((probes(&underlay), receiver.count(is_probe)), (vec![], 0));
    let counters = scene.agent.counters(1).senders.remove(0);
    assert_eq!(counters.forged.frames, 5);
    assert!(counters.egress.expect("egress is mirrored").filtered.frames >= 5);
}

/// Adds the chain `cut input` at the receiver, without rules yet: what they drop does not arrive.
fn add_cut(scene: &Scene) {
    scene.remote.network().run("nft add table inet cut");
    scene.remote.network().run("nft add chain inet cut input { type filter hook input priority -300 ; }");
}

/// Each part of the path that fails is noticed within five seconds, and again when it works.
#[test]
fn a_cut_is_noticed() {
    let mut scene = Scene::new();
    establish(&mut scene, receiver(TAP, VNI, "mirror0"));
    let uid = scene.web.uid.clone();
    add_cut(&scene);
    for (rule, pods, without_full_size) in [
        ("ip saddr 10.66.0.1 drop", &[][..], &[][..]),
        ("udp dport 14789 drop", &[], &[]),
        ("ip length > 1000 drop", &[&*uid], &[&*uid]),
    ] {
        scene.remote.network().run(&format!("nft add rule inet cut input {rule}"));
        let start = Instant::now();
        until_probes(&mut scene, rule, pods, without_full_size);
        println!("{rule}: noticed after {:?}", start.elapsed());
        scene.remote.network().run("nft flush chain inet cut input");
        until_probes(&mut scene, "the path works again", &[&uid], &[]);
    }
}

/// A helper that dies leaves in the kernel whose probes arrived; the next one adopts it, and reports it at once.
#[test]
fn the_next_helper_knows_whose_probes_arrived() {
    let mut scene = Scene::new();
    establish(&mut scene, receiver(TAP, VNI, "mirror0"));
    let uid = scene.web.uid.clone();
    scene.remote_helper.kill();
    scene.remote_helper = Helper::start(&scene.remote);
    scene.remote_agent = scene.remote_helper.agent();
    let status = scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    assert_eq!(status.receivers[0].pods_with_probes, [uid]);
}

/// Likewise, if it replaces the receiver's program, as after an upgrade: here because probes have another EtherType.
#[test]
fn the_next_helper_knows_whose_probes_arrived_at_the_program_that_it_replaces() {
    let mut scene = Scene::new();
    establish(&mut scene, receiver(TAP, VNI, "mirror0"));
    let uid = scene.web.uid.clone();
    scene.remote_helper.kill();
    let program = receive_program(&scene);
    scene.remote_helper = Helper::start(&scene.remote);
    scene.remote_agent = scene.remote_helper.agent();
    let probe_ether_type = Some(EtherType::try_from(0x88b6).expect("an EtherType"));
    let next = Desired { probe_ether_type, ..desired(vec![], vec![receiver(TAP, VNI, "mirror0")]) };
    let status = scene.remote_agent.establish(&next);
    assert_ne!(receive_program(&scene), program, "it is another program");
    assert_eq!(status.receivers[0].pods_with_probes, [uid]);
}

/// The ID of the program of the only receiver.
fn receive_program(scene: &Scene) -> Value {
    let network = scene.remote.network();
    let device = &network.vxlan_devices()[0];
    let filters = network.json(&format!("tc -j filter show dev {device} ingress"));
    let mut ids = filters.iter().filter_map(|filter| filter["options"].get("prog").map(|prog| prog["id"].clone()));
    ids.next_back().expect("a receiver has a program")
}

/// A mirror that has stopped at its deadline proves nothing.
#[test]
fn none_is_sent_after_the_deadline() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let request = Desired { orphan_timeout_seconds: Some(3), ..request(&scene) };
    scene.agent.establish(&request);
    let uid = scene.web.uid.clone();
    until_probes(&mut scene, "the probes arrive", &[&uid], &[]);
    until_probes(&mut scene, "no probe arrives any more", &[], &[]);
}

/// What does not arrive is counted, frame by frame, also for GSO packets, and across a restart of the receiving
/// helper.
#[test]
fn lost_frames_are_counted() {
    let mut scene = Scene::new().with_offloads();
    establish(&mut scene, receiver(TAP, VNI, "mirror0"));
    // While nobody reads, the device counts GSO packets.
    let reader = Capture::start(scene.remote.network().path(), "mirror0");
    until_it_segments(scene.remote.network(), "mirror0");
    scene.traffic();
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 3_000_000);
    let (arrived, lost) = settled(&mut scene);
    assert_eq!(lost, 0);
    // The device counts what was handed to consumers.
    let link = scene.remote.network().json("ip -j -s link show dev mirror0");
    let shown = link[0]["stats64"]["rx"]["packets"].as_u64().expect("a device counts packets");
    assert_eq!(shown, arrived);
    drop(reader);

    // One in ten of the mirrored IPv4 packets: the inner EtherType follows UDP, VXLAN and two addresses.
    let drop = "udp dport 14789 @th,224,16 0x0800 numgen inc mod 10 0 counter drop";
    add_cut(&scene);
    scene.remote.network().run(&format!("nft add rule inet cut input {drop}"));
    scene.traffic();
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 3_000_000);
    let dropped = dropped(&scene);
    assert!(dropped > 100, "{dropped}");
    assert_eq!(settled(&mut scene).1, dropped);

    scene.remote_helper.kill();
    scene.remote_helper = Helper::start(&scene.remote);
    scene.remote_agent = scene.remote_helper.agent();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    assert_eq!(settled(&mut scene).1, dropped, "after a restart");
}

/// An outage is not forgotten with the pods whose probes are missing meanwhile: the frames that were sent then are lost.
#[test]
fn frames_are_counted_as_lost_after_an_outage() {
    let mut scene = Scene::new().with_offloads();
    establish(&mut scene, receiver(TAP, VNI, "mirror0"));
    scene.traffic();
    assert_eq!(settled(&mut scene).1, 0);

    let underlay = Capture::start(scene.remote.network().path(), "under0");
    add_cut(&scene);
    scene.remote.network().run("nft add counter inet cut frames");
    // The inner EtherType follows UDP, VXLAN and two addresses.
    for rule in [format!("@th,224,16 {ETHER_TYPE} drop"), "counter name frames drop".to_owned()] {
        scene.remote.network().run(&format!("nft add rule inet cut input udp dport {PORT} {rule}"));
    }
    let (start, before) = (Instant::now(), probes(&underlay).len());
    scene.traffic();
    until_probes(&mut scene, "no probe arrives", &[], &[]);
    until("no probe arrives for more than ten seconds", Duration::from_secs(60), || {
        match probes(&underlay).len() - before {
            count if count >= 12 => Ok(()),
            count => Err(count.to_string()),
        }
    });
    assert!(start.elapsed() > Duration::from_secs(10), "there is at most one per second");
    scene.traffic();
    scene.remote.network().run("nft flush chain inet cut input");
    let dropped = dropped(&scene);
    assert!(dropped > 100, "{dropped}");

    // Frames that arrive after it do not hide those that did not.
    let uid = scene.web.uid.clone();
    until_probes(&mut scene, "the path works again", &[&uid], &[]);
    scene.traffic();
    assert_eq!(settled(&mut scene).1, dropped);
}

/// The packets that the only counter has counted.
fn dropped(scene: &Scene) -> u64 {
    let listed = scene.remote.network().run("nft list table inet cut");
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().and_then(|count| count.parse().ok()).expect("the rule counts packets")
}

/// What the receiver has counted, arrived and lost, once that stays the same for longer than the interval of probes.
fn settled(scene: &mut Scene) -> (u64, u64) {
    let underlay = Capture::start(scene.remote.network().path(), "under0");
    let mut number = 1;
    let mut read = |scene: &mut Scene| {
        number += 1;
        let receivers = scene.remote_agent.counters(number).receivers;
        receivers.first().map(|receiver| (receiver.frames, receiver.lost_frames))
    };
    let mut last = (read(scene), 0);
    loop {
        let end = probes(&underlay).len() + 3;
        until("probes arrive", Duration::from_secs(20), || match probes(&underlay).len() {
            count if count >= end => Ok(()),
            count => Err(count.to_string()),
        });
        match (read(scene), last) {
            (Some(now), (Some(before), _)) if now == before => return now,
            (_, (_, 10)) => panic!("the counters never settle"),
            (now, (_, times)) => last = (now, times + 1),
        }
    }
}

/// What someone does to a receiver by hand is repaired before the controller would know of it, also if a device with another VNI takes
/// its place.
#[test]
fn a_receiver_that_was_changed_by_hand_gets_probes_again() {
    let mut scene = Scene::new();
    establish(&mut scene, receiver(TAP, VNI, "mirror0"));
    let uid = scene.web.uid.clone();
    let vxlan = scene.remote.network().vxlan_devices()[0].clone();
    let another = format!("link del {vxlan}\nlink add other0 up type vxlan id 99 dstport {PORT} nolearning\n");
    for (generation, command) in
        (2..).zip([format!("link set {vxlan} down\n"), "link set mirror0 down\n".to_owned(), another])
    {
        scene.remote.network().ip(&command);
        let underlay = Capture::start(scene.remote.network().path(), "under0");
        let start = Instant::now();
        until("two more probes arrive at the node", Duration::from_secs(10), || match probes(&underlay).len() {
            count if count >= 2 => Ok(()),
            count => Err(count.to_string()),
        });
        println!("{command}: waited for {:?}", start.elapsed());
        let request = desired(vec![], vec![receiver(TAP, VNI, "mirror0")]);
        let status = scene.remote_agent.establish(&Desired { generation, ..request });
        assert_eq!(status.receivers[0].pods_with_probes, std::slice::from_ref(&uid));
        let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
}
