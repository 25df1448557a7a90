//! Several taps do not affect each other.

use podtap_model::Direction;
use podtap_tests::{
    capture::FrameDirection,
    net::{Pod, traffic},
};

use crate::scene::{Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

#[test]
fn each_of_three_taps_on_one_pod_gets_every_frame() {
    let mut scene = Scene::new();
    let remote = vec![receiver(TAP, VNI, "mirror0"), receiver("tap-c", VNI + 2, "mirror2")];
    scene.remote_agent.establish(&desired(vec![], remote));
    let senders = vec![
        sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]),
        sender("tap-b", &scene.web, Direction::Both, &[local_endpoint(VNI + 1)]),
        sender("tap-c", &scene.web, Direction::Ingress, &[remote_endpoint(VNI + 2)]),
    ];
    scene.agent.establish(&desired(senders, vec![receiver("tap-b", VNI + 1, "mirror1")]));
    let mut priorities: Vec<u64> = scene.web.network().mirrors("eth0").iter().map(|mirror| mirror.priority).collect();
    assert_eq!(priorities.len(), 5);
    priorities.sort_unstable();
    priorities.dedup();
    assert_eq!(priorities.len(), 5, "each filter has a priority of its own");
    let one = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    let two = Captures::start(&scene.web, scene.node.network(), "mirror1");
    let three = Captures::start(&scene.web, scene.remote.network(), "mirror2");
    scene.traffic();
    one.same(&scene, |_| true);
    two.same(&scene, |_| true);
    three.same(&scene, |frame| frame.direction == FrameDirection::In);
}

#[test]
fn removing_one_tap_loses_no_frame_of_another() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let permanent = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    let temporary = sender("tap-0", &scene.web, Direction::Both, &[remote_endpoint(VNI + 1)]);
    scene.agent.establish(&desired(vec![permanent.clone()], vec![]));
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    for senders in [
        vec![temporary.clone(), permanent.clone()],
        vec![permanent.clone()],
        vec![temporary, permanent.clone()],
        vec![permanent],
    ] {
        let count = senders.len();
        scene.agent.request(&desired(senders, vec![]));
        scene.agent.until("the second tap is added or removed", |report| report.senders.len() == count);
        traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
        assert_eq!(scene.web.network().vxlan_devices().len(), count);
        assert_eq!(scene.web.network().mirrors("eth0").len(), 2 * count);
    }
    captures.same(&scene, |_| true);
}

/// Frames between the two pods belong to both taps.
#[test]
fn two_tapped_pods_of_one_node_are_independent() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    scene
        .remote_agent
        .establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0"), receiver("tap-b", 9, "mirror1")]));
    let senders = vec![
        sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]),
        sender("tap-b", &other, Direction::Both, &[remote_endpoint(9)]),
    ];
    scene.agent.establish(&desired(senders, vec![]));
    let of_web = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    let of_other = Captures::start(&other, scene.remote.network(), "mirror1");
    scene.traffic();
    for address in &other.addresses {
        traffic::udp(scene.web.network(), other.network(), *address, &[1, 100, 1000]);
        traffic::tcp(scene.web.network(), other.network(), *address, 20_000);
        traffic::ping(&scene.client, *address, 10, 2);
    }
    of_other.same(&scene, |_| true);
    of_web.same(&scene, |_| true);
}

#[test]
fn two_pods_of_one_tap_share_its_receiver() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let to = [remote_endpoint(VNI)];
    let senders = vec![sender(TAP, &scene.web, Direction::Both, &to), sender(TAP, &other, Direction::Both, &to)];
    scene.agent.establish(&desired(senders, vec![]));
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
    let before = captures.receiver.so_far().len();
    traffic::udp(&scene.client, other.network(), other.addresses[0], &[300; 5]);
    let to_other = |frame: &podtap_tests::capture::Frame| frame.bytes.len() == 342;
    podtap_tests::wait::until("the other pod's frames arrive once", std::time::Duration::from_secs(5), || {
        let count = captures.receiver.count(to_other);
        if count == 5 { Ok(()) } else { Err(format!("{count} frames after {before}")) }
    });
}

/// The default limit of taps per pod.
#[test]
fn sixteen_taps_on_one_pod_get_every_frame() {
    let mut scene = Scene::new();
    let names: Vec<(String, u32)> = (0..16).map(|number| (format!("tap-{number}"), 100 + number)).collect();
    let senders = names.iter().map(|(tap, vni)| sender(tap, &scene.web, Direction::Both, &[local_endpoint(*vni)]));
    let receivers = names.iter().map(|(tap, vni)| receiver(tap, *vni, &format!("mirror{vni}")));
    scene.agent.establish(&desired(senders.collect(), receivers.collect()));
    let start = |(_, vni): &(String, u32)| Captures::start(&scene.web, scene.node.network(), &format!("mirror{vni}"));
    let all: Vec<Captures> = names.iter().map(start).collect();
    scene.traffic();
    for captures in all {
        captures.same(&scene, |_| true);
    }
}

#[test]
fn twenty_pods_are_tapped_and_untapped_together() {
    let mut scene = Scene::new();
    let pods: Vec<Pod> = (0..20).map(|_| Pod::start(&scene.node)).collect();
    let before: Vec<_> = pods.iter().map(|pod| pod.network().snapshot()).collect();
    let to = [remote_endpoint(VNI)];
    let senders = pods.iter().map(|pod| sender(TAP, pod, Direction::Both, &to)).collect();
    scene.agent.establish(&desired(senders, vec![]));
    assert!(pods.iter().all(|pod| pod.network().mirrors("eth0").len() == 2));
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("everything is removed", |report| report.senders.is_empty());
    for (pod, before) in pods.iter().zip(&before) {
        assert_eq!(before.differences(&pod.network().snapshot()), [""; 0]);
    }
}
