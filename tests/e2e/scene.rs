//! What most tests need: a web server, a client on the other node, and captures on both sides of a tap.

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod},
};
use podtap_api::NodeTap;
use podtap_model::Tap;
use podtap_tests::{
    capture::{Capture, Frame},
    checksum,
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox, in_network, namespace_of_node, udp_socket},
    net::Network,
    streams::Content,
    wait::until,
};
use serde_json::Value;

/// A web server on n1 with the label app=web, and a client on n2.
pub struct Scene {
    pub sandbox: Sandbox,
    pub web: Pod,
    pub client: Pod,
}

impl Scene {
    pub fn new(test: &str) -> Self {
        Self::of(Sandbox::new(test))
    }

    /// For a test that holds `Cluster::alone`.
    pub fn alone(test: &str) -> Self {
        Self::of(Sandbox::alone(test))
    }

    fn of(sandbox: Sandbox) -> Self {
        // Full-size mirrored frames may be fragmented, and a receiving kernel under load drops reordered fragments
        // (`ip_frag_too_far`, net/ipv4/ip_fragment.c): see docs/troubleshooting.md. These tests are about the mirror.
        for node in ["n1", "n2", "cp"] {
            in_network(&namespace_of_node(sandbox.lab(), node), &["sysctl", "-qw", "net.ipv4.ipfrag_max_dist=0"]);
        }
        sandbox.start("web", "n1", "web", "mkdir /w; dd if=/dev/zero of=/w/f bs=1k count=2000; httpd -f -h /w -p 80");
        sandbox.start("client", "n2", "client", "sleep 3600");
        let (web, client) = (sandbox.running("web"), sandbox.running("client"));
        until("the web server answers", Duration::from_secs(20), || {
            sandbox.in_pod("client", &format!("wget -q -O /dev/null http://{}/f", address(&web)))
        });
        Self { sandbox, web, client }
    }

    /// Requests, pings and datagrams in both directions, small and full-size.
    pub fn traffic(&self) {
        let web = address(&self.web);
        let script = format!(
            "set -e; ping -q -c 5 -i 0.1 {web} >/dev/null; ping -q -c 3 -i 0.1 -s 1472 {web} >/dev/null; \
             wget -q -O /dev/null http://{web}/f; for i in 1 2 3; do wget -q -O /dev/null http://{web}/f?$i; done"
        );
        self.sandbox.in_pod("client", &script).expect("the client reaches the web server");
        // No socket listens on this port, so that each datagram is answered with ICMP.
        let socket = udp_socket(&self.sandbox.network(&self.client), 0).expect("a socket can be made");
        for length in [10, 500, 1472] {
            socket.send_to(&vec![b'x'; length], (web.as_str(), 9999)).expect("it can be sent");
        }
        self.sandbox
            .in_pod("web", &format!("ping -q -c 3 -i 0.1 -s 1000 {} >/dev/null", address(&self.client)))
            .expect("the web server reaches the client");
    }
}

/// Waits until every node with a pod of the tap knows the addresses of that many pods as peers, and has applied it.
#[track_caller]
pub fn deduplicates(sandbox: &Sandbox, tap: &str, pods: usize) {
    until(&format!("{tap}: {pods} peers"), Duration::from_secs(20), || {
        let nodes: Vec<NodeTap> = sandbox.lab().list_all();
        let is_it = |entry: &&Tap| entry.name == tap && entry.namespace == sandbox.namespace();
        let entries: Vec<(usize, bool)> = nodes
            .iter()
            .filter_map(|node| {
                let observed = node.status.as_ref().and_then(|status| status.observed_generation);
                let entry = node.spec.0.taps.iter().find(is_it)?;
                Some((entry.peers.len(), observed == node.metadata.generation))
            })
            .collect();
        let is_known = !entries.is_empty() && entries.iter().all(|entry| *entry == (pods, true));
        if is_known { Ok(()) } else { Err(format!("{entries:?}")) }
    });
}

/// Primary address of a pod.
pub fn address(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|s| s.pod_ip.clone()).expect("a running pod has an address")
}

/// Internal address of a node.
pub fn node_address(name: &str) -> String {
    let nodes: Vec<Node> = Cluster::lab().list_all();
    let node = nodes.into_iter().find(|n| n.metadata.name.as_deref() == Some(name)).expect("the node exists");
    let addresses = node.status.and_then(|s| s.addresses).expect("a node has addresses");
    addresses.into_iter().find(|a| a.type_ == "InternalIP").expect("one of them is internal").address
}

