//! Manual changes are repaired within five seconds.

use std::time::{Duration, Instant};

use podtap_model::Direction;
use podtap_tests::{capture::Capture, net::Network, wait::until};

use crate::receivers::offloads;
use crate::scene::{
    Captures, Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender, until_it_segments,
};

const DEADLINE: Duration = Duration::from_secs(5);

/// A tap with two destinations, one of them on the pod's node.
fn tapped() -> Scene {
    let mut scene = Scene::new();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let to = [remote_endpoint(VNI), local_endpoint(VNI + 1)];
    let sender = sender(TAP, &scene.web, Direction::Both, &to);
    scene.agent.establish(&desired(vec![sender], vec![receiver(TAP, VNI + 1, "mirror1")]));
    scene
}

/// Changes something in a network, waits until its state is restored, and checks that both receivers get every frame.
#[track_caller]
fn assert_repaired(scene: &Scene, network: &Network, change: &str) {
    let state = || [network.full_state(), offloads(network)].concat();
    network.wait_for_carrier();
    let before = state();
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
    let remote = Captures::start(&scene.web, scene.remote.network(), "mirror0");
    let local = Captures::start(&scene.web, scene.node.network(), "mirror1");
    scene.traffic();
    local.same(scene, |_| true);
    remote.same(scene, |_| true);
}

#[test]
fn sender_devices_are_repaired() {
    let scene = tapped();
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    assert_repaired(&scene, web, &format!("ip link set {vxlan} down"));
    assert_repaired(&scene, web, &format!("ip link set {vxlan} arp on multicast on"));
    assert_repaired(&scene, web, &format!("tc qdisc del dev {vxlan} clsact"));
    assert_repaired(&scene, web, &format!("tc filter del dev {vxlan} ingress"));
    assert_repaired(&scene, web, &format!("tc filter del dev {vxlan} egress"));
    let accept = "u32 match u32 0 0 classid 1:1";
    assert_repaired(&scene, web, &format!("tc filter add dev {vxlan} egress protocol all prio 1 {accept}"));
    assert_repaired(&scene, web, &format!("ip link del {vxlan}"));
}

#[test]
fn destinations_are_repaired() {
    let scene = tapped();
    let web = scene.web.network();
    let vxlan = web.vxlan_devices()[0].clone();
    let entry = format!("00:00:00:00:00:00 dev {vxlan}");
    assert_repaired(&scene, web, &format!("bridge fdb del {entry} dst 10.66.0.2 port 14789 vni {VNI}"));
    assert_repaired(&scene, web, &format!("bridge fdb del {entry} dst 10.66.0.1 port 14789 vni {}", VNI + 1));
    assert_repaired(&scene, web, &format!("bridge fdb append {entry} dst 10.66.0.9 port 14789 vni {VNI}"));
}

#[test]
fn filters_are_repaired() {
    let scene = tapped();
    let web = scene.web.network();
    assert_repaired(&scene, web, "tc filter del dev eth0 ingress pref 32");
    assert_repaired(&scene, web, "tc filter del dev eth0 egress");
    assert_repaired(&scene, web, "tc qdisc del dev eth0 clsact");
}

#[test]
fn receiver_interfaces_are_repaired() {
    let scene = tapped();
    let node = scene.node.network();
    assert_repaired(&scene, node, "ip link set mirror1 down");
    assert_repaired(&scene, node, "tc qdisc del dev mirror1 clsact");
    assert_repaired(&scene, node, "ip link del mirror1");
}

/// The VXLAN device of a receiver, the veth peer of its interface, and the settings of all three devices.
#[test]
fn other_devices_of_a_receiver_are_repaired() {
    let scene = tapped();
    let node = scene.node.network();
    let vxlan = node.vxlan_devices()[0].clone();
    let peer = node.mirrors(&vxlan)[0].to.clone();
    assert_repaired(&scene, node, &format!("tc filter del dev {vxlan} ingress pref 1"));
    assert_repaired(&scene, node, &format!("tc filter del dev {vxlan} ingress pref 2"));
    assert_repaired(&scene, node, &format!("tc qdisc del dev {vxlan} clsact"));
    let reader = Capture::start(node.path(), "mirror1");
    until_it_segments(node, "mirror1");
    node.run(&format!("ethtool -K {peer} tx on tso on gso on"));
    until_it_segments(node, "mirror1");
    drop(reader);
    assert_repaired(&scene, node, "ethtool -K mirror1 gro on");
    assert_repaired(&scene, node, &format!("ip link set {peer} down"));
    assert_repaired(&scene, node, &format!("ip link set {vxlan} down"));
    assert_repaired(&scene, node, &format!("ip link set {peer} mtu 1000"));
    assert_repaired(&scene, node, "ip link set mirror1 mtu 1000");
    assert_repaired(&scene, node, &format!("tc qdisc del dev {peer} clsact"));
    assert_repaired(&scene, node, &format!("ip link del {peer}"));
    assert_repaired(&scene, node, &format!("ip link del {vxlan}"));
    assert_repaired(&scene, node, &format!("ip link set {peer} netns {}", scene.client.path().display()));
    assert_eq!(scene.client.json("ip -j link show").len(), 2, "the moved device is deleted");
}

/// Without an agent, the helper keeps reconciling the last desired state.
#[test]
fn drift_is_repaired_without_an_agent() {
    let scene = tapped();
    // A new connection replaces the agent's, and is closed at once.
    drop(scene.helper.agent());
    let web = scene.web.network();
    assert_repaired(&scene, web, &format!("ip link del {}", web.vxlan_devices()[0]));
    assert_repaired(&scene, web, "tc qdisc del dev eth0 clsact");
}
