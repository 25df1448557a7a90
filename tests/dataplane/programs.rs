//! Mirror options, as the helper's programs implement them: installed, changed and adopted.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use podtap_model::{Direction, Filter, Instruction, Match, Program, ProgramId, Protocol};
use podtap_tests::{
    emulated,
    net::{Desired, Helper, Node, Pod, Sender, traffic},
    wait::until,
};
use serde_json::{Value, json};
use tap_helper::bpf::SENDERS;

use crate::scene::{Captures, Scene, TAP, VNI, desired, options, receiver, remote_endpoint, select_all, sender};

fn only(protocol: Protocol) -> Filter {
    Filter { include: vec![Match { protocol: Some(protocol), ..Match::default() }], ..Filter::default() }
}

fn request(scene: &Scene, change: impl FnOnce(&mut Sender)) -> Desired {
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    change(&mut sender);
    desired(vec![sender], vec![])
}

fn started(scene: &mut Scene, change: impl FnOnce(&mut Sender)) -> Captures {
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene.agent.establish(&request(scene, change));
    Captures::start(&scene.web, scene.remote.network(), "mirror0")
}

/// The number of times that a step was executed.
fn executed(scene: &Scene, step: &str) -> usize {
    scene.helper.log().matches(step).count()
}

fn counters(node: &Node) -> Value {
    let (status, output, error) = Helper::once(node, &["inspect"], "");
    assert!(status.success(), "{error}");
    let found: Value = serde_json::from_str(&output).expect("inspect prints JSON");
    assert_eq!(found[0]["drift"], Value::Array(vec![]));
    found[0]["devices"][0]["counters"].clone()
}

