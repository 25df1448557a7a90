//! One tap of all pods with two sensors, as the example has it: each packet reaches each sensor once.

use std::{fs, net::Ipv4Addr};

use podtap_api::{ClusterPodTap, NodeTap};
use podtap_tests::{
    capture::{Capture, Frame},
    cluster::{Cluster, Sandbox, namespace_of_node},
    wait::{PATIENCE, until},
};

use crate::{
    destinations::Endpoint,
    packet::{ICMP, Packet},
    scene::{Scene, address, arrives_among, as_on_the_wire, capture, outside},
};

const TAP: &str = "to-sensors";
const VNI: u32 = 5301;
/// Of the second sensor: both have the address of the lab's only endpoint.
const SECOND_PORT: u16 = 4790;

/// What the test changes in the cluster, restored when it ends.
struct Changes<'a>(&'a Sandbox);

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        for arguments in [
            &["delete", "clusterpodtap", TAP, "--ignore-not-found", "--timeout=60s"][..],
            &["label", "node", "n1", "extrahop/norpcapd-"],
            &["taint", "node", "n2", "node-role.kubernetes.io/control-plane-"],
        ] {
            if let Err(message) = self.0.kubectl(arguments, "") {
                eprintln!("{arguments:?}: {message}");
            }
        }
    }
}

/// The example, with endpoints of the lab.
fn example() -> String {
    let file = Cluster::lab().top().join("examples/cluster-tap-sensors.yaml");
    let text = fs::read_to_string(file).expect("the example exists");
    let [first, second] = ["address: 192.0.2.11\n", "address: 192.0.2.12\n"];
    assert!(text.contains(first) && text.ends_with(second), "{text}");
    let text = text.replace(first, &format!("address: {}\n", outside()));
    let second_endpoint = format!("address: {}\n        port: {SECOND_PORT}\n  vxlan: {{vni: {VNI}}}\n", outside());
    text.replace(second, &second_endpoint)
}

/// Waits until the tap mirrors on these nodes only, and each knows the addresses of all tapped pods, if there are several.
fn deduplicates(sandbox: &Sandbox, expected: &[&str]) {
    until(&format!("{expected:?} are tapped, and known as peers"), PATIENCE, || {
        let text = sandbox.kubectl(&["get", "clusterpodtap", TAP, "-o", "json"], "")?;
        let status = serde_json::from_str::<ClusterPodTap>(&text).expect("it is one").status.unwrap_or_default();
        let is_ready =
            status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let tapped = usize::try_from(status.tapped_pods).expect("it is positive");
        // The only tapped pod has no peer. Whether there are others on the node depends on what else runs in the lab.
        let expected_peers = if tapped > 1 { tapped } else { 0 };
        let nodes: Vec<NodeTap> = sandbox.lab().list_all();
        let mut active = 0;
        for node in &nodes {
            let Some(tap) = node.spec.0.taps.iter().find(|tap| tap.name == TAP) else { continue };
            let status = node.status.as_ref();
            let is_applied = status.and_then(|status| status.observed_generation) == node.metadata.generation;
            if tap.peers.len() != expected_peers || !is_applied {
                return Err(format!("{:?} has {} of {expected_peers} peers", node.metadata.name, tap.peers.len()));
            }
            active += 1;
        }
        if is_ready && active == expected.len() { Ok(()) } else { Err(format!("{active} nodes; {status:?}")) }
    });
}

#[test]
fn each_sensor_gets_each_packet_of_all_pods_once() {
    // Alone, because it taps the pods of other tests, too.
    let _alone = Cluster::alone();
    let scene = Scene::alone("sensors");
    let sandbox = &scene.sandbox;
    let _changes = Changes(sandbox);
    let _endpoints =
        [(4789, "sensor-one"), (SECOND_PORT, "sensor-two")].map(|(port, name)| Endpoint::at(port, name, VNI));
    let networks = [&scene.web, &scene.client].map(|pod| sandbox.network(pod));
    for network in &networks {
        as_on_the_wire(network, "eth0");
    }
    // As kubeadm marks control-plane nodes.
    let taint = ["taint", "node", "n2", "node-role.kubernetes.io/control-plane=:NoSchedule", "--overwrite"];
    sandbox.kubectl(&taint, "").expect("a node can be tainted");
    sandbox.apply(&example());
    deduplicates(sandbox, &["n1", "n2"]);

    let [web, client]: [Ipv4Addr; 2] =
        [&scene.web, &scene.client].map(|pod| address(pod).parse().expect("the lab is IPv4"));
    let is_of_both = |frame: &Frame| {
        Packet::of(&frame.bytes).is_some_and(|packet| {
            let ends = [packet.source, packet.destination];
            ends.contains(&web) && ends.contains(&client)
        })
    };
    // From the client, which has the higher ports; without ports, from the higher address.
    let is_from_web =
        |frame: &Frame| web > client && Packet::of(&frame.bytes).is_some_and(|packet| packet.protocol == ICMP);
    let check = |is_from_web: &dyn Fn(&Frame) -> bool| {
        let outside = namespace_of_node(sandbox.lab(), "cp");
        let sensors = ["sensor-one", "sensor-two"].map(|interface| capture(&outside, interface));
        let pods = networks.each_ref().map(|network| Capture::start(network, "eth0"));
        scene.traffic();
        for sensor in &sensors {
            arrives_among(sensor, is_of_both, || {
                let [mut at_web, mut at_client] = pods.each_ref().map(Capture::so_far);
                at_web.retain(|frame| is_of_both(frame) && is_from_web(frame));
                at_client.retain(|frame| is_of_both(frame) && !is_from_web(frame));
                [at_web, at_client].concat()
            });
        }
        let _ = (sensors.map(Capture::stop), pods.map(Capture::stop));
    };
    check(&is_from_web);

    // A node that is left out: the other end mirrors everything, still once.
    sandbox.kubectl(&["label", "node", "n1", "extrahop/norpcapd=yes"], "").expect("a node can be labelled");
    deduplicates(sandbox, &["n2"]);
    check(&|_| false);

    // With the outside, in both directions.
    let sensors =
        ["sensor-one", "sensor-two"].map(|interface| capture(&namespace_of_node(sandbox.lab(), "cp"), interface));
    // Of a length that no other frame has.
    sandbox.in_pod("client", &format!("ping -q -c 3 -i 0.1 -s 77 {}", outside())).expect("it is answered");
    let is_ping = |frame: &Frame| frame.bytes.len() == 14 + 20 + 8 + 77;
    for sensor in &sensors {
        until("each request and each answer arrives once", PATIENCE, || match sensor.count(is_ping) {
            6 => Ok(()),
            count => Err(count),
        });
    }
    let _ = sensors.map(Capture::stop);
}
