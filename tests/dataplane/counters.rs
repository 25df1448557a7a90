//! The counters that the helper reports to the agent.

use std::time::Duration;

use podtap_model::{Count, Deduplicate, Direction, DirectionCounters, Request, Response, SenderCounters};
use podtap_tests::{
    net::{Desired, Helper, Network, Pod, Sender, traffic},
    wait::until,
};
use serde_json::json;

use crate::scene::{Scene, TAP, VNI, desired, far_endpoint, options, receiver, sender};

fn requested(scene: &Scene, change: impl FnOnce(&mut Sender)) -> Desired {
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)]);
    change(&mut sender);
    desired(vec![sender], vec![])
}

fn with_options(sender: &mut Sender) {
    sender.tap.options = options(json!({
        "filter": {"exclude": [{"protocol": "UDP"}]},
        "sample": {"oneInFlows": 2},
        "limit": {"bitsPerSecond": "8M"},
        "truncate": {"bytes": 64},
    }));
}

/// The counters of the only sender.
#[track_caller]
fn counted(scene: &mut Scene, request: u64) -> SenderCounters {
    let mut answer = scene.agent.counters(request);
    assert_eq!(answer.senders.len(), 1, "{answer:?}");
    let sender = answer.senders.remove(0);
    assert_eq!((&*sender.tap_uid, &*sender.pod_uid, &*sender.interface), (TAP, &*scene.web.uid, "eth0"));
    sender
}

fn outcomes(direction: &DirectionCounters) -> Vec<Count> {
    let DirectionCounters { mirrored, filtered, sampled_out, rate_limited, deduplicated, failed: _ } = *direction;
    [Some(mirrored), filtered, sampled_out, rate_limited, deduplicated].into_iter().flatten().collect()
}

/// Frames and bytes of a direction.
fn seen(direction: Option<DirectionCounters>) -> (u64, u64) {
    let all = outcomes(&direction.expect("it is mirrored"));
    (all.iter().map(|count| count.frames).sum(), all.iter().map(|count| count.bytes).sum())
}

/// Frames and bytes that an interface has counted: received, sent.
fn interface(network: &Network) -> [(u64, u64); 2] {
    let links = network.json("ip -j -s link show dev eth0");
    let field = |side: &str, name: &str| links[0]["stats64"][side][name].as_u64().expect("a number");
    ["rx", "tx"].map(|side| (field(side, "packets"), field(side, "bytes")))
}

fn both_ways(scene: &Scene) {
    let web = scene.web.network();
    for address in &scene.web.addresses {
        traffic::tcp(&scene.client, web, *address, 100_000);
        traffic::udp(&scene.client, web, *address, &[0, 100, 1452]);
        traffic::ping(&scene.client, *address, 56, 3);
    }
    for address in scene.client_addresses() {
        traffic::tcp(web, &scene.client, address, 20_000);
    }
}

/// Reads the interface and the counters until no frame passes in between, so that both have counted the same since `before` in each
/// direction.
#[track_caller]
fn equal(scene: &mut Scene, request: u64, before: [(u64, u64); 2], zero: &SenderCounters) -> SenderCounters {
    until("the outcomes add up to what the interface saw", Duration::from_secs(10), || {
        let now = interface(scene.web.network());
        let counted = counted(scene, request);
        let since = |(now, before): ((u64, u64), (u64, u64))| (now.0 - before.0, now.1 - before.1);
        let shown = [since((now[0], before[0])), since((now[1], before[1]))];
        let sums =
            [since((seen(counted.ingress), seen(zero.ingress))), since((seen(counted.egress), seen(zero.egress)))];
        if shown == sums { Ok(counted) } else { Err(format!("{shown:?} at the interface, {sums:?} counted")) }
    })
}

fn never_less(one: &SenderCounters, other: &SenderCounters) -> bool {
    let all = |sender: &SenderCounters| -> Vec<Count> {
        let directions = [sender.ingress, sender.egress].into_iter().flatten();
        let others = [sender.truncated, sender.oversized].into_iter().flatten();
        directions.flat_map(|direction| outcomes(&direction)).chain(others).collect()
    };
    let (one, other) = (all(one), all(other));
    one.len() == 12 && one.iter().zip(&other).all(|(a, b)| a.frames <= b.frames && a.bytes <= b.bytes)
}

