//! The scene of most tests: a node with a pod and a client, a node that receives, and a comparison of captures.

use std::{net::IpAddr, time::Duration};

use podtap_model::{
    Direction, Endpoint, FrameFormat, Instruction, MirrorOptions, Program, ProgramId, Receiver, Tap, TapReference,
};
use podtap_tests::{
    capture::{Capture, Difference, Frame, FrameDirection},
    checksum,
    net::{Agent, Desired, Helper, Network, Node, Pod, Sender, traffic},
    streams::Content,
    wait::until,
};
use serde_json::Value;

/// UDP port of receivers.
pub const PORT: u16 = 14789;
/// The tap of most tests.
pub const TAP: &str = "tap-a";
/// Its VNI.
pub const VNI: u32 = 5001;

/// A pod `web` and a client on one bridge of a node with a helper; a second node, with a helper of its own.
pub struct Scene {
    // Fields are dropped in this order: what uses a node is dropped before the node.
    pub agent: Agent,
    pub remote_agent: Agent,
    pub helper: Helper,
    pub remote_helper: Helper,
    pub client: Network,
    pub web: Pod,
    pub node: Node,
    pub remote: Node,
}

impl Scene {
    /// A scene whose underlay carries full-size frames with VXLAN headers.
    pub fn new() -> Self {
        Self::with_underlay(2000)
    }

    pub fn with_underlay(mtu: u32) -> Self {
        let (node, remote) = Node::pair(mtu);
        let (helper, remote_helper) = (Helper::start(&node), Helper::start(&remote));
        let (web, client) = (Pod::start(&node), node.client());
        let (agent, remote_agent) = (helper.agent(), remote_helper.agent());
        Self { agent, remote_agent, helper, remote_helper, client, web, node, remote }
    }

    /// Enables the offloads that pods have by default, so that the kernel mirrors GSO packets.
    pub fn with_offloads(self) -> Self {
        for network in [&self.client, self.web.network()] {
            network.run("ethtool -K eth0 tso on gso on tx on");
            network.ip("link set eth0 gso_max_segs 65535\n");
        }
        self
    }

    /// Sends pod traffic of every kind, small and full-size, over IPv4 and IPv6, initiated by both sides.
    pub fn traffic(&self) {
        let web = self.web.network();
        for address in &self.web.addresses {
            let full = full_size(*address);
            traffic::ping(&self.client, *address, 0, 3);
            traffic::ping(&self.client, *address, full, 3);
            traffic::udp(&self.client, web, *address, &[0, 1, 17, 18, 512, full - 1, full, full, 0]);
            traffic::tcp(&self.client, web, *address, 40_000);
        }
        for address in self.client_addresses() {
            traffic::ping(web, address, 300, 3);
            traffic::udp(web, &self.client, address, &[1, 1000]);
            traffic::tcp(web, &self.client, address, 10_000);
        }
    }

    pub fn client_addresses(&self) -> Vec<IpAddr> {
        addresses(&self.client)
    }

    /// Establishes a tap of `web` to `mirror0` on the remote node, and captures on both sides.
    pub fn tap_to_remote(&mut self, direction: Direction) -> Captures {
        self.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
        self.agent.establish(&desired(vec![sender(TAP, &self.web, direction, &[remote_endpoint(VNI)])], vec![]));
        Captures::start(&self.web, self.remote.network(), "mirror0")
    }
}

/// Addresses of a client.
pub fn addresses(client: &Network) -> Vec<IpAddr> {
    let links = client.json("ip -j addr show dev eth0 scope global");
    let all = links[0]["addr_info"].as_array().expect("a device has addresses").clone();
    all.iter().map(|entry| entry["local"].as_str().and_then(|text| text.parse().ok()).expect("an address")).collect()
}

/// Largest payload of a datagram or a ping at MTU 1500.
pub fn full_size(address: IpAddr) -> usize {
    if address.is_ipv6() { 1452 } else { 1472 }
}

/// Receivers accept frames from the underlay.
pub fn desired(senders: Vec<Sender>, receivers: Vec<Receiver>) -> Desired {
    let sources = ["10.66.0.0/24", "fd66::/64"].map(|network| network.parse().expect("a network"));
    Desired { generation: 1, senders, receivers, sources: sources.into(), ..Desired::default() }
}

pub fn sender(tap: &str, pod: &Pod, direction: Direction, destinations: &[Endpoint]) -> Sender {
    let TapReference { namespace, name, uid } = tap_reference(tap);
    let tap = Tap {
        namespace,
        name,
        uid,
        interface: None,
        direction,
        destinations: destinations.to_vec(),
        options: MirrorOptions::default(),
        program: None,
        expiration_time: None,
        peers: Vec::new(),
        probe: false,
        metadata: false,
    };
    Sender { tap, pod: pod.model(), details: None, program: None }
}

pub fn receiver(tap: &str, vni: u32, name: &str) -> Receiver {
    Receiver {
        tap: tap_reference(tap),
        vni: vni.try_into().expect("a VNI"),
        port: PORT,
        ipv6: false,
        interface_name: name.parse().expect("an interface name"),
        frame_format: FrameFormat::Wire,
        metadata: false,
        packet_socket: false,
        pod: None,
    }
}

fn tap_reference(uid: &str) -> TapReference {
    TapReference { namespace: "shop".to_owned(), name: "web".to_owned(), uid: uid.parse().expect("a UID") }
}

/// Mirror options, as in a `NodeTap`.
pub fn options(json: Value) -> MirrorOptions {
    serde_json::from_value(json).expect("mirror options")
}

