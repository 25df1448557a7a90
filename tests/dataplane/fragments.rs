//! A receiver on the pod's own node sees fragments as the pod sent them, although the node's connection tracking reassembles and
//! fragments them again.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    time::Duration,
};

use podtap_model::{Direction, Endpoint};
use podtap_tests::{
    capture::{Capture, Difference, Frame, FrameDirection},
    net::Network,
    pcap,
    wait::until,
};

use crate::scene::{Scene, TAP, VNI, desired, local_endpoint, receiver, remote_endpoint, sender};

const PINGS: usize = 10;

/// A tcpdump of the first frames that leave an interface and match a filter. Unlike [`Capture`], it copies each frame when it is sent:
/// the socket of a plain capture shares the data with code that may change it until the frame is read.
struct Tcpdump(Child);

impl Tcpdump {
    fn start(network: &Network, interface: &str, frames: usize, filter: &str) -> Self {
        let count = frames.to_string();
        let arguments =
            ["20", "tcpdump", "--immediate-mode", "-Q", "out", "-i", interface, "-c", &count, "-w", "-", filter];
        let spawn = || Command::new("timeout").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut process = network.within(spawn).expect("tcpdump is installed");
        let mut errors = BufReader::new(process.stderr.take().expect("it is a pipe"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(errors.read_line(&mut line).expect("the pipe is readable") > 0, "tcpdump ended");
        }
        process.stderr = Some(errors.into_inner());
        Self(process)
    }

    /// Waits for the frames.
    fn frames(mut self) -> Vec<Frame> {
        let mut file = Vec::new();
        self.0.stdout.take().expect("it is a pipe").read_to_end(&mut file).expect("the pipe is readable");
        pcap::frames(&file)
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_fragment(frame: &Frame) -> bool {
    match frame.bytes[12..14] {
        [8, 0] => frame.bytes[20] & 0x3f != 0 || frame.bytes[21] != 0,
        [0x86, 0xdd] => frame.bytes[20] == 44,
        _ => false,
    }
}

/// Makes the node forward between its pods and the other node, with connection tracking.
fn forward(scene: &Scene) {
    let node = scene.node.network();
    node.set("ipv4/ip_forward", "1");
    node.set("ipv6/conf/all/forwarding", "1");
    for command in [
        "nft add table inet tracked",
        "nft add chain inet tracked forward { type filter hook forward priority 0 ; }",
        "nft add rule inet tracked forward ct state new,established counter accept",
    ] {
        node.run(command);
    }
    let [ipv4, ipv6] = [scene.web.addresses[0], scene.web.addresses[1]];
    scene.remote.network().ip(&format!("route add {ipv4}/32 via 10.66.0.1\nroute add {ipv6}/128 via fd66::1\n"));
}

fn assert_fragments_are_unchanged(to: &str, filter: &str, destinations: &[Endpoint]) {
    // One MTU everywhere: with a larger one between the nodes, the first reply would be refused as too big.
    let mut scene = Scene::with_underlay(1500);
    forward(&scene);
    let tapped = sender(TAP, &scene.web, Direction::Both, destinations);
    scene.agent.establish(&desired(vec![tapped], vec![receiver(TAP, VNI, "mirror0")]));
    scene.node.network().wait_for_carrier();
    let web = scene.web.network();
    // The addresses are resolved then, and no request is repeated.
    web.run(&format!("ping -q -c 1 -w 20 {to}"));
    let (sent, mirror) =
        (Tcpdump::start(web, "eth0", PINGS * 3, filter), Capture::start(scene.node.network().path(), "mirror0"));
    let output = web.run(&format!("ping -q -c {PINGS} -i 0.01 -W 10 -s 3000 {to}"));
    assert!(output.contains(&format!("{PINGS} received")), "{output}");
    let mac = web.json("ip -j link show dev eth0")[0]["address"].as_str().expect("a text").to_owned();
    let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    // Three of each request, three of each reply.
    until("all fragments arrive", Duration::from_secs(10), || match mirror.count(is_fragment) {
        count if count >= PINGS * 6 => Ok(()),
        count => Err(count.to_string()),
    });
    let sent = sent.frames();
    assert_eq!(sent.len(), PINGS * 3);
    let mut received = mirror.stop();
    // The kernel announces an interface of IPv6 some time after it came up.
    received.retain(|frame| !frame.is_announcement());
    assert!(received.iter().all(|frame| frame.direction == FrameDirection::In));
    // Replies have the pod's address as their destination; nothing else but its own frames is mirrored.
    received.retain(|frame| is_fragment(frame) && frame.bytes[..6] != *mac);
    let difference = Difference::between(&sent, &received);
    assert!(difference.is_none(), "{difference}");
}

#[test]
fn of_ipv4_arrive_at_the_own_node_as_they_were_sent() {
    assert_fragments_are_unchanged("10.66.0.2", "ip[6:2] & 0x3fff != 0", &[local_endpoint(VNI)]);
}

#[test]
fn of_ipv6_arrive_at_the_own_node_as_they_were_sent() {
    assert_fragments_are_unchanged("fd66::2", "ip6[6] = 44", &[local_endpoint(VNI)]);
}

/// With another destination elsewhere, frames reach the own node by another path.
#[test]
fn arrive_at_one_of_two_nodes_as_they_were_sent() {
    let destinations = [local_endpoint(VNI), remote_endpoint(VNI + 1)];
    assert_fragments_are_unchanged("10.66.0.2", "ip[6:2] & 0x3fff != 0", &destinations);
}