#[test]
fn a_filter_is_installed_and_changed() {
    let mut scene = Scene::new();
    let captures = started(&mut scene, |sender| sender.tap.options.filter = Some(only(Protocol::Udp)));
    let address = scene.web.addresses[0];
    traffic::ping(&scene.client, address, 200, 3);
    traffic::udp(&scene.client, scene.web.network(), address, &[300; 4]);
    let protocols =
        || -> Vec<u16> { captures.receiver.so_far().iter().map(|frame| u16::from(frame.bytes[23])).collect() };
    until("the datagrams arrive", Duration::from_secs(10), || {
        let found = protocols();
        if found.len() >= 4 && found.iter().all(|protocol| *protocol == 17) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    let programs = scene.web.network().programs("eth0");
    let all = scene.agent.establish(&request(&scene, |sender| sender.tap.options.filter = Some(only(Protocol::Icmp))));
    assert_eq!(all.features, [("ebpf".to_owned(), true)].into());
    assert_eq!(all.senders[0].degraded, Vec::<String>::new());
    assert_eq!((scene.web.network().programs("eth0"), executed(&scene, "Configure")), (programs, 1));
    traffic::udp(&scene.client, scene.web.network(), address, &[300; 4]);
    traffic::ping(&scene.client, address, 200, 3);
    until("the pings arrive", Duration::from_secs(10), || {
        let found = protocols();
        let pings = found.iter().filter(|protocol| **protocol == 1).count();
        if pings == 6 { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let counted = counters(&scene.node);
    let mirrored = |direction: &str| counted[direction]["mirrored"]["frames"].as_u64().expect("a number");
    assert_eq!(usize::try_from(mirrored("ingress") + mirrored("egress")), Ok(protocols().len()), "{counted:#}");
    assert!(counted["ingress"]["filtered"]["frames"].as_u64() >= Some(7), "{counted:#}");
}

#[test]
fn the_next_helper_keeps_programs_and_counters() {
    let mut scene = Scene::new();
    let with_options = |sender: &mut Sender| {
        sender.tap.options = options(json!({"truncate": {"bytes": 64}, "limit": {"bitsPerSecond": "1G"}}));
    };
    let _captures = started(&mut scene, with_options);
    traffic::ping(&scene.client, scene.web.addresses[0], 200, 3);
    let truncated = |scene: &Scene| counters(&scene.node)["egress"]["truncated"]["frames"].as_u64();
    let before = (scene.web.network().programs("eth0"), truncated(&scene));
    assert!(before.1 >= Some(3), "{before:?}");
    scene.helper.kill();
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.establish(&request(&scene, with_options));
    assert_eq!((scene.web.network().programs("eth0"), truncated(&scene)), before);
    assert_eq!(executed(&scene, "LoadPrograms"), 1);

    // Other programs replace them, and continue their counters.
    scene.agent.establish(&request(&scene, |sender| {
        with_options(sender);
        select_all(sender);
    }));
    assert_eq!(executed(&scene, "LoadPrograms"), 2);
    let after = scene.web.network().programs("eth0");
    assert!(after.len() == 2 && after.iter().all(|program| !before.0.contains(program)));
    assert!(truncated(&scene) >= before.1);
    // One that is removed by hand is loaded again, and shares the maps of the others.
    let vxlan = scene.web.network().vxlan_devices()[0].clone();
    scene.web.network().run(&format!("tc filter del dev {vxlan} egress"));
    until("the clamp is attached again", Duration::from_secs(10), || {
        let found = scene.web.network().programs(&vxlan).len();
        if found == 1 { Ok(()) } else { Err(format!("{found} programs")) }
    });
    assert_eq!(scene.web.network().programs("eth0"), after);
    counters(&scene.node);
}

#[test]
fn mirrored_frames_are_clamped_to_the_current_route() {
    let mut scene = Scene::with_underlay(1500);
    let _captures = started(&mut scene, |_| ());
    assert_eq!(executed(&scene, "frame_limit: Some(1464)"), 1);
    scene.node.network().run("ip route add 10.66.0.2/32 dev under0 mtu 1400");
    until("the limit follows the route", Duration::from_secs(10), || {
        if executed(&scene, "frame_limit: Some(1364)") == 1 { Ok(()) } else { Err(scene.helper.log()) }
    });
    assert_eq!((executed(&scene, "LoadPrograms"), executed(&scene, "Configure")), (1, 1));
}

/// The tokens that a higher limit left are worth nothing under a lower one.
#[test]
fn a_lowered_limit_holds_at_once() {
    let mut scene = Scene::new();
    let limited =
        |sender: &mut Sender, rate: u32| sender.tap.options = options(json!({"limit": {"packetsPerSecond": rate}}));
    let _captures = started(&mut scene, |sender| limited(sender, 1_000_000));
    let send = |scene: &Scene| traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[100; 2000]);
    send(&scene);
    let mirrored = |scene: &mut Scene, request: u64| -> u64 {
        let sender = scene.agent.counters(request).senders.remove(0);
        [sender.ingress, sender.egress].into_iter().flatten().map(|direction| direction.mirrored.frames).sum()
    };
    let before = mirrored(&mut scene, 1);
    assert!(before >= 4000, "{before} frames mirrored below the limit");
    let start = Instant::now();
    let lowered = request(&scene, |sender| limited(sender, 10));
    scene.agent.establish(&Desired { generation: 2, ..lowered });
    let before = mirrored(&mut scene, 2);
    send(&scene);
    let passed = mirrored(&mut scene, 3) - before;
    // Ten per second, and one in advance.
    let allowed = start.elapsed().as_secs() * 10 + 12;
    assert!(passed > 0 && passed <= allowed, "{passed} of 4000 frames, {allowed} allowed");
}

/// The programs of a pod's filters, with the class IDs that they get: an entry for each of both directions.
fn programs(pod: &Pod) -> Vec<(u64, String)> {
    let of = |hook: &str| {
        let filters = pod.network().json(&format!("tc -j filter show dev eth0 {hook}"));
        let options = filters.into_iter().map(|filter| filter["options"].clone());
        let ours = options.filter(|options| options["bpf_name"] == "podtap");
        ours.map(|options| {
            let class = options["flowid"].as_str().unwrap_or(":0").to_owned();
            (options["prog"]["id"].as_u64().expect("the program has an ID"), class)
        })
        .collect::<Vec<_>>()
    };
    [of("ingress"), of("egress")].concat()
}

/// The kernel verifies the programs of a tap once. Its senders differ by their class ID, and so do their counters and limits.
#[test]
fn the_senders_of_a_tap_share_programs() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    let limited = |pod: &Pod| {
        let mut sender = sender(TAP, pod, Direction::Both, &[remote_endpoint(VNI)]);
        sender.tap.options.limit = Some(serde_json::from_value(json!({"packetsPerSecond": 200})).expect("a limit"));
        sender
    };
    let request = desired(vec![limited(&scene.web), limited(&other)], vec![]);
    scene.agent.establish(&request);
    let (web, others) = (programs(&scene.web), programs(&other));
    assert_eq!(web.len(), 2);
    for (one, another) in web.iter().zip(&others) {
        assert_eq!(one.0, another.0, "one program");
        assert_ne!(one.1, another.1, "two class IDs");
    }
    // The limit of one pod is not used up by another.
    traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[100; 200]);
    traffic::ping(&scene.client, other.addresses[0], 56, 1);
    let dropped = |scene: &mut Scene, pod: &str| {
        let counters = scene.agent.counters(1).senders;
        let sender = counters.iter().find(|sender| *sender.pod_uid == *pod).expect("the pod is tapped");
        let both = [sender.ingress, sender.egress].into_iter().flatten();
        both.map(|direction| direction.rate_limited.frames).sum::<u64>()
    };
    let web_uid = scene.web.uid.clone();
    let lost = dropped(&mut scene, &web_uid);
    assert!(lost > 0 && dropped(&mut scene, &other.uid) == 0, "{lost}");

    // Other programs for one are other programs for all. Each continues its own counters.
    let mut compiled = Desired { generation: 2, ..request };
    for sender in &mut compiled.senders {
        let everything = Filter { expression: Some("less 262144".to_owned()), ..Filter::default() };
        sender.tap.options.filter = Some(everything);
        let instructions = vec![Instruction { code: 6, jt: 0, jf: 0, k: 262_144 }];
        sender.program = Some(Program { id: ProgramId::from_digest([7; 32]), instructions });
    }
    scene.agent.establish(&compiled);
    for (pod, before) in [(&scene.web, &web), (&other, &others)] {
        for (now, before) in programs(pod).iter().zip(before) {
            assert!(now.0 != before.0 && now.1 == before.1, "{now:?} after {before:?}");
        }
    }
    assert_eq!(programs(&scene.web)[0].0, programs(&other)[0].0);
    assert!(dropped(&mut scene, &web_uid) >= lost);
    let (web, others) = (programs(&scene.web), programs(&other));

    // A sender that takes the place of another one does not continue its counters.
    let next = Pod::start(&scene.node);
    compiled.senders[0].pod = next.model();
    compiled.generation = 3;
    scene.agent.establish(&compiled);
    assert_eq!(programs(&other), others);
    assert!(programs(&next).iter().all(|program| !web.contains(program) && !others.contains(program)));
    assert_eq!(programs(&next)[0].0, others[0].0, "still one program");
    assert_eq!(dropped(&mut scene, &next.uid), 0);
}

#[test]
fn a_tap_may_have_more_senders_than_a_program_set() {
    // So many pods take minutes there, and nothing of this depends on the kernel.
    if emulated() {
        return;
    }
    let mut scene = Scene::new();
    let pods: Vec<Pod> = (0..=SENDERS).map(|_| Pod::start(&scene.node)).collect();
    let tapped = |pod: &Pod| sender(TAP, pod, Direction::Ingress, &[remote_endpoint(VNI)]);
    scene.agent.establish(&desired(pods.iter().map(tapped).collect(), vec![]));
    let all: Vec<(u64, String)> = pods.iter().flat_map(programs).collect();
    let distinct: BTreeSet<&(u64, String)> = all.iter().collect();
    assert_eq!((all.len(), distinct.len()), (pods.len(), pods.len()));
    let programs: BTreeSet<u64> = all.iter().map(|(program, _)| *program).collect();
    assert_eq!(programs.len(), 2);
}
