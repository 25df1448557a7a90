//! What other software has configured in the same namespaces is never touched, and keeps working.

use podtap_model::Direction;
use podtap_tests::net::{Pod, traffic};

use crate::scene::{Captures, Scene, TAP, VNI, desired, far_endpoint, near_endpoint, receiver, sender};

/// One instruction that matches every frame.
const PASS: &str = "1,6 0 0 4294967295";

/// Creates a tap and deletes it, twice. Afterwards the pod and the node must be as before, whatever else is configured there.
#[track_caller]
fn comes_and_goes(scene: &mut Scene) {
    let before = [scene.web.network().snapshot(), scene.node.network().snapshot()];
    let requested = desired(
        vec![sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)])],
        vec![receiver(TAP, VNI, "mirror0")],
    );
    for _ in 0..2 {
        scene.agent.establish(&requested);
        for (network, before) in [scene.web.network(), scene.node.network()].into_iter().zip(&before) {
            let gone: Vec<String> =
                before.differences(&network.snapshot()).into_iter().filter(|line| line.starts_with('-')).collect();
            assert_eq!(gone, [""; 0]);
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
fn an_existing_clsact_stays() {
    let mut scene = Scene::new();
    scene.web.network().run("tc qdisc add dev eth0 clsact");
    comes_and_goes(&mut scene);
}

#[test]
fn filters_before_and_after_ours() {
    let mut scene = Scene::new();
    let web = scene.web.network();
    web.run("tc qdisc add dev eth0 clsact");
    for (hook, priority) in [("ingress", 1), ("ingress", 33), ("ingress", 40000), ("egress", 32), ("egress", 49152)] {
        let filter =
            format!("tc filter add dev eth0 {hook} protocol all prio {priority} u32 match u32 0 0 classid 1:1");
        // A filter that ends classification would hide frames from ours, unless it comes after them.
        if priority > 1000 {
            web.run(&filter);
        } else {
            let words = format!("tc filter add dev eth0 {hook} protocol all prio {priority} bpf bytecode");
            let action = ["action", "mirred", "egress", "mirror", "dev", "lo", "continue"];
            let words: Vec<&str> = words.split(' ').chain([PASS]).chain(action).collect();
            web.try_run(&words, "").expect("tc takes it");
        }
    }
    comes_and_goes(&mut scene);
    // The clsact is foreign, and so are these filters: one in another chain, one with another cookie.
    let web = scene.web.network();
    web.run("tc filter add dev eth0 ingress protocol ip chain 7 prio 3 u32 match u32 0 0 classid 1:2");
    let words = "tc filter add dev eth0 ingress protocol all prio 34 bpf bytecode";
    let action = "action mirred egress mirror dev lo continue cookie 50546170ff";
    let words: Vec<&str> = words.split(' ').chain([PASS]).chain(action.split(' ')).collect();
    web.try_run(&words, "").expect("tc takes it");
    comes_and_goes(&mut scene);
}

#[test]
fn other_qdiscs_and_devices() {
    let mut scene = Scene::new();
    let web = scene.web.network();
    web.run("tc qdisc add dev eth0 root tbf rate 1gbit burst 100kb latency 100ms");
    // Foreign VXLAN devices: one with a name like ours, one in the group of ours, one on our senders' port.
    web.ip("link add ptap000000001 type vxlan id 11 dstport 4444\nlink add vx1 group 1886675312 type vxlan id 12 dstport 4444\n\
            link add br0 group 1886675312 type bridge\n");
    scene
        .node
        .network()
        .ip("link add ptap000000002 type vxlan id 13 dstport 14788\nlink add vx2 type vxlan id 14 dstport 14789\n\
         link set vx2 alias podtap.dev/not-ours\nlink set vx2 addrgenmode none up\n");
    comes_and_goes(&mut scene);
}

/// A clsact that we created stays as long as it has a foreign filter.
#[test]
fn a_filter_that_came_later_keeps_the_clsact() {
    let mut scene = Scene::new();
    let requested = desired(vec![sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)])], vec![]);
    scene.agent.establish(&requested);
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

/// Two tapped pods: removing one of them from the tap leaves the other one's filters.
#[test]
fn the_other_pods_clsact() {
    let mut scene = Scene::new();
    let other = Pod::start(&scene.node);
    let both = vec![
        sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)]),
        sender(TAP, &other, Direction::Both, &[far_endpoint(VNI)]),
    ];
    scene.agent.establish(&desired(both.clone(), vec![]));
    scene.agent.request(&desired(both[..1].to_vec(), vec![]));
    scene.agent.until("one is removed", |report| report.senders.len() == 1);
    assert_eq!((scene.web.network().mirrors("eth0").len(), other.network().mirrors("eth0").len()), (2, 0));
    assert!(other.network().vxlan_devices().is_empty());
}
