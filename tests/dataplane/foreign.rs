//! Resources of other programs in the same namespaces are never changed, and keep working.

use podtap_model::Direction;
use podtap_tests::net::{Pod, traffic};

use crate::scene::{Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

/// A classic BPF program of one instruction that matches every frame.
const PASS: &str = "1,6 0 0 4294967295";

/// Creates a tap and removes it again. Foreign resources must stay, and at the end the namespaces must be in their initial state.
#[track_caller]
fn assert_restored(scene: &mut Scene) {
    let before = [scene.web.network().snapshot(), scene.node.network().snapshot()];
    let request = desired(
        vec![sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)])],
        vec![receiver(TAP, VNI, "mirror0")],
    );
    for _ in 0..2 {
        scene.agent.establish(&request);
        for (network, before) in [scene.web.network(), scene.node.network()].into_iter().zip(&before) {
            let removed: Vec<String> =
                before.differences(&network.snapshot()).into_iter().filter(|line| line.starts_with('-')).collect();
            assert_eq!(removed, [""; 0]);
        }
        let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
        scene.traffic();
        captures.same(scene, |_| true);
        scene.agent.request(&desired(vec![], vec![]));
        scene.agent.until("everything is removed", |report| report.senders.is_empty() && report.receivers.is_empty());
        for (network, before) in [scene.web.network(), scene.node.network()].into_iter().zip(&before) {
            assert_eq!(before.differences(&network.snapshot()), [""; 0]);
        }
    }
}

#[test]
fn a_foreign_clsact_stays() {
    let mut scene = Scene::new();
    scene.web.network().run("tc qdisc add dev eth0 clsact");
    assert_restored(&mut scene);
}

#[test]
fn foreign_filters_before_and_after_ours_stay() {
    let mut scene = Scene::new();
    let web = scene.web.network();
    web.run("tc qdisc add dev eth0 clsact");
    for (hook, priority) in [("ingress", 1), ("ingress", 33), ("ingress", 40000), ("egress", 32), ("egress", 49152)] {
        let filter =
            format!("tc filter add dev eth0 {hook} protocol all prio {priority} u32 match u32 0 0 classid 1:1");
        // Filters before ours must not end classification, which would hide frames from ours.
        if priority > 1000 {
            web.run(&filter);
        } else {
            let words = format!("tc filter add dev eth0 {hook} protocol all prio {priority} bpf bytecode");
            let action = ["action", "mirred", "egress", "mirror", "dev", "lo", "continue"];
            let words: Vec<&str> = words.split(' ').chain([PASS]).chain(action).collect();
            web.try_run(&words, "").expect("tc accepts the filter");
        }
    }
    assert_restored(&mut scene);
    // The clsact is foreign. So are these filters, one in another chain, one with a foreign cookie.
    let web = scene.web.network();
    web.run("tc filter add dev eth0 ingress protocol ip chain 7 prio 3 u32 match u32 0 0 classid 1:2");
    let words = "tc filter add dev eth0 ingress protocol all prio 34 bpf bytecode";
    let action = "action mirred egress mirror dev lo continue cookie 50546170ff";
    let words: Vec<&str> = words.split(' ').chain([PASS]).chain(action.split(' ')).collect();
    web.try_run(&words, "").expect("tc accepts the filter");
    assert_restored(&mut scene);
}

#[test]
fn foreign_qdiscs_and_devices_stay() {
    let mut scene = Scene::new();
    let web = scene.web.network();
    web.run("tc qdisc add dev eth0 root tbf rate 1gbit burst 100kb latency 100ms");
    // Foreign VXLAN devices: one with a name like ours, one in our group, one on the port of our senders, one with a similar alias.
    web.ip("link add ptap000000001 type vxlan id 11 dstport 4444\nlink add vx1 group 1886675312 type vxlan id 12 dstport 4444\n\
            link add br0 group 1886675312 type bridge\n");
    scene
        .node
        .network()
        .ip("link add ptap000000002 type vxlan id 13 dstport 14788\nlink add vx2 type vxlan id 14 dstport 14789\n\
         link set vx2 alias podtap.dev/not-ours\nlink set vx2 addrgenmode none up\n");
    assert_restored(&mut scene);
}

/// Another program adds a filter to a clsact that PodTap created.
#[test]
fn a_foreign_filter_keeps_our_clsact() {
    let mut scene = Scene::new();
    let request = desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]);
    scene.agent.establish(&request);
    let web = scene.web.network();
    web.run("tc filter add dev eth0 egress protocol ip prio 9 u32 match u32 0 0 classid 1:1");
    scene.agent.request(&desired(vec![], vec![]));
    scene.agent.until("everything is removed", |report| report.senders.is_empty());
    let lines = scene.web.network().snapshot().lines;
    let left: Vec<&String> =
        lines.iter().filter(|line| line.contains("clsact") || line.starts_with("filter")).collect();
    assert!(left.iter().any(|line| line.contains("clsact")), "{left:?}");
    assert!(left.iter().any(|line| line.starts_with("filter eth0 egress ip 9 u32")), "{left:?}");
    traffic::ping(&scene.client, scene.web.addresses[0], 10, 1);
}

/// Two pods under one tap, one of which is no longer requested.
#[test]
fn removing_one_pod_leaves_the_other() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    let both = vec![
        sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]),
        sender(TAP, &other, Direction::Both, &[remote_endpoint(VNI)]),
    ];
    scene.agent.establish(&desired(both.clone(), vec![]));
    scene.agent.request(&desired(both[..1].to_vec(), vec![]));
    scene.agent.until("one sender is removed", |report| report.senders.len() == 1);
    assert_eq!((scene.web.network().mirrors("eth0").len(), other.network().mirrors("eth0").len()), (2, 0));
    assert!(other.network().vxlan_devices().is_empty());
}
