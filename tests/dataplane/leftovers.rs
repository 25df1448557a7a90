//! Resources of earlier helpers that are no longer requested are removed, but only once the desired state is known.

use std::time::Duration;

use podtap_model::{Direction, Response};
use podtap_tests::{
    net::{Desired, Helper, Pod, Snapshot, traffic},
    wait::until,
};

use crate::scene::{
    Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, same_streams, sender,
};

/// Two pods with one tap each, both to this node. The helper was killed and restarted.
struct Leftovers {
    scene: Scene,
    other: podtap_tests::net::Pod,
    before: [Snapshot; 3],
}

fn leftovers() -> Leftovers {
    let mut scene = Scene::new();
    let other = podtap_tests::net::Pod::start(&scene.node);
    let before = [scene.web.network().snapshot(), other.network().snapshot(), scene.node.network().snapshot()];
    let senders = vec![
        sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]),
        sender("tap-b", &other, Direction::Egress, &[local_endpoint(VNI + 1)]),
    ];
    let receivers = vec![receiver(TAP, VNI, "mirror0"), receiver("tap-b", VNI + 1, "mirror1")];
    scene.agent.establish(&desired(senders, receivers));
    scene.helper.kill();
    scene.helper = Helper::start(&scene.node);
    Leftovers { scene, other, before }
}

#[test]
fn nothing_is_removed_before_the_desired_state_is_known() {
    let Leftovers { mut scene, other, .. } = leftovers();
    let captures = Captures::start_without_helper(&scene.web, scene.node.network(), "mirror0");
    scene.agent = scene.helper.agent();
    // Neither the start of the helper, nor a connected agent, nor an invalid message is a desired state.
    scene.agent.send_bytes(b"{\"apply\":{\"generation\":\"x\"}}\nnonsense\n").expect("the message is sent");
    for _ in 0..2 {
        assert!(matches!(scene.agent.receive(), Ok(Response::Rejected(_))));
    }
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
    // Not frame by frame: the receiver does not segment for a reader yet.
    same_streams(&captures.pod, &captures.receiver, 2);
    assert_eq!((scene.web.network().vxlan_devices().len(), other.network().vxlan_devices().len()), (1, 1));
    assert!(!scene.helper.log().contains("Delete"), "{}", scene.helper.log());
}

#[test]
fn an_empty_desired_state_removes_everything() {
    let Leftovers { mut scene, other, before } = leftovers();
    scene.agent = scene.helper.agent();
    scene.agent.request(&desired(vec![], vec![]));
    let clean =
        scene.agent.until("everything is removed", |report| report.senders.is_empty() && report.receivers.is_empty());
    assert_eq!(clean.observed_generation, Some(1));
    let networks = [scene.web.network(), other.network(), scene.node.network()];
    for (network, before) in networks.into_iter().zip(&before) {
        assert_eq!(before.differences(&network.snapshot()), [""; 0]);
    }
}

#[test]
fn requested_resources_stay() {
    let Leftovers { mut scene, other, before } = leftovers();
    scene.agent = scene.helper.agent();
    let sender = sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]);
    scene.agent.establish(&desired(vec![sender], vec![receiver(TAP, VNI, "mirror0")]));
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    assert_eq!(before[1].differences(&other.network().snapshot()), [""; 0]);
    assert_eq!((scene.node.network().devices_of(TAP).len(), scene.node.network().vxlan_devices().len()), (3, 1));
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// As left by a helper that was killed between two steps: a device without an alias, and a filter whose device was deleted.
#[test]
fn incomplete_resources_are_removed() {
    let mut scene = Scene::new();
    let web = scene.web.network();
    let before = web.snapshot();
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    scene.helper.kill();
    let web = scene.web.network();
    web.run(&format!("ip link del {}", web.vxlan_devices()[0]));
    assert_eq!(web.mirrors("eth0").iter().map(|mirror| mirror.to.as_str()).collect::<Vec<_>>(), ["*", "*"]);
    web.ip("link add ptap0123456789a type vxlan id 3 dstport 5555\nlink set ptap0123456789a group 1886675312\n");
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.request(&desired(vec![], vec![]));
    until("everything is removed", Duration::from_secs(5), || {
        let differences = before.differences(&scene.web.network().snapshot());
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    });
}

/// As CRI-O and `ip netns` keep one: mounted, without a process.
#[test]
fn in_a_namespace_without_a_process_are_removed() {
    let mut scene = Scene::new();
    let mut other = Pod::start(&scene.node);
    let before = other.network().snapshot();
    scene.agent.establish(&desired(vec![sender(TAP, &other, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    scene.helper.kill();
    scene.node.mount(other.network());
    other.stop();
    assert_ne!(other.network().snapshot(), before);

    scene.helper = Helper::start(&scene.node);
    let (_, inspected, _) = Helper::once(&scene.node, &["inspect"], "");
    assert!(inspected.contains("\"mount\"") && !inspected.contains("\"process\""), "{inspected}");
    scene.agent = scene.helper.agent();
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("everything is removed", |report| report.senders.is_empty());
    assert_eq!(before.differences(&other.network().snapshot()), [""; 0]);
}

/// The search is repeated, and what it cannot search is reported.
#[test]
fn in_a_namespace_that_could_not_be_searched_are_removed_later() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    let before = other.network().snapshot();
    scene.agent.establish(&desired(vec![sender(TAP, &other, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    scene.helper.kill();
    let other = other.network();
    let line = "filter add dev eth0 ingress protocol ip prio 7 bpf bytecode \"1,6 0 0 0\"\n";
    other.try_run(&["tc", "-batch", "-"], &line.repeat(5000)).expect("tc adds the filters");

    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.request(&desired(vec![], vec![]));
    let report = scene.agent.until("the request is processed", |report| report.observed_generation == Some(1));
    assert!(report.unsearched.len() == 1 && report.unsearched[0].contains("too many objects"), "{report:?}");
    other.run("tc filter del dev eth0 ingress prio 7");
    // Nothing reports that change to the helper: it searches again after a minute.
    until("everything is removed", Duration::from_secs(100), || {
        let differences = before.differences(&other.snapshot());
        if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
    });
    scene.agent.until("the search is complete", |report| report.unsearched.is_empty());
}

/// The node is not clean, even if no tap is known for what is left.
#[test]
fn what_cannot_be_read_any_more_is_reported_until_it_is_removed() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    let before = other.network().snapshot();
    scene.agent.establish(&desired(vec![sender(TAP, &other, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    let other = other.network();
    let line = "filter add dev eth0 ingress protocol ip prio 7 bpf bytecode \"1,6 0 0 0\"\n";
    other.try_run(&["tc", "-batch", "-"], &line.repeat(5000)).expect("tc adds the filters");

    scene.agent.request(&Desired { generation: 2, ..desired(vec![], vec![]) });
    let report = scene.agent.until("it is reported", |report| !report.leftovers.is_empty());
    assert!(report.leftovers[0].contains("too many objects"), "{report:?}");
    other.run("tc filter del dev eth0 ingress prio 7");
    let clean = scene.agent.until("everything is removed", |report| report.leftovers.is_empty());
    assert_eq!(clean.senders, []);
    assert_eq!(before.differences(&other.snapshot()), [""; 0]);
}