/// A tap `web` of the pod `web` to an interface of a node; returns when it is Ready.
#[track_caller]
pub fn tap(sandbox: &Sandbox, node: &str, interface: &str) {
    sandbox.apply(&format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
         targets: {{podNames: [web]}}\n  destinations: [{{node: {{name: {node}, interfaceName: {interface}}}}}]\n"
    ));
    sandbox.ready("web");
}

/// The addresses that the devices of a pod's taps send to, as `bridge` shows them.
pub fn fdb_destinations(network: &Path) -> Vec<String> {
    let entries = in_network(network, &["bridge", "-j", "fdb", "show"]);
    // Some versions print nothing instead of an empty list.
    let entries = if entries.trim().is_empty() { "[]" } else { &entries };
    let entries: Vec<Value> = serde_json::from_str(entries).expect("bridge prints JSON");
    entries.iter().filter_map(|entry| entry["dst"].as_str().map(str::to_owned)).collect()
}

/// Address of the namespace that connects the nodes.
pub fn outside() -> String {
    let address = node_address("n1");
    let (network, _) = address.rsplit_once('.').expect("the lab is IPv4");
    format!("{network}.1")
}

/// Lets taps send to the endpoint of the lab's tests.
pub fn allow_external(address: &str) {
    let policy = format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTapPolicy\nmetadata: {{name: default}}\n\
         spec: {{allowedExternalCIDRs: [{address}/32]}}\n"
    );
    // Server-side, because several tests do it at the same time.
    let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    Cluster::lab().kubectl(&arguments, &policy).expect("a policy can be created");
}

/// No policy, so that nothing may be sent outside of the cluster, until the test allows it. When this is dropped, there is none again. For
/// tests that hold `Cluster::alone`.
pub struct NoPolicy(());

impl NoPolicy {
    pub fn new() -> Self {
        Self::delete().expect("an administrator may");
        Self(())
    }

    fn delete() -> Result<String, String> {
        Cluster::lab().kubectl(&["delete", "--ignore-not-found", "podtappolicy", "default"], "")
    }
}

impl Drop for NoPolicy {
    fn drop(&mut self) {
        if let Err(message) = Self::delete() {
            eprintln!("{message}");
        }
    }
}

/// Makes an interface show frames as they are on the wire: no GSO packets, checksums filled in.
pub fn as_on_the_wire(network: &Path, interface: &str) {
    in_network(
        network,
        &["ethtool", "-K", interface, "tso", "off", "gso", "off", "gro", "off", "tx", "off", "rx", "off"],
    );
    // TCP builds GSO packets even for devices without segmentation offload; it respects this limit.
    in_network(network, &["ip", "link", "set", interface, "gso_max_segs", "1"]);
    // With larger windows, more frames may be in flight than the queues between the nodes hold (net.core.netdev_max_backlog, 1000 frames),
    // and a busy machine drops some, those of the pod and mirrored ones.
    in_network(network, &["sysctl", "-q", "-w", "net.ipv4.tcp_rmem=4096 65536 65536"]);
}

/// Waits until the receiver has what `selected` selects at the pod, and nothing else; see [`arrives`].
#[track_caller]
pub fn same_traffic(pod: Capture, receiver: Capture, selected: impl Fn(&Frame) -> bool) -> Vec<Frame> {
    arrives(&receiver, || {
        let mut sent = completed(pod.so_far());
        sent.retain(&selected);
        sent
    });
    // Stopping a capture fails if its own socket lost frames.
    let _ = pod.stop();
    receiver.stop()
}

/// Waits until the receiver has the frames, each byte of TCP and each other frame exactly as often, and nothing else. Ignores what
/// kernels send by themselves at any time, because it may fall between the starts of two captures.
/// Panics if this takes longer than ten seconds.
#[track_caller]
pub fn arrives(receiver: &Capture, frames: impl Fn() -> Vec<Frame>) {
    arrives_among(receiver, |_| true, frames);
}

