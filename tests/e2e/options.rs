//! Options without a state: which frames a tap mirrors, and how much of each.

use std::time::Duration;

use podtap_tests::{
    capture::{Capture, Difference, Frame, FrameDirection},
    cluster::{Sandbox, in_network, namespace_of_node, udp_socket},
    pcap::{self, File},
    wait::until,
};

use crate::{
    packet::{ICMP, Packet, TCP, UDP},
    scene::{Scene, address, arrives, as_on_the_wire, capture, same_traffic},
};

/// A tap of pods to an interface on n2, with more lines of spec.
pub fn tap(name: &str, pods: &str, interface: &str, options: &str) -> String {
    format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: {name}}}\nspec:\n  \
         targets: {{podNames: [{pods}]}}\n  destinations: [{{node: {{name: n2, interfaceName: {interface}}}}}]\n  \
         {options}\n"
    )
}

/// Message of one of its conditions.
pub fn message(sandbox: &Sandbox, name: &str, condition: &str) -> String {
    let conditions = sandbox.tap(name).status.unwrap_or_default().conditions;
    conditions.into_iter().find(|c| c.type_ == condition).map(|c| c.message).unwrap_or_default()
}

#[test]
fn a_filter_selects() {
    let scene = Scene::new("filter");
    let neighbour = scene.sandbox.pod("neighbour", "n1", "neighbour");
    let (web, client, other) =
        (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client), scene.sandbox.network(&neighbour));
    for network in [&web, &client, &other] {
        as_on_the_wire(network, "eth0");
    }
    let (at_client, at_neighbour) = (address(&scene.client), address(&neighbour));
    let filter = format!(
        "filter:\n    include:\n    - {{protocol: TCP, ports: [{{port: 80}}]}}\n    \
         - {{protocol: UDP, ports: [{{port: 9000, endPort: 9009}}], cidrs: [192.0.2.0/24, {at_client}/32]}}\n    \
         - {{protocol: ICMP}}\n    exclude:\n    - {{ports: [{{port: 9005}}]}}\n    \
         - {{protocol: ICMP, cidrs: [{at_neighbour}/32]}}"
    );
    scene.sandbox.apply(&tap("web", "web", "trt-filter", &filter));
    scene.sandbox.ready("web");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "trt-filter");
    let pod = Capture::start(&web, "eth0");

    scene.traffic();
    for network in [&client, &other] {
        for port in 8999..9012_u16 {
            // No socket listens on these ports, so that each datagram is answered with ICMP.
            let socket = udp_socket(network, 0).expect("a socket can be made");
            socket.send_to(b"datagram", (address(&scene.web), port)).expect("it can be sent");
        }
    }
    in_network(&other, &["ping", "-q", "-c", "3", "-i", "0.1", &address(&scene.web)]);

    let selected = |frame: &Frame| {
        Packet::of(&frame.bytes).is_some_and(|packet| {
            let remote = packet.remote(frame.direction).to_string();
            match packet.protocol {
                TCP => packet.has_port(80..81),
                UDP => packet.has_port(9000..9010) && !packet.has_port(9005..9006) && remote == at_client,
                ICMP => remote != at_neighbour,
                _ => false,
            }
        })
    };
    for direction in [FrameDirection::In, FrameDirection::Out] {
        assert!(pod.count(|frame| frame.direction == direction && !selected(frame)) > 0, "all frames are selected");
    }
    let frames = same_traffic(pod, receiver, selected);
    for (protocol, least) in [(TCP, 1000), (UDP, 9), (ICMP, 22)] {
        let count = frames.iter().filter(|f| Packet::of(&f.bytes).is_some_and(|p| p.protocol == protocol)).count();
        assert!(count >= least, "only {count} of protocol {protocol}");
    }
}

/// Frames of a capture that tcpdump selects.
fn tcpdump(frames: &[Frame], expression: &str) -> Vec<Frame> {
    let bytes: Vec<_> = frames.iter().map(|frame| frame.bytes.clone()).collect();
    let file = File::of(&bytes);
    pcap::tcpdump(file.path(), expression).into_iter().map(|number| frames[number].clone()).collect()
}

#[test]
fn an_expression_means_what_it_means_to_tcpdump() {
    let scene = Scene::new("expression");
    let web = scene.sandbox.network(&scene.web);
    // Otherwise there are GSO packets, whose length is that of several frames.
    as_on_the_wire(&web, "eth0");
    as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    let n2 = namespace_of_node(scene.sandbox.lab(), "n2");
    for expression in [
        "tcp port 80 and greater 100",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 or icmp[icmptype] == icmp-echoreply",
        &format!("ip and not (src host {} and tcp) and (less 100 or udp)", address(&scene.web)),
    ] {
        scene.sandbox.apply(&tap("web", "web", "trt-expr", &format!("filter: {{expression: {expression:?}}}")));
        scene.sandbox.ready("web");
        let receiver = capture(&n2, "trt-expr");
        let pod = Capture::start(&web, "eth0");
        scene.traffic();
        let (all, selected) = (pod.so_far(), tcpdump(&pod.so_far(), expression));
        assert!(
            !selected.is_empty() && selected.len() < all.len(),
            "{expression}: {} of {}",
            selected.len(),
            all.len()
        );
        arrives(&receiver, || tcpdump(&pod.so_far(), expression));
        let (_, _) = (pod.stop(), receiver.stop());
    }
}

