//! A node whose kernel loads no programs: what is possible is done, and what is not is reported.

use podtap_model::Direction;
use podtap_tests::net::{Desired, Helper, Sender, traffic};
use serde_json::json;

use crate::scene::{Captures, Scene, TAP, VNI, desired, far_endpoint, options, receiver, sender};

/// A scene with such a node for the tapped pod.
fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.helper.kill();
    scene.helper = Helper::without_ebpf(&scene.node);
    scene.agent = scene.helper.agent();
    scene.far_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene
}

fn requested(scene: &Scene, change: impl FnOnce(&mut Sender)) -> Desired {
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
    let report = scene.agent.establish(&requested(&scene, |_| ()));
    assert_eq!((report.features["ebpf"], report.features["clamp"]), (false, false));
    let reported = &report.senders[0].degraded;
    assert!(reported.len() == 1 && reported[0].contains("are fragmented, not clamped"), "{reported:?}");
    let web = scene.web.network();
    assert_eq!((web.programs("eth0"), web.mirrors("eth0").len()), (vec![], 2), "no eBPF program, and both filters");
    let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn what_the_kernel_cannot_do_is_reported_and_the_rest_is_done() {
    let mut scene = scene();
    let report = scene.agent.establish(&requested(&scene, demanding));
    let reported = &report.senders[0].degraded;
    for words in
        ["All frames are mirrored", "mirrored whole", "All flows are mirrored", "not rate-limited", "are fragmented"]
    {
        assert_eq!(reported.iter().filter(|message| message.contains(words)).count(), 1, "{words}: {reported:?}");
    }
    assert!(
        reported.len() == 5 && reported.iter().all(|message| message.contains("Operation not permitted")),
        "{reported:?}"
    );
    let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
    traffic::ping(&scene.client, scene.web.addresses[0], 900, 5);
    traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[900; 5]);
    captures.same(&scene, |_| true);
}

/// The lockdown ends, or begins: the mirror keeps running with what is possible.
#[test]
fn with_and_without_in_turn() {
    let mut scene = scene();
    for ebpf in [false, true, false, true] {
        scene.helper.kill();
        scene.helper = if ebpf { Helper::start(&scene.node) } else { Helper::without_ebpf(&scene.node) };
        scene.agent = scene.helper.agent();
        let report = scene
            .agent
            .establish(&requested(&scene, |sender| sender.tap.options = options(json!({"sample": {"oneInFlows": 1}}))));
        assert_eq!(report.features["ebpf"], ebpf);
        assert_eq!(scene.web.network().mirrors("eth0").len(), 2);
        let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("everything is removed", |report| report.senders.is_empty());
    assert!(scene.web.network().mirrors("eth0").is_empty() && scene.web.network().vxlan_devices().is_empty());
}