/// The same among the received frames that `selected` selects.
#[track_caller]
pub fn arrives_among(receiver: &Capture, selected: impl Fn(&Frame) -> bool, frames: impl Fn() -> Vec<Frame>) {
    // Frames in flight may still arrive; duplicate or foreign ones do not disappear.
    until("the receiver has what the pod has", Duration::from_secs(10), || {
        let mut received = receiver.so_far();
        received.retain(&selected);
        let (sent, received) = (completed(frames()), completed(received));
        if received.is_empty() {
            return Err(format!("{} frames at the pod, none at the receiver", sent.len()));
        }
        Content::of(&sent).difference(&Content::of(&received)).map_or(Ok(()), Err)
    });
}

/// The frames without IPv6 announcements, and with the checksums that the kernel has left to a device.
fn completed(mut frames: Vec<Frame>) -> Vec<Frame> {
    frames.retain(|frame| !frame.is_announcement());
    for frame in &mut frames {
        checksum::complete(&mut frame.bytes);
        checksum::unify_zero(&mut frame.bytes);
    }
    frames
}

/// Applies an example of a tap to the pod `ids`, but to an interface on n2 instead, and waits until it is ready and deduplicates the flows
/// between that many pods.
#[track_caller]
pub fn apply_example(sandbox: &Sandbox, file: &str, tap: &str, interfaces: [&str; 2], pods: usize) {
    let example = fs::read_to_string(sandbox.lab().top().join("examples").join(file)).expect("the example exists");
    let (pod, node) = ("pod:\n        name: ids", "node:\n        name: n2");
    let [from, to] = interfaces.map(|name| format!("interfaceName: {name}"));
    let example = example.replace(pod, node).replace(&from, &to);
    assert!(example.contains(node) && example.contains(&to), "{example}");
    sandbox.apply(&example);
    sandbox.ready(tap);
    deduplicates(sandbox, tap, pods);
}

/// Waits until a receiver exists, and captures its interface.
#[track_caller]
pub fn capture(network: &Path, interface: &str) -> Capture {
    let capture =
        until(&format!("a capture at {interface}"), Duration::from_secs(20), || Capture::try_start(network, interface));
    Network::open(network).wait_for_carrier();
    // Otherwise the kernel joins segments that arrive together.
    in_network(network, &["ethtool", "-K", interface, "gro", "off"]);
    capture
}

/// Sets values of the chart in the lab, and waits until its pods are ready.
pub fn set_values(lab: &Cluster, values: &str) -> Result<String, String> {
    upgrade(lab, "--set", values)
}

/// Likewise, a value that is not only text.
pub fn set_json(lab: &Cluster, name: &str, value: &Value) -> Result<String, String> {
    upgrade(lab, "--set-json", &format!("{name}={value}"))
}

fn upgrade(lab: &Cluster, option: &str, value: &str) -> Result<String, String> {
    let chart = lab.top().join("deploy/chart/podtap");
    let chart = chart.to_str().expect("a path of letters");
    let options = ["--reset-then-reuse-values", option, value, "--wait", "--timeout", "120s"];
    lab.helm(&[&["upgrade", "podtap", chart][..], &options].concat())
}

/// Deploys CoreDNS in the lab, once.
pub fn enable_dns(lab: &Cluster) {
    static ENABLED: OnceLock<()> = OnceLock::new();
    ENABLED.get_or_init(|| {
        lab.tool("lab", &["dns"]).expect("CoreDNS can be deployed");
    });
}

/// Enables the collector of the chart in the lab, once.
pub fn enable_collector(lab: &Cluster) {
    static ENABLED: OnceLock<()> = OnceLock::new();
    ENABLED.get_or_init(|| {
        if lab.get::<Deployment>(PODTAP_NAMESPACE, "podtap-collector").is_none() {
            set_values(lab, "collector.enabled=true").expect("helm works");
        }
    });
}

/// The collector of the chart with these values, until this is dropped.
pub struct CollectorValues {
    lab: &'static Cluster,
    reset: Value,
}

impl CollectorValues {
    /// `reset`: those that it has otherwise.
    pub fn set(lab: &'static Cluster, values: &Value, reset: Value) -> Self {
        // Reset also if that fails: some of them may be set.
        let this = Self { lab, reset };
        set_json(lab, "collector", values).expect("helm works");
        this
    }
}

impl Drop for CollectorValues {
    fn drop(&mut self) {
        if let Err(message) = set_json(self.lab, "collector", &self.reset) {
            eprintln!("{message}");
        }
    }
}
