//! A node whose kernel loads no programs: what can be done is done, and what cannot is said.

use podtap_model::Direction;
use podtap_tests::net::{Desired, Helper, Sender, traffic};
use serde_json::json;

use crate::scene::{Captures, Scene, TAP, VNI, desired, far_endpoint, options, receiver, sender};

/// A scene whose near helper is one of such a node.
fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.helper.kill();
    scene.helper = Helper::without_ebpf(&scene.node);
    scene.agent = scene.helper.agent();
    scene.far_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene
}

fn wanted(scene: &Scene, change: impl FnOnce(&mut Sender)) -> Desired {
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)]);
    change(&mut sender);
    desired(vec![sender], vec![])
}

fn demanding(sender: &mut Sender) {
    sender.tap.options = options(json!({
        "filter": {"include": [{"protocol": "UDP"}]},
        "truncate": {"headersOnly": true},
        "sample": {"oneInFlows": 7},
        "limit": {"bitsPerSecond": 1000, "packetsPerSecond": 1},
    }));
}

#[test]
fn every_frame_is_mirrored() {
    let mut scene = scene();
    let report = scene.agent.establish(&wanted(&scene, |_| ()));
    assert_eq!((report.features["ebpf"], report.features["clamp"]), (false, false));
    let told = &report.senders[0].degraded;
    assert!(told.len() == 1 && told[0].contains("are fragmented, not clamped"), "{told:?}");
    let web = scene.web.network();
    assert_eq!((web.programs("eth0"), web.mirrors("eth0").len()), (vec![], 2), "no eBPF program, and both filters");
    let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn what_cannot_be_done_is_said_and_the_rest_is_done() {
    let mut scene = scene();
    let report = scene.agent.establish(&wanted(&scene, demanding));
    let told = &report.senders[0].degraded;
    for words in
        ["All frames are mirrored", "mirrored whole", "All flows are mirrored", "not rate-limited", "are fragmented"]
    {
        assert_eq!(told.iter().filter(|sentence| sentence.contains(words)).count(), 1, "{words}: {told:?}");
    }
    assert!(told.len() == 5 && told.iter().all(|sentence| sentence.contains("Operation not permitted")), "{told:?}");
    let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
    traffic::ping(&scene.client, scene.web.addresses[0], 900, 5);
    traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[900; 5]);
    captures.same(&scene, |_| true);
}

/// The lock-down ends, or begins: the mirror goes on, and is what it can be.
#[test]
fn with_and_without_in_turn() {
    let mut scene = scene();
    for ebpf in [false, true, false, true] {
        scene.helper.kill();
        scene.helper = if ebpf { Helper::start(&scene.node) } else { Helper::without_ebpf(&scene.node) };
        scene.agent = scene.helper.agent();
        let report = scene
            .agent
            .establish(&wanted(&scene, |sender| sender.tap.options = options(json!({"sample": {"oneInFlows": 1}}))));
        assert_eq!(report.features["ebpf"], ebpf);
        assert_eq!(scene.web.network().mirrors("eth0").len(), 2);
        let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("all is gone", |report| report.senders.is_empty());
    assert!(scene.web.network().mirrors("eth0").is_empty() && scene.web.network().tunnels().is_empty());
}
