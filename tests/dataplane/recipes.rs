//! The README's recipe for an external endpoint, as it is printed.

use std::time::Duration;

use podtap_model::{Direction, Endpoint};
use podtap_tests::{
    capture::{Capture, Difference, Frame},
    net::{Network, Node, traffic},
    wait::until,
};

use crate::scene::{Captures, Scene, TAP, desired, remote_endpoint, sender};

const VNI: u32 = 77;

/// Runs the recipe on a node, and returns the network of the interface `mirror`.
fn receive(node: &Node) -> Network {
    let lines = include_str!("../../README.md").lines();
    let block = lines.skip_while(|line| *line != "    ip netns add sensor").map_while(|line| line.strip_prefix("    "));
    // The tests capture by themselves.
    let commands: Vec<&str> = block.filter(|command| !command.contains("tcpdump")).collect();
    assert!(commands.len() > 3, "{commands:?}");
    node.shell(&commands.join("\n").replace("VNI", &VNI.to_string()));
    let network = node.named_network("sensor");
    // Coalesced frames cannot be compared with those of the pod.
    network.run("ethtool -K mirror gro off");
    network
}

fn tapped(scene: &mut Scene) {
    let to = Endpoint { port: 4789, ..remote_endpoint(VNI) };
    scene.agent.establish(&desired(vec![sender(TAP, &scene.web, Direction::Both, &[to])], vec![]));
}

#[test]
fn an_external_endpoint_shows_every_frame_once() {
    let mut scene = Scene::new();
    let sensor = receive(&scene.remote);
    tapped(&mut scene);
    let captures = Captures::start(&scene.web, &sensor, "mirror");
    scene.traffic();
    captures.same(&scene, |_| true);
}

/// The address moves to the pod's own node, which forwards, while no helper runs that would refuse it: the kernel delivers the mirrored
/// frames without encapsulation, marked as sent to this host.
#[test]
fn an_external_endpoint_on_the_pods_node_cannot_loop() {
    let mut scene = Scene::new();
    let sensor = receive(&scene.node);
    tapped(&mut scene);
    scene.helper.kill();
    let node = scene.node.network();
    for (setting, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
        node.set(setting, value);
    }
    node.ip("addr add 10.66.0.2/32 dev lo\n");
    let at_pod = Capture::start(scene.web.network().path(), "eth0");
    let at_sensor = Capture::start(sensor.path(), "mirror");
    scene.traffic();
    for step in ["all frames arrive once", "nothing else arrives after another exchange"] {
        until(step, Duration::from_secs(10), || {
            let [sent, received] = [&at_pod, &at_sensor].map(|capture| comparable(capture.so_far()));
            let difference = Difference::between(&sent, &received);
            if difference.is_none() && !sent.is_empty() { Ok(()) } else { Err(difference.to_string()) }
        });
        traffic::ping(&scene.client, scene.web.addresses[0], 77, 2);
    }
    let routed: Vec<Frame> = at_pod.stop().into_iter().filter(is_routed).collect();
    assert!(routed.is_empty(), "{} frames came back: {:?}", routed.len(), routed[0]);
}

/// The frames without their checksums: without encapsulation, those that a device would compute arrive as they are.
fn comparable(mut frames: Vec<Frame>) -> Vec<Frame> {
    frames.retain(|frame| !frame.is_announcement());
    for frame in &mut frames {
        let (protocol, header) = match frame.bytes.get(12..14) {
            Some([8, 0]) => (frame.bytes[23], 34),
            Some([0x86, 0xdd]) => (frame.bytes[20], 54),
            _ => continue,
        };
        let at = match protocol {
            6 => header + 16,
            17 => header + 6,
            _ => continue,
        };
        // Later fragments have no such header, and no frame of the traffic is fragmented.
        frame.bytes[at..at + 2].fill(0);
    }
    frames
}

/// Whether a router has forwarded a frame. The pod and the client are on one network.
fn is_routed(frame: &Frame) -> bool {
    match frame.bytes.get(12..14) {
        Some([8, 0]) => frame.bytes[22] < 64,
        // Multicast listener reports have a limit of 1.
        Some([0x86, 0xdd]) => (2..64).contains(&frame.bytes[21]),
        _ => false,
    }
}
