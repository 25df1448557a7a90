//! What is changed or removed by hand is repaired within five seconds.

use std::time::{Duration, Instant};

use podtap_model::Direction;
use podtap_tests::{net::Network, wait::until};

use crate::receivers::offloads;
use crate::scene::{Captures, Scene, TAP, VNI, desired, far_endpoint, near_endpoint, receiver, sender};

const DEADLINE: Duration = Duration::from_secs(5);

/// A tap with two destinations, one of them on the pod's own node.
fn tapped() -> Scene {
    let mut scene = Scene::new();
    scene.far_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let to = [far_endpoint(VNI), near_endpoint(VNI + 1)];
    let sender = sender(TAP, &scene.web, Direction::Both, &to);
    scene.agent.establish(&desired(vec![sender], vec![receiver(TAP, VNI + 1, "mirror1")]));
    scene
}

/// Changes something in a network, waits until everything there is as before, and checks that both receivers get every frame.
#[track_caller]
fn repaired(scene: &Scene, network: &Network, change: &str) {
    let state = || [network.full_state(), offloads(network)].concat();
    // The kernel reports the carrier of a new veth pair a moment after the pair is up (net/core/link_watch.c).
    let before = until("every device has a carrier", DEADLINE, || {
        let state = state();
        if state.iter().any(|line| line.contains("NO-CARRIER")) { Err(state.join("\n")) } else { Ok(state) }
    });
    network.run(change);
    let start = Instant::now();
    until(&format!("repair after: {change}"), DEADLINE, || {
        let now = state();
        let only = |one: &[String], other: &[String], mark: &str| -> Vec<String> {
            one.iter().filter(|line| !other.contains(line)).map(|line| format!("{mark} {line}")).collect()
        };
        let differences = [only(&before, &now, "-"), only(&now, &before, "+")].concat();
        if now == before { Ok(()) } else { Err(format!("{}\n{}", differences.join("\n"), scene.helper.log())) }
    });
    assert!(start.elapsed() < DEADLINE, "{change}");
    let far = Captures::start(&scene.web, scene.far.network(), "mirror0");
    let near = Captures::start(&scene.web, scene.node.network(), "mirror1");
    scene.traffic();
    near.same(scene, |_| true);
    far.same(scene, |_| true);
}

#[test]
fn of_the_sender_device() {
    let scene = tapped();
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    repaired(&scene, web, &format!("ip link set {vxlan} down"));
    repaired(&scene, web, &format!("ip link set {vxlan} arp on multicast on"));
    repaired(&scene, web, &format!("tc qdisc del dev {vxlan} clsact"));
    repaired(&scene, web, &format!("tc filter del dev {vxlan} ingress"));
    repaired(&scene, web, &format!("ip link del {vxlan}"));
}

#[test]
fn of_destinations() {
    let scene = tapped();
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    let entry = format!("00:00:00:00:00:00 dev {vxlan}");
    repaired(&scene, web, &format!("bridge fdb del {entry} dst 10.66.0.2 port 14789 vni {VNI}"));
    repaired(&scene, web, &format!("bridge fdb del {entry} dst 10.66.0.1 port 14789 vni {}", VNI + 1));
    repaired(&scene, web, &format!("bridge fdb append {entry} dst 10.66.0.9 port 14789 vni {VNI}"));
}

#[test]
fn of_filters() {
    let scene = tapped();
    let web = scene.web.network();
    repaired(&scene, web, "tc filter del dev eth0 ingress pref 32");
    repaired(&scene, web, "tc filter del dev eth0 egress");
    repaired(&scene, web, "tc qdisc del dev eth0 clsact");
}

#[test]
fn of_the_receiver_device() {
    let scene = tapped();
    let node = scene.node.network();
    repaired(&scene, node, "ip link set mirror1 down");
    repaired(&scene, node, "tc qdisc del dev mirror1 clsact");
    repaired(&scene, node, "ip link del mirror1");
}

/// The VXLAN device of a receiver, the peer of its interface, and the settings of both ends of the veth pair.
#[test]
fn of_the_rest_of_a_receiver() {
    let scene = tapped();
    let node = scene.node.network();
    let vxlan = node.vxlan_devices()[0].clone();
    let near = node.mirrors(&vxlan)[0].to.clone();
    repaired(&scene, node, &format!("tc filter del dev {vxlan} ingress pref 1"));
    repaired(&scene, node, &format!("tc filter del dev {vxlan} ingress pref 2"));
    repaired(&scene, node, &format!("tc qdisc del dev {vxlan} clsact"));
    repaired(&scene, node, &format!("ethtool -K {near} tx on tso on gso on"));
    repaired(&scene, node, "ethtool -K mirror1 gro on");
    repaired(&scene, node, &format!("ip link set {near} down"));
    repaired(&scene, node, &format!("ip link set {vxlan} down"));
    repaired(&scene, node, &format!("ip link set {near} mtu 1000"));
    repaired(&scene, node, "ip link set mirror1 mtu 1000");
    repaired(&scene, node, &format!("tc qdisc del dev {near} clsact"));
    repaired(&scene, node, &format!("ip link del {near}"));
    repaired(&scene, node, &format!("ip link del {vxlan}"));
    repaired(&scene, node, &format!("ip link set {near} netns {}", scene.client.path().display()));
    assert_eq!(scene.client.json("ip -j link show").len(), 2, "the moved peer is removed");
}

/// While no agent is connected, the helper keeps to the last desired state.
#[test]
fn without_an_agent() {
    let scene = tapped();
    // Only the newest connection is served, and this one is closed at once.
    drop(scene.helper.agent());
    let web = scene.web.network();
    repaired(&scene, web, &format!("ip link del {}", web.vxlan_devices()[0]));
    repaired(&scene, web, "tc qdisc del dev eth0 clsact");
}
