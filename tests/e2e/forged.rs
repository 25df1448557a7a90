//! Receivers show only what tapped pods sent or received.

use std::net::Ipv4Addr;

use podtap_tests::{
    capture::{Capture, Frame},
    cluster::{namespace_of_node, udp_socket},
};

use crate::scene::{Scene, as_on_the_wire, capture, node_address, same_traffic};

/// A frame with an EtherType for experiments.
const FORGED: &[u8] =
    b"\x02\x00\x00\x00\x00\xaa\x02\x00\x00\x00\x00\xbb\x88\xb5a frame that no tapped pod sent or received";

#[test]
fn vxlan_from_pods_does_not_reach_a_receiver() {
    let scene = Scene::new("forged");
    let n2 = namespace_of_node(scene.sandbox.lab(), "n2");
    let web = scene.sandbox.network(&scene.web);
    for pod in [&scene.web, &scene.client] {
        as_on_the_wire(&scene.sandbox.network(pod), "eth0");
    }
    scene.sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  \
         targets: {podNames: [web]}\n  destinations: [{node: {name: n2, interfaceName: forged}}]\n",
    );
    let vni = scene.sandbox.ready("web").status.and_then(|status| status.vni).expect("a ready tap has a VNI").get();
    let (at_pod, receiver) = (Capture::start(&web, "eth0"), capture(&n2, "forged"));
    let packet = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), FORGED].concat();
    let address: Ipv4Addr = node_address("n2").parse().expect("the lab is IPv4");
    // The client is on the receiver's node, web on the other one.
    for (pod, to) in [(&scene.client, address), (&scene.client, Ipv4Addr::BROADCAST), (&scene.web, address)] {
        let socket = udp_socket(&scene.sandbox.network(pod), 0).expect("a socket can be made");
        socket.set_broadcast(true).expect("the option can be set");
        for _ in 0..5 {
            socket.send_to(&packet, (to, 14789)).expect("it can be sent");
        }
    }
    scene.traffic();
    let is_forged = |frame: &Frame| frame.bytes == FORGED;
    assert_eq!(receiver.count(is_forged), 0);
    same_traffic(at_pod, receiver, |_| true);
}
