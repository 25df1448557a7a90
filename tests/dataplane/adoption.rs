//! The mirror outlives the helper, and the next helper takes it over.

use std::time::Duration;

use podtap_model::Direction;
use podtap_tests::{
    net::{Desired, Helper, Network, traffic},
    wait::until,
};

use crate::scene::{Captures, Scene, TAP, VNI, desired, far_endpoint, near_endpoint, receiver, sender};

/// The ifindexes of all devices and the handles of all filters, which change when one is recreated.
fn identities(network: &Network) -> Vec<String> {
    let links = network.json("ip -j link show");
    let mut all: Vec<String> = links.iter().map(|link| format!("{} {}", link["ifname"], link["ifindex"])).collect();
    all.extend(network.snapshot().lines);
    all
}

#[test]
fn applied_again_nothing_changes() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Both);
    let before = identities(scene.web.network());
    let mut same = desired(vec![sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)])], vec![]);
    for generation in 2..6 {
        same.generation = generation;
        scene.agent.establish(&same);
        traffic::ping(&scene.client, scene.web.addresses[0], 100, 2);
    }
    assert_eq!(identities(scene.web.network()), before);
    assert_eq!(scene.helper.log().matches("CreateDevice").count(), 1);
    captures.same(&scene, |_| true);
}

/// Killed or terminated, with traffic before, between and after: no frame is missing, and none is duplicated.
#[test]
fn a_new_helper_takes_over_without_a_gap() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Both);
    let near = desired(vec![sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)])], vec![]);
    let far = desired(vec![], vec![receiver(TAP, VNI, "mirror0")]);
    let before = (identities(scene.web.network()), identities(scene.far.network()));
    for kill in [true, false] {
        traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
        for (helper, node) in [(&mut scene.helper, &scene.node), (&mut scene.far_helper, &scene.far)] {
            if kill {
                helper.kill();
            } else {
                helper.terminate();
            }
            assert_eq!(helper.socket().exists(), kill, "one that is terminated removes its socket");
            traffic::udp(&scene.client, scene.web.network(), scene.web.addresses[0], &[100; 20]);
            *helper = Helper::start(node);
        }
        traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
        (scene.agent, scene.far_agent) = (scene.helper.agent(), scene.far_helper.agent());
        scene.agent.establish(&near);
        scene.far_agent.establish(&far);
    }
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 20_000);
    assert_eq!((identities(scene.web.network()), identities(scene.far.network())), before, "nothing was recreated");
    captures.same(&scene, |_| true);
}

/// The next helper completes a tap that was damaged while none ran.
#[test]
fn a_new_helper_repairs_what_was_changed_meanwhile() {
    let mut scene = Scene::new();
    let requested = desired(
        vec![sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)])],
        vec![receiver(TAP, VNI, "mirror0")],
    );
    let web = scene.web.network();
    scene.agent.establish(&requested);
    let vxlan = web.vxlan_devices()[0].clone();
    let clean = web.snapshot().lines.len();
    for change in [
        format!("ip link del {vxlan}"),
        format!("ip link set {vxlan} alias podtap.dev/v0-of-another-version"),
        format!("ip link set {vxlan} mtu 1000"),
        "tc qdisc del dev eth0 clsact".to_owned(),
        "tc filter del dev eth0 ingress".to_owned(),
        format!("bridge fdb del 00:00:00:00:00:00 dev {vxlan} dst 10.66.0.1 port 14789 vni {VNI}"),
    ] {
        scene.helper.kill();
        scene.web.network().run(&change);
        scene.helper = Helper::start(&scene.node);
        scene.agent = scene.helper.agent();
        scene.agent.establish(&requested);
        assert_eq!(scene.web.network().mirrors("eth0").len(), 2, "after {change}");
        assert_eq!(scene.web.network().snapshot().lines.len(), clean, "after {change}");
        let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
        scene.traffic();
        captures.same(&scene, |_| true);
    }
}

/// As left by a helper that could load no programs.
#[test]
fn a_filter_without_a_program_gets_one() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Both);
    let requested = desired(vec![sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)])], vec![]);
    scene.helper.kill();
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    web.run(&format!("tc filter del dev {vxlan} egress"));
    for mirror in web.mirrors("eth0") {
        let (hook, priority, cookie) = (mirror.hook, mirror.priority, mirror.cookie);
        let filter = format!("tc filter replace dev eth0 {hook} protocol all prio {priority} handle 1 bpf bytecode");
        let action = format!("action mirred egress mirror dev {vxlan} continue cookie {cookie}");
        let words = filter.split(' ').chain(["1,6 0 0 4294967295"]).chain(action.split(' '));
        web.try_run(&words.collect::<Vec<_>>(), "").expect("it is replaced");
    }
    let before = identities(web);
    scene.helper = Helper::start(&scene.node);
    scene.agent = scene.helper.agent();
    scene.agent.establish(&requested);
    let web = scene.web.network();
    let fit = format!("filter {vxlan} egress");
    let after: Vec<String> = identities(web).into_iter().filter(|line| !line.starts_with(&fit)).collect();
    assert_eq!(after, before);
    assert_eq!(web.programs("eth0").len(), 2);
    assert_eq!(web.programs(&vxlan).len(), 1);
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn two_helpers_of_one_node_do_not_work_at_once() {
    let mut scene = Scene::new();
    let _captures = scene.tap_to_far(Direction::Both);
    let (status, _, error) = Helper::once(&scene.node, &["apply", "FILE"], "{}");
    assert!(!status.success() && error.contains("another tap-helper works on this node"), "{error}");
    assert_eq!(scene.web.network().vxlan_devices().len(), 1);
}

/// Killed right after an update, at any point of applying it: the next one continues from there.
#[test]
fn killed_in_the_middle_again_and_again() {
    let mut scene = Scene::new();
    let before = (scene.web.network().snapshot(), scene.node.network().snapshot());
    let requested = desired(
        vec![
            sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI), far_endpoint(VNI + 2)]),
            sender("tap-b", &scene.web, Direction::Ingress, &[near_endpoint(VNI + 1)]),
        ],
        vec![receiver(TAP, VNI, "mirror0"), receiver("tap-b", VNI + 1, "mirror1")],
    );
    let nothing = Desired::default();
    for round in 0..24 {
        let before_this = scene.helper.log().matches(": done step=").count();
        scene.agent.request(if round % 3 == 2 { &nothing } else { &requested });
        // Later in each round, by the log; at the latest when all of the update is applied.
        until("enough of the update is applied", Duration::from_secs(10), || {
            let done = scene.helper.log().matches(": done step=").count() - before_this;
            if done >= round % 8 || scene.agent.has_message() { Ok(()) } else { Err(format!("{done} steps")) }
        });
        scene.helper.kill();
        scene.helper = Helper::start(&scene.node);
        scene.agent = scene.helper.agent();
    }
    scene.agent.establish(&requested);
    assert_eq!(scene.web.network().mirrors("eth0").len(), 3);
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
    scene.agent.request(&nothing);
    scene.agent.until("everything is removed", |report| report.senders.is_empty() && report.receivers.is_empty());
    assert_eq!(before.0.differences(&scene.web.network().snapshot()), [""; 0]);
    assert_eq!(before.1.differences(&scene.node.network().snapshot()), [""; 0]);
}
