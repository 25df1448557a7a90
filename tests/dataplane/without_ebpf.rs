//! A node whose kernel loads no programs: missing features are reported, and everything else works.

use podtap_model::Direction;
use podtap_tests::net::{Desired, Helper, Sender, traffic};
use serde_json::json;

use crate::scene::{Captures, Scene, TAP, VNI, desired, options, receiver, remote_endpoint, sender};

/// A scene in which the helper of the pod's node cannot load programs.
fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.helper.kill();
    scene.helper = Helper::without_ebpf(&scene.node);
    scene.agent = scene.helper.agent();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    scene
}

fn request(scene: &Scene, change: impl FnOnce(&mut Sender)) -> Desired {
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    change(&mut sender);
    desired(vec![sender], vec![])
}

fn all_options(sender: &mut Sender) {
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
    let report = scene.agent.establish(&request(&scene, |_| ()));
    assert_eq!((report.features["ebpf"], report.features["clamp"]), (false, false));
    let degraded = &report.senders[0].degraded;
    assert!(degraded.len() == 1 && degraded[0].contains("are fragmented, not clamped"), "{degraded:?}");
    let web = scene.web.network();
    assert_eq!((web.programs("eth0"), web.mirrors("eth0").len()), (vec![], 2), "both filters have no eBPF program");
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn missing_features_are_reported_and_everything_else_works() {
    let mut scene = scene();
    let report = scene.agent.establish(&request(&scene, all_options));
    let degraded = &report.senders[0].degraded;
    for words in
        ["All frames are mirrored", "mirrored whole", "All flows are mirrored", "not rate-limited", "are fragmented"]
    {
        assert_eq!(degraded.iter().filter(|message| message.contains(words)).count(), 1, "{words}: {degraded:?}");
    }
    assert!(
        degraded.len() == 5 && degraded.iter().all(|message| message.contains("Operation not permitted")),
        "{degraded:?}"
    );
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    traffic::ping(&scene.client, scene.web.addresses[0], 900, 5);
    traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[900; 5]);
    captures.same(&scene, |_| true);
}

/// Helpers that can and cannot load programs alternate, as when the kernel's lockdown changes.
#[test]
fn mirroring_survives_a_change_of_ebpf_support() {
    let mut scene = scene();
    for ebpf in [false, true, false, true] {
        scene.helper.kill();
        scene.helper = if ebpf { Helper::start(&scene.node) } else { Helper::without_ebpf(&scene.node) };
        scene.agent = scene.helper.agent();
        let report = scene
            .agent
            .establish(&request(&scene, |sender| sender.tap.options = options(json!({"sample": {"oneInFlows": 1}}))));
        assert_eq!(report.features["ebpf"], ebpf);
        assert_eq!(scene.web.network().mirrors("eth0").len(), 2);
        let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("everything is removed", |report| report.senders.is_empty());
    assert!(scene.web.network().mirrors("eth0").is_empty() && scene.web.network().vxlan_devices().is_empty());
}
