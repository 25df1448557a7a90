//! Every receiver gets every frame, whatever their number and location.

use std::net::IpAddr;

use podtap_model::{Direction, Endpoint, Receiver, SentVnis, Vni};
use podtap_tests::net::{Pod, traffic};

use crate::scene::{Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

#[test]
fn a_receiver_on_the_pods_node_gets_every_frame() {
    let mut scene = Scene::new();
    let sender = sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]);
    scene.agent.establish(&desired(vec![sender], vec![receiver(TAP, VNI, "mirror0")]));
    let captures = Captures::start(&scene.web, scene.node.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn a_receiver_in_a_pod_of_the_same_node_gets_every_frame() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.node);
    let sender = sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]);
    let receiver = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
    scene.agent.establish(&desired(vec![sender], vec![receiver]));
    assert_eq!(scene.node.network().vxlan_devices(), [""; 0], "the node itself has no VXLAN device");
    let captures = Captures::start(&scene.web, consumer.network(), "tap0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

#[test]
fn a_receiver_in_a_pod_of_another_node_gets_every_frame() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.remote);
    let receiver = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
    scene.remote_agent.establish(&desired(vec![], vec![receiver]));
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)])], vec![]));
    let captures = Captures::start(&scene.web, consumer.network(), "tap0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// A tap may not mirror its own mirrored frames, but the consumer of one tap may be the target of another.
#[test]
fn a_consumer_can_be_tapped_by_another_tap() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.node);
    let senders = vec![
        sender(TAP, &scene.web, Direction::Both, &[local_endpoint(VNI)]),
        sender("tap-b", &consumer, Direction::Both, &[remote_endpoint(VNI + 1)]),
    ];
    let inside = Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI, "tap0") };
    scene.remote_agent.establish(&desired(vec![], vec![receiver("tap-b", VNI + 1, "mirror0")]));
    scene.agent.establish(&desired(senders, vec![inside]));
    let of_consumer = Captures::start(&consumer, scene.remote.network(), "mirror0");
    let of_web = Captures::start(&scene.web, consumer.network(), "tap0");
    scene.traffic();
    of_web.same(&scene, |_| true);
    traffic::ping(&scene.client, consumer.addresses[0], 100, 3);
    // Frames that arrive at tap0 are not the consumer's own traffic.
    of_consumer.same(&scene, |_| true);
}

#[test]
fn each_of_several_destinations_gets_every_frame() {
    let mut scene = Scene::new();
    let consumer = Pod::start(&scene.remote);
    let remote = vec![
        receiver(TAP, VNI, "mirror0"),
        Receiver { pod: Some(consumer.model()), ..receiver(TAP, VNI + 1, "tap0") },
        receiver(TAP, VNI + 2, "mirror2"),
    ];
    let endpoints = [remote_endpoint(VNI), remote_endpoint(VNI + 1), remote_endpoint(VNI + 2), local_endpoint(VNI + 3)];
    scene.remote_agent.establish(&desired(vec![], remote));
    let local = vec![receiver(TAP, VNI + 3, "mirror3")];
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &endpoints)], local));
    let all = [
        Captures::start(&scene.web, scene.remote.network(), "mirror0"),
        Captures::start(&scene.web, consumer.network(), "tap0"),
        Captures::start(&scene.web, scene.remote.network(), "mirror2"),
        Captures::start(&scene.web, scene.node.network(), "mirror3"),
    ];
    scene.traffic();
    for captures in all {
        captures.same(&scene, |_| true);
    }
}

/// The controller assigns a VNI to no other tap as long as a node reports it.
#[test]
fn a_node_reports_the_vnis_that_it_sends() {
    let mut scene = Scene::new();
    for vnis in [vec![VNI, VNI + 1], vec![VNI + 1], vec![VNI + 2]] {
        let endpoints: Vec<Endpoint> = vnis.iter().map(|vni| remote_endpoint(*vni)).collect();
        scene.agent.request(&desired(vec![sender(TAP, &scene.web, Direction::Both, &endpoints)], vec![]));
        scene.agent.until("the VNIs are reported", |status| {
            let sent =
                |sent: &SentVnis| sent.tap_uid == TAP && sent.vnis.iter().copied().map(Vni::get).eq(vnis.clone());
            status.sent_vnis.len() == 1 && sent(&status.sent_vnis[0])
        });
    }
}

#[test]
fn changing_destinations_loses_no_frame_at_the_others() {
    let mut scene = Scene::new();
    let both = [remote_endpoint(VNI), remote_endpoint(VNI + 1)];
    let receivers = vec![receiver(TAP, VNI, "mirror0"), receiver(TAP, VNI + 1, "mirror1")];
    scene.remote_agent.establish(&desired(vec![], receivers));
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &both[..1])], vec![]));
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
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

/// The underlay carries full-size frames: the kernel does not fragment VXLAN over IPv6 (`ip6_fragment` requires `ignore_df`, which
/// `udp_tunnel6_xmit_skb` does not set).
#[test]
fn mirroring_works_over_an_ipv6_underlay() {
    let mut scene = Scene::new();
    let address: IpAddr = "fd66::2".parse().expect("an address");
    scene.remote_agent.establish(&desired(vec![], vec![Receiver { ipv6: true, ..receiver(TAP, VNI, "mirror0") }]));
    let to = Endpoint { address, ..remote_endpoint(VNI) };
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[to])], vec![]));
    let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// The endpoint is a VXLAN device that `ip` created, on the port that IANA assigned to VXLAN.
#[test]
fn an_external_endpoint_gets_every_frame() {
    let mut scene = Scene::new();
    let remote = scene.remote.network();
    remote.ip("link add outside type vxlan id 77 dstport 4789 local 10.66.0.2\n");
    remote.set("ipv6/conf/outside/disable_ipv6", "1");
    remote.ip("link set outside up\n");
    // Without this, the kernel coalesces segments at the VXLAN device.
    remote.run("ethtool -K outside gro off");
    let to = Endpoint { port: 4789, ..remote_endpoint(77) };
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[to])], vec![]));
    let captures = Captures::start(&scene.web, scene.remote.network(), "outside");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// Two receivers on one UDP port of a node. A VXLAN device has one socket, and thus one address family.
#[test]
fn receivers_of_both_address_families_share_a_port() {
    let mut scene = Scene::new();
    let receivers =
        vec![receiver(TAP, VNI, "mirror4"), Receiver { ipv6: true, ..receiver("tap-b", VNI + 1, "mirror6") }];
    scene.remote_agent.establish(&desired(vec![], receivers));
    let six = Endpoint { address: "fd66::2".parse().expect("an address"), ..remote_endpoint(VNI + 1) };
    let senders = vec![
        sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]),
        sender("tap-b", &scene.web, Direction::Both, &[six]),
    ];
    scene.agent.establish(&desired(senders, vec![]));
    let four = Captures::start(&scene.web, scene.remote.network(), "mirror4");
    let six = Captures::start(&scene.web, scene.remote.network(), "mirror6");
    scene.traffic();
    four.same(&scene, |_| true);
    six.same(&scene, |_| true);
}
