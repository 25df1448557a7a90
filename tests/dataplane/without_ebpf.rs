//! A node that cannot load eBPF programs, for a moment or for good: nothing is mirrored that was not requested, and what is mirrored
//! already goes on unchanged.

use podtap_model::{Direction, Reason, State};
use podtap_tests::net::{Desired, Helper, Network, Sender, traffic};
use serde_json::json;

use crate::scene::{Captures, Scene, TAP, VNI, desired, options, receiver, remote_endpoint, select_all, sender};

fn request(scene: &Scene, change: impl FnOnce(&mut Sender)) -> Desired {
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    change(&mut sender);
    desired(vec![sender], vec![])
}

/// A tap that mirrors pings only.
fn filtered(scene: &Scene) -> Desired {
    request(scene, |sender| sender.tap.options = options(json!({"filter": {"include": [{"protocol": "ICMP"}]}})))
}

/// Replaces the helper of the pod's node.
fn replace(scene: &mut Scene, start: impl FnOnce(&Scene) -> Helper) {
    scene.helper.kill();
    scene.helper = start(scene);
    scene.agent = scene.helper.agent();
}

/// Devices, qdiscs and filters, with the ifindexes and program IDs that show whether one was replaced.
fn identities(network: &Network) -> Vec<String> {
    let links = network.json("ip -j link show");
    let mut all: Vec<String> = links.iter().map(|link| format!("{} {}", link["ifname"], link["ifindex"])).collect();
    all.extend(network.snapshot().lines);
    for device in network.vxlan_devices().into_iter().chain(["eth0".to_owned()]) {
        all.push(format!("{device}: programs {:?}", network.programs(&device)));
    }
    all
}

/// Waits for a refused sender, and returns its reason and message.
#[track_caller]
fn refused(scene: &mut Scene, state: State) -> (Reason, String) {
    let status = scene.agent.until("the sender is refused", |status| status.senders[0].state == state);
    let sender = status.senders.into_iter().next().expect("one sender");
    assert_eq!(status.features, [("ebpf".to_owned(), false)].into());
    assert_eq!(status.active_senders, 0);
    (sender.reason, sender.message)
}

#[test]
fn a_tap_is_refused_and_nothing_is_touched() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let before = identities(scene.web.network());
    replace(&mut scene, |scene| Helper::without_ebpf(&scene.node));
    let all = request(&scene, |_| ());
    scene.agent.request(&all);
    let (reason, message) = refused(&mut scene, State::Refused);
    assert_eq!(reason, Reason::KernelFeatureMissing);
    assert!(
        message.contains("cannot load the eBPF programs") && message.contains("Operation not permitted"),
        "{message}"
    );
    assert_eq!(identities(scene.web.network()), before);
    // Receivers need no programs.
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    scene.traffic();
    assert_eq!(captures.receiver.count(|frame| !frame.is_announcement()), 0);

    replace(&mut scene, |scene| Helper::start(&scene.node));
    scene.agent.establish(&all);
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// A filtered mirror, while helpers come that cannot create maps, or cannot use eBPF at all: it stays exactly as it is.
#[test]
fn a_running_mirror_is_not_changed() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let pings = filtered(&scene);
    scene.agent.establish(&pings);
    let before = identities(scene.web.network());
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    // What runs is as requested, so it is active even though nothing else could be loaded.
    replace(&mut scene, |scene| Helper::without_new_maps(&scene.node));
    let status = scene.agent.establish(&pings);
    scene.traffic();
    assert_eq!(identities(scene.web.network()), before);
    assert_eq!(status.features, [("ebpf".to_owned(), false)].into());
    // Without eBPF, the helper does not know what runs.
    replace(&mut scene, |scene| Helper::without_ebpf(&scene.node));
    scene.agent.request(&pings);
    assert_eq!(refused(&mut scene, State::Refused).0, Reason::KernelFeatureMissing);
    scene.traffic();
    assert_eq!(identities(scene.web.network()), before);
    // Another expression would need other programs: the tap keeps those that it has.
    replace(&mut scene, |scene| Helper::without_new_maps(&scene.node));
    let mut other = request(&scene, select_all);
    other.generation += 1;
    scene.agent.request(&other);
    let (reason, message) = refused(&mut scene, State::Failed);
    assert_eq!(reason, Reason::KernelError);
    assert!(message.contains("Out of memory") && message.contains("retried automatically"), "{message}");
    scene.traffic();
    assert_eq!(identities(scene.web.network()), before);
    // But it is removed when it is no longer requested.
    captures.same(&scene, |frame| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 1);
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("everything is removed", |status| status.senders.is_empty());
    assert!(scene.web.network().mirrors("eth0").is_empty() && scene.web.network().vxlan_devices().is_empty());
}

/// The kernel is out of memory when the helper starts, and has some again a moment later.
#[test]
fn a_passing_failure_is_retried_and_changes_nothing() {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let pings = filtered(&scene);
    scene.agent.establish(&pings);
    let before = identities(scene.web.network());
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    replace(&mut scene, |scene| Helper::short_of_memory(&scene.node, 2));
    traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[300; 10]);
    let status = scene.agent.establish(&pings);
    assert_eq!(status.senders[0].state, State::Active);
    scene.traffic();
    assert_eq!(identities(scene.web.network()), before);
    assert!(scene.helper.log().contains("cannot load eBPF programs"), "{}", scene.helper.log());
    captures.same(&scene, |frame| frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 1);
    // A new tap is established as soon as programs can be loaded again.
    let other = scene.web.network().mirrors("eth0").len();
    let mut both = filtered(&scene);
    both.senders.push(sender("tap-b", &scene.web, Direction::Egress, &[remote_endpoint(VNI + 1)]));
    both.generation += 1;
    scene.agent.establish(&both);
    assert_eq!(scene.web.network().mirrors("eth0").len(), other + 1);
}