#[test]
fn outcomes_add_up_to_the_interface_also_after_a_restart() {
    let mut scene = Scene::new();
    scene.far_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene.agent.establish(&requested(&scene, with_options));
    let zero = counted(&mut scene, 1);
    let before = interface(scene.web.network());
    assert!(zero.ebpf);

    both_ways(&scene);
    let first = equal(&mut scene, 2, before, &zero);
    for direction in [first.ingress, first.egress].into_iter().flatten() {
        assert_eq!(outcomes(&direction).len(), 5);
        assert!(
            direction.mirrored.frames > 0 && direction.filtered.is_some_and(|count| count.frames >= 6),
            "{first:?}"
        );
        assert_eq!(direction.failed, 0, "{first:?}");
    }
    assert!(first.truncated.is_some_and(|count| count.frames > 0 && count.bytes > 0), "{first:?}");

    scene.helper.kill();
    both_ways(&scene);
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.establish(&requested(&scene, with_options));
    let second = equal(&mut scene, 3, before, &zero);
    assert!(never_less(&first, &second) && first != second, "{first:?}\n{second:?}");
    // With other options, whether by the same programs or by others, the counters continue.
    scene.agent.establish(&requested(&scene, |sender| {
        with_options(sender);
        sender.tap.options.deduplicate = Some(Deduplicate { pod_cidrs: Some(vec![]), service_cidrs: Some(vec![]) });
    }));
    both_ways(&scene);
    let third = equal(&mut scene, 4, before, &zero);
    assert!(never_less(&second, &third), "{second:?}\n{third:?}");
}

#[test]
fn a_request_for_counters_disturbs_no_update_and_no_report() {
    let mut scene = Scene::new();
    // No desired state has been sent yet, and no sender exists.
    assert_eq!(scene.agent.counters(1).senders, []);
    // In one write: the counters include the sender that the update creates.
    let line = |message: Request| serde_json::to_string(&message).expect("it can be written") + "\n";
    let order = line(Request::Apply(requested(&scene, |_| ()).update()));
    let both = order + &line(Request::Counters(2)) + &line(Request::Counters(3));
    scene.agent.send_bytes(both.as_bytes()).expect("it is taken");
    let report = scene.agent.receive().expect("a report");
    assert!(matches!(report, Response::Report(_)), "{report:?}");
    let answer = scene.agent.receive().expect("counters");
    let Response::Counters(answer) = answer else { panic!("{answer:?}") };
    assert_eq!((answer.request, answer.senders.len()), (3, 1), "the newest request");
    counted(&mut scene, 4);
    assert!(!scene.agent.has_message(), "no superfluous report");
}

/// Only one direction, two taps on a pod, two pods: each sender has its own.
#[test]
fn each_sender_has_its_own() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    let senders = vec![
        sender("tap-a", &scene.web, Direction::Ingress, &[far_endpoint(5001)]),
        sender("tap-b", &scene.web, Direction::Egress, &[far_endpoint(5002)]),
        sender("tap-b", &other, Direction::Egress, &[far_endpoint(5002)]),
    ];
    scene.agent.establish(&desired(senders, vec![]));
    traffic::ping(&scene.client, scene.web.addresses[0], 56, 5);
    let answer = scene.agent.counters(1).senders;
    let keys: Vec<_> = answer.iter().map(|sender| (&*sender.tap_uid, &*sender.pod_uid)).collect();
    assert_eq!(keys, [("tap-a", &*scene.web.uid), ("tap-b", &*scene.web.uid), ("tap-b", &*other.uid)]);
    assert!(answer[0].egress.is_none() && seen(answer[0].ingress).0 >= 5, "{answer:?}");
    assert!(answer[1].ingress.is_none() && seen(answer[1].egress).0 >= 5, "{answer:?}");
    assert!(
        answer[2].ingress.is_none() && answer[2].egress.is_some_and(|egress| egress.mirrored.frames < 5),
        "{answer:?}"
    );
}

/// A frame that the sender device drops is counted once as failed, and also as mirrored.
#[test]
fn mirrored_frames_that_are_dropped_are_counted_as_failed() {
    let mut scene = Scene::new();
    scene.agent.establish(&requested(&scene, |_| ()));
    let vxlan = scene.web.network().vxlan_devices()[0].clone();
    // As the program there does with a frame that it cannot segment.
    let words = format!("tc filter add dev {vxlan} egress prio 1 bpf da bytecode");
    let command: Vec<&str> = words.split(' ').chain(["1,6 0 0 2"]).collect();
    scene.web.network().try_run(&command, "").expect("it is taken");
    // Only now: frames that the pod's kernel sends by itself would have been mirrored and not dropped before.
    let before = counted(&mut scene, 1);
    traffic::ping(&scene.client, scene.web.addresses[0], 56, 5);
    let after = counted(&mut scene, 2);
    let [before, after] = [before, after].map(|sender| sender.ingress.expect("it is mirrored"));
    let failed = after.failed - before.failed;
    assert!(failed >= 5, "{after:?}");
    assert_eq!(after.mirrored.frames - before.mirrored.frames, failed, "{before:?} {after:?}");
}
