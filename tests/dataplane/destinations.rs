//! Every receiver gets every frame, wherever it is and however many there are.

use std::net::IpAddr;

use podtap_model::{Direction, Endpoint, Receiver};
use podtap_tests::net::{Pod, traffic};

use crate::scene::{Captures, Scene, TAP, VNI, desired, far_endpoint, near_endpoint, receiver, sender};

#[test]
fn a_receiver_on_the_pods_own_node() {
    let mut scene = Scene::new();
    let sender = sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)]);
    scene.agent.establish(&desired(vec![sender], vec![receiver(TAP, VNI, "mirror0")]));
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn a_receiver_in_another_pod_of_the_same_node() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.node);
    let sender = sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)]);
    let receiver = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
    scene.agent.establish(&desired(vec![sender], vec![receiver]));
    assert_eq!(scene.node.network().vxlan_devices(), [""; 0], "no device on the node itself");
    let captures = Captures::start(&scene.web, consumer.network(), "tap0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn a_receiver_in_a_pod_of_another_node() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.far);
    let receiver = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
    scene.far_agent.establish(&desired(vec![], vec![receiver]));
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)])], vec![]));
    let captures = Captures::start(&scene.web, consumer.network(), "tap0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// A tap may not mirror mirrored frames, but the consumer of one tap may be the target of another.
#[test]
fn a_consumer_that_is_tapped_by_another_tap() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.node);
    let senders = vec![
        sender(TAP, &scene.web, Direction::Both, &[near_endpoint(VNI)]),
        sender("tap-b", &consumer, Direction::Both, &[far_endpoint(VNI + 1)]),
    ];
    let inside = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
    scene.far_agent.establish(&desired(vec![], vec![receiver("tap-b", VNI + 1, "mirror0")]));
    scene.agent.establish(&desired(senders, vec![inside]));
    let of_consumer = Captures::start(&consumer, scene.far.network(), "mirror0");
    let of_web = Captures::start(&scene.web, consumer.network(), "tap0");
    scene.traffic();
    of_web.same(&scene, |_| true);
    traffic::ping(&scene.client, consumer.addresses[0], 100, 3);
    // What arrives at tap0 is not the consumer's own traffic.
    of_consumer.same(&scene, |_| true);
}

#[test]
fn several_destinations_get_all_each() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.far);
    let far = vec![
        receiver(TAP, VNI, "mirror0"),
        Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI + 1, "tap0") },
        receiver(TAP, VNI + 2, "mirror2"),
    ];
    let endpoints = [far_endpoint(VNI), far_endpoint(VNI + 1), far_endpoint(VNI + 2), near_endpoint(VNI + 3)];
    scene.far_agent.establish(&desired(vec![], far));
    let near = vec![receiver(TAP, VNI + 3, "mirror3")];
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &endpoints)], near));
    let all = [
        Captures::start(&scene.web, scene.far.network(), "mirror0"),
        Captures::start(&scene.web, consumer.network(), "tap0"),
        Captures::start(&scene.web, scene.far.network(), "mirror2"),
        Captures::start(&scene.web, scene.node.network(), "mirror3"),
    ];
    scene.traffic();
    for captures in all {
        captures.same(&scene, |_| true);
    }
}

#[test]
fn destinations_come_and_go_without_a_gap_in_the_others() {
    let mut scene = Scene::new();
    let both = [far_endpoint(VNI), far_endpoint(VNI + 1)];
    let receivers = vec![receiver(TAP, VNI, "mirror0"), receiver(TAP, VNI + 1, "mirror1")];
    scene.far_agent.establish(&desired(vec![], receivers));
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &both[..1])], vec![]));
    let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
    for endpoints in [&both[..], &both[..1], &both[..], &both[..1]] {
        scene.traffic();
        let mut next = desired(vec![sender(TAP, &scene.web, Direction::Both, endpoints)], vec![]);
        next.generation = i64::try_from(endpoints.len()).expect("a count fits");
        scene.agent.establish(&next);
        let vxlan = &scene.web.network().vxlan_devices()[0];
        assert_eq!(scene.web.network().destinations(vxlan).len(), endpoints.len());
    }
    captures.same(&scene, |_| true);
}

/// With an MTU for whole frames: the kernel does not fragment VXLAN over IPv6 (`ip6_fragment` requires `ignore_df`, which
/// `udp_tunnel6_xmit_skb` does not set).
#[test]
fn an_ipv6_underlay() {
    let mut scene = Scene::new();
    let address: IpAddr = "fd66::2".parse().expect("an address");
    scene.far_agent.establish(&desired(vec![], vec![Receiver { ipv6: true, ..receiver(TAP, VNI, "mirror0") }]));
    let to = Endpoint { address, ..far_endpoint(VNI) };
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[to])], vec![]));
    let captures = Captures::start(&scene.web, scene.far.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// Any VXLAN endpoint: here one that `ip` created, on the registered port.
#[test]
fn an_external_endpoint() {
    let mut scene = Scene::new();
    let far = scene.far.network();
    far.ip("link add outside type vxlan id 77 dstport 4789 local 10.66.0.2\n");
    far.set("ipv6/conf/outside/disable_ipv6", "1");
    far.ip("link set outside up\n");
    // Otherwise the kernel joins segments at a plain VXLAN device.
    far.run("ethtool -K outside gro off");
    let to = Endpoint { port: 4789, ..far_endpoint(77) };
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[to])], vec![]));
    let captures = Captures::start(&scene.web, scene.far.network(), "outside");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// Two receivers on one port of a node, one per family: a VXLAN device has one socket, of one family.
#[test]
fn both_families_side_by_side() {
    let mut scene = Scene::new();
    let receivers =
        vec![receiver(TAP, VNI, "mirror4"), Receiver { ipv6: true, ..receiver("tap-b", VNI + 1, "mirror6") }];
    scene.far_agent.establish(&desired(vec![], receivers));
    let six = Endpoint { address: "fd66::2".parse().expect("an address"), ..far_endpoint(VNI + 1) };
    let senders = vec![
        sender(TAP, &scene.web, Direction::Both, &[far_endpoint(VNI)]),
        sender("tap-b", &scene.web, Direction::Both, &[six]),
    ];
    scene.agent.establish(&desired(senders, vec![]));
    let four = Captures::start(&scene.web, scene.far.network(), "mirror4");
    let six = Captures::start(&scene.web, scene.far.network(), "mirror6");
    scene.traffic();
    four.same(&scene, |_| true);
    six.same(&scene, |_| true);
}