/// Adds an expression that selects every frame: it needs other programs.
pub fn select_all(sender: &mut Sender) {
    let filter = sender.tap.options.filter.get_or_insert_default();
    filter.expression = Some("greater 0".to_owned());
    // `ret #1`
    let instructions = vec![Instruction { code: 6, jt: 0, jf: 0, k: 1 }];
    sender.program = Some(Program { id: ProgramId::from_digest([0; 32]), instructions });
}

/// A receiver on the remote node.
pub fn remote_endpoint(vni: u32) -> Endpoint {
    endpoint([10, 66, 0, 2], vni)
}

/// A receiver on the pod's node.
pub fn local_endpoint(vni: u32) -> Endpoint {
    endpoint([10, 66, 0, 1], vni)
}

/// A receiver at an IPv4 address.
pub fn endpoint(address: [u8; 4], vni: u32) -> Endpoint {
    Endpoint { address: address.into(), port: PORT, vni: vni.try_into().expect("a VNI") }
}

/// Whether a receiver segments, as `ethtool` shows it of the peer of its interface; an error if it does in part.
pub fn segments(network: &Network, interface: &str) -> Result<bool, String> {
    let name = peer(network, interface)["ifname"].as_str().expect("a name").to_owned();
    let features = network.try_run(&["ethtool", "-k", &name], "")?;
    let is_off = ["tx-tcp-segmentation", "tx-udp-segmentation", "tx-checksum-ip-generic"]
        .map(|name| features.lines().any(|line| line.trim() == format!("{name}: off")));
    if is_off.iter().all(|off| *off == is_off[0]) { Ok(is_off[0]) } else { Err(features) }
}

/// The peer of a receiver's interface, as `ip` shows it.
pub fn peer(network: &Network, interface: &str) -> Value {
    let links = network.json(&format!("ip -j link show dev {interface}"));
    let name = links[0]["link"].as_str().expect("it is one of a pair").to_owned();
    network.json(&format!("ip -j link show dev {name}"))[0].clone()
}

/// Waits until a receiver segments for a reader that has just started; five seconds at most, as for any repair.
#[track_caller]
pub fn until_it_segments(network: &Network, interface: &str) {
    until("the receiver segments", Duration::from_secs(5), || match segments(network, interface) {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Captures at a pod and at a receiver of its frames.
pub struct Captures {
    pub pod: Capture,
    pub receiver: Capture,
}

impl Captures {
    /// Starts both, and waits until the receiver segments, unless its frames are raw.
    #[track_caller]
    pub fn start(pod: &Pod, network: &Network, receiver: &str) -> Self {
        let captures = Self::start_without_helper(pod, network, receiver);
        let links = network.json(&format!("ip -j link show dev {receiver}"));
        if links[0]["ifalias"].as_str().is_some_and(|alias| alias.contains("frames=wire")) {
            until_it_segments(network, receiver);
        }
        captures
    }

    /// Starts both while no helper runs, which would make the receiver segment.
    pub fn start_without_helper(pod: &Pod, network: &Network, receiver: &str) -> Self {
        network.wait_for_carrier();
        let receiver = Capture::start(network.path(), receiver);
        Self { pod: Capture::start(pod.network().path(), "eth0"), receiver }
    }

    /// Waits until the receiver has exactly the expected frames of the pod, each as often as the pod, also after one more exchange, whose
    /// frames would arrive after any late ones. Returns the received frames.
    #[track_caller]
    pub fn same(self, scene: &Scene, expected: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let compare = || {
            let comparable = |mut frames: Vec<Frame>| -> Vec<Frame> {
                frames.retain(|frame| !frame.is_announcement());
                for frame in &mut frames {
                    checksum::unify_zero(&mut frame.bytes);
                }
                frames
            };
            let mut sent = comparable(self.pod.so_far());
            sent.retain(&expected);
            let received = comparable(self.receiver.so_far());
            let own = received.iter().find(|frame| frame.direction == FrameDirection::Out);
            assert!(own.is_none(), "the receiver device sends a frame by itself: {own:?}");
            let difference = Difference::between(&sent, &received);
            if difference.is_none() && !received.is_empty() {
                return Ok(());
            }
            // Where in the traffic the lost frames are tells much about why.
            let is_lost = |frame: &Frame| difference.lost.contains_key(&frame.bytes);
            let (first, last) = (sent.iter().position(is_lost), sent.iter().rposition(is_lost));
            let numbers = format!("lost frames are number {first:?} to {last:?}");
            Err(format!("{} frames at the pod, {} received\n{difference}{numbers}", sent.len(), received.len()))
        };
        until("the receiver has the pod's frames", Duration::from_secs(10), compare);
        traffic::ping(&scene.client, scene.web.addresses[0], 77, 2);
        until("the receiver has the pod's frames after one more exchange", Duration::from_secs(10), compare);
        // Panics if a socket itself dropped frames.
        let _ = self.pod.stop();
        self.receiver.stop()
    }
}

/// Waits until a receiver has each byte of the pod's TCP streams as often as the pod. Ignores other frames.
#[track_caller]
pub fn same_streams(at_pod: &Capture, at_receiver: &Capture, streams: usize) {
    until("every byte of every stream arrives", Duration::from_secs(20), || {
        let (sent, received) = (Content::of(&at_pod.so_far()), Content::of(&at_receiver.so_far()));
        let same = sent.streams == received.streams && sent.streams.len() == streams;
        if same { Ok(()) } else { Err(format!("sent:\n{sent}received:\n{received}")) }
    });
}