/// A frame truncated as a tap truncates it, without the checksum, which covers all bytes.
fn truncated(frame: &Frame, length: impl Fn(&[u8], &Packet) -> usize) -> Option<Frame> {
    let packet = Packet::of(&frame.bytes)?;
    let mut bytes = frame.bytes.clone();
    bytes.truncate(length(&frame.bytes, &packet));
    let checksum = match packet.protocol {
        TCP => 50..52,
        UDP => 40..42,
        _ => 0..0,
    };
    bytes[checksum].fill(0);
    Some(Frame { bytes, ..*frame })
}

#[test]
fn frames_are_truncated() {
    let scene = Scene::new("truncate");
    let web = scene.sandbox.network(&scene.web);
    as_on_the_wire(&web, "eth0");
    as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    let n2 = namespace_of_node(scene.sandbox.lab(), "n2");
    // 20 bytes is less than the headers, which the kernel keeps.
    let taps = [("headers", "headersOnly: true"), ("hundred", "bytes: 100"), ("short", "bytes: 20")];
    let receivers = taps.map(|(name, truncate)| {
        let interface = format!("trt-{name}");
        scene.sandbox.apply(&tap(name, "web", &interface, &format!("truncate: {{{truncate}}}")));
        scene.sandbox.ready(name);
        (name, capture(&n2, &interface))
    });
    let headers = |frame: &[u8], packet: &Packet| match packet.protocol {
        TCP => 34 + usize::from(frame[46] >> 4) * 4,
        _ => 42,
    };
    let pod = Capture::start(&web, "eth0");
    scene.traffic();
    for (name, receiver) in receivers {
        let length = |frame: &[u8], packet: &Packet| if name == "hundred" { 100 } else { headers(frame, packet) };
        until(&format!("{name}: all frames arrive truncated"), Duration::from_secs(10), || {
            let sent: Vec<_> = pod.so_far().iter().filter_map(|frame| truncated(frame, length)).collect();
            let received: Vec<_> =
                receiver.so_far().iter().filter_map(|f| truncated(f, |bytes, _| bytes.len())).collect();
            let difference = Difference::between(&sent, &received);
            if difference.is_none() && sent.len() > 1000 { Ok(()) } else { Err(difference.to_string()) }
        });
        let received: Vec<_> = receiver.stop().into_iter().map(|frame| frame.bytes).collect();
        let file = File::of(&received);
        let full_size = pcap::tshark(file.path(), "ip.len == 1500 and frame.len <= 100");
        assert!(full_size.len() > 1000, "tshark shows the length of {} frames", full_size.len());
    }
    let _ = pod.stop();
}

#[test]
fn too_many_combinations_are_refused() {
    let sandbox = Sandbox::new("combinations");
    sandbox.pod("web", "n1", "web");
    let filter = |networks: usize| {
        let ports: Vec<_> = (0..16).map(|n| format!("{{port: {}}}", 1000 + 2 * n)).collect();
        let networks: Vec<_> = (0..networks).map(|n| format!("10.{}.0.0/16", 2 * n)).collect();
        format!("filter: {{include: [{{ports: [{}], cidrs: [{}]}}]}}", ports.join(", "), networks.join(", "))
    };
    sandbox.apply(&tap("many", "web", "trt-many", &filter(5)));
    sandbox.condition("many", "Ready", "False", "InvalidSpec");
    let words = message(&sandbox, "many", "Ready");
    for part in ["80 combinations of ports and cidrs", "64 are allowed", "filter.expression"] {
        assert!(words.contains(part), "expected “{part}” in “{words}”");
    }
    sandbox.apply(&tap("many", "web", "trt-many", &filter(4)));
    sandbox.ready("many");
}

/// The lab's kernel supports everything; the dataplane tier covers kernels that do not.
#[test]
fn the_kernel_supports_everything() {
    let sandbox = Sandbox::new("features");
    sandbox.pod("web", "n1", "web");
    sandbox.apply(&tap("web", "web", "trt-can", "truncate: {headersOnly: true}\n  sample: {oneInFlows: 2}"));
    sandbox.ready("web");
    sandbox.condition("web", "Degraded", "False", "AsExpected");
    for node in ["n1", "n2"] {
        let features = sandbox
            .kubectl(&["get", "nodetap", node, "-o", "jsonpath={.status.features}"], "")
            .expect("a node with work has a NodeTap");
        assert_eq!(features, r#"{"ebpf":true}"#, "{node}");
    }
}
