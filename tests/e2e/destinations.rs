//! All kinds of destinations, alone and together.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use podtap_tests::{
    capture::{Capture, FrameDirection},
    cluster::{Cluster, in_network, namespace_of_node},
    wait::until,
};
use serde_json::json;

use crate::{
    numbered::{PORT, a_while, each_arrives, under_load},
    processes::Stopped,
    scene::{
        Scene, allow_external, as_on_the_wire, capture, fdb_destinations, node_address, outside, same_traffic, tap,
    },
};

/// Applies a tap of app=web with these destinations, waits until it is ready, and checks that each of the receivers
/// that `receivers` opens gets each frame of the pod exactly once.
fn check(scene: &Scene, destinations: &str, vni: u32, receivers: impl Fn() -> Vec<Capture>) {
    let network = scene.sandbox.network(&scene.web);
    as_on_the_wire(&network, "eth0");
    as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    scene.sandbox.apply(&format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
         targets: {{podSelector: {{matchLabels: {{app: web}}}}}}\n  destinations: {destinations}\n  vxlan: {{vni: {vni}}}\n"
    ));
    scene.sandbox.ready("web");
    // One capture of the pod per receiver, because a comparison ends both.
    let receivers = receivers();
    let pods: Vec<_> = receivers.iter().map(|_| Capture::start(&network, "eth0")).collect();
    scene.traffic();
    for (pod, receiver) in pods.into_iter().zip(receivers) {
        let frames = same_traffic(pod, receiver, |_| true);
        assert!(frames.len() > 1000, "only {} frames of the traffic arrived", frames.len());
    }
}

#[test]
fn another_node() {
    let scene = Scene::new("other-node");
    let network = namespace_of_node(scene.sandbox.lab(), "n2");
    check(&scene, "[{node: {name: n2, interfaceName: dst-other}}]", 5201, || vec![capture(&network, "dst-other")]);
}

#[test]
fn the_pods_own_node() {
    let scene = Scene::new("own-node");
    let network = namespace_of_node(scene.sandbox.lab(), "n1");
    check(&scene, "[{node: {name: n1, interfaceName: dst-own}}]", 5202, || vec![capture(&network, "dst-own")]);
}

#[test]
fn a_pod_on_another_node() {
    let scene = Scene::new("other-pod");
    let ids = scene.sandbox.pod("ids", "n2", "ids");
    let network = scene.sandbox.network(&ids);
    check(&scene, "[{pod: {name: ids, interfaceName: tap0}}]", 5203, || vec![capture(&network, "tap0")]);
}

#[test]
fn a_pod_on_the_same_node() {
    let scene = Scene::new("own-pod");
    let ids = scene.sandbox.pod("ids", "n1", "ids");
    let network = scene.sandbox.network(&ids);
    check(&scene, "[{pod: {podSelector: {matchLabels: {app: ids}}, interfaceName: tap0}}]", 5204, || {
        vec![capture(&network, "tap0")]
    });
}

/// A VXLAN endpoint in the namespace that connects the nodes, created with `ip`, independently of `PodTap`.
pub struct Endpoint {
    name: String,
}

impl Endpoint {
    fn new(name: &str, vni: u32) -> Self {
        Self::at(4789, name, vni)
    }

    /// At another port than others with this VNI.
    pub fn at(port: u16, name: &str, vni: u32) -> Self {
        allow_external(&outside());
        Cluster::lab()
            .on_node(
                "cp",
                &format!(
                    "ip link add {name} type vxlan id {vni} dstport {port} nolearning && \
                 ip link set {name} addrgenmode none arp off && ip link set {name} up"
                ),
            )
            .expect("the endpoint can be created");
        Self { name: name.to_owned() }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = Cluster::lab().on_node("cp", &format!("ip link del {}", self.name));
    }
}

#[test]
fn an_external_endpoint() {
    let scene = Scene::new("external");
    let _endpoint = Endpoint::new("ext-one", 5205);
    let network = namespace_of_node(scene.sandbox.lab(), "cp");
    check(&scene, &format!("[{{external: {{address: {}}}}}]", outside()), 5205, || vec![capture(&network, "ext-one")]);
}

#[test]
fn all_at_once() {
    let scene = Scene::new("all");
    let ids = scene.sandbox.pod("ids", "n2", "ids");
    let _endpoint = Endpoint::new("ext-all", 5206);
    let lab = scene.sandbox.lab();
    let (inside, outside_network) = (scene.sandbox.network(&ids), namespace_of_node(lab, "cp"));
    let (n1, n2) = (namespace_of_node(lab, "n1"), namespace_of_node(lab, "n2"));
    let destinations = format!(
        "[{{name: two, node: {{name: n2, interfaceName: all-two}}}}, {{name: one, node: {{name: n1, interfaceName: all-one}}}}, \
         {{name: ids, pod: {{name: ids, interfaceName: tap0}}}}, {{name: probe, external: {{address: {}}}}}]",
        outside()
    );
    check(&scene, &destinations, 5206, || {
        vec![
            capture(&n2, "all-two"),
            capture(&n1, "all-one"),
            capture(&inside, "tap0"),
            capture(&outside_network, "ext-all"),
        ]
    });
}

#[test]
fn one_direction_only() {
    let scene = Scene::new("one-way");
    let n2 = namespace_of_node(scene.sandbox.lab(), "n2");
    let web = scene.sandbox.network(&scene.web);
    as_on_the_wire(&web, "eth0");
    as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    for direction in ["Ingress", "Egress"] {
        let name = format!("way-{}", direction.to_lowercase());
        scene.sandbox.apply(&format!(
            "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: {name}}}\nspec:\n  \
             targets: {{podNames: [web]}}\n  direction: {direction}\n  \
             destinations: [{{node: {{name: n2, interfaceName: {name}}}}}]\n"
        ));
        scene.sandbox.ready(&name);
    }
    let taps = ["way-ingress", "way-egress"].map(|name| (capture(&n2, name), Capture::start(&web, "eth0")));
    scene.traffic();
    let [(ingress, all_in), (egress, all_out)] = taps;
    same_traffic(all_in, ingress, |f| f.direction == FrameDirection::In);
    same_traffic(all_out, egress, |f| f.direction == FrameDirection::Out);
}

#[test]
fn a_deleted_consumer_is_replaced() {
    let scene = Scene::new("replace");
    scene.sandbox.pod("ids-a", "n2", "ids");
    scene.sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  \
         targets: {podNames: [web]}\n  \
         destinations: [{pod: {podSelector: {matchLabels: {app: ids}}, interfaceName: tap0}}]\n",
    );
    scene.sandbox.ready("web");
    let next = scene.sandbox.pod("ids-b", "n1", "ids");
    assert_eq!(destination_pod(&scene), "ids-a", "the oldest ready pod stays the destination");
    scene.sandbox.kubectl(&["delete", "pod", "ids-a", "--wait=false"], "").expect("a pod can be deleted");
    until("the other pod takes over", Duration::from_secs(20), || {
        let pod = destination_pod(&scene);
        if pod == "ids-b" { Ok(()) } else { Err(pod) }
    });
    let receiver = capture(&scene.sandbox.network(&next), "tap0");
    scene.sandbox.ready("web");
    let seen = receiver.so_far().len();
    scene.traffic();
    until("frames arrive at the other pod", Duration::from_secs(10), || {
        let now = receiver.so_far().len();
        if now > seen + 100 { Ok(()) } else { Err(now) }
    });
}

fn destination_pod(scene: &Scene) -> String {
    let status = scene.sandbox.tap("web").status.expect("a ready tap has a status");
    status.destinations.first().and_then(|destination| destination.pod.clone()).unwrap_or_default()
}

/// Another address of a node, until this is dropped.
struct Address {
    node: PathBuf,
    address: String,
}

impl Address {
    fn add(node: &Path, address: &str) -> Self {
        let this = Self { node: node.to_path_buf(), address: format!("{address}/24") };
        in_network(node, &["ip", "address", "replace", &this.address, "dev", "eth0"]);
        this
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        in_network(&self.node, &["ip", "address", "del", &self.address, "dev", "eth0"]);
    }
}

/// As when DHCP gives the node another address: the Node object has it, and the node.
#[test]
fn a_node_whose_address_changes_is_sent_to_where_it_is() {
    const NEXT: &str = "10.66.0.112";
    let _alone = Cluster::alone();
    let scene = Scene::alone("address");
    let lab = scene.sandbox.lab();
    tap(&scene.sandbox, "n2", "dst-addr");
    let (pod, node) = (scene.sandbox.network(&scene.web), namespace_of_node(lab, "n2"));
    let first = node_address("n2");
    assert_eq!(fdb_destinations(&pod), [first.as_str()]);
    let _address = Address::add(&node, NEXT);
    let receiver = capture(&node, "dst-addr");
    let moved_to = |address: &str| {
        until(&format!("{address} is sent to"), Duration::from_secs(60), || match fdb_destinations(&pod) {
            addresses if addresses == [address] => Ok(()),
            addresses => Err(addresses.join(", ")),
        });
    };
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        // It would write the address that it was started with.
        let kubelet = Stopped::new("n2", "[ \"$(cat $p/comm)\" = kubelet ]");
        let addresses = [("InternalIP", NEXT), ("Hostname", "n2")];
        let addresses = addresses.map(|(kind, address)| json!({"type": kind, "address": address}));
        let patch = json!({"status": {"addresses": addresses}}).to_string();
        lab.kubectl(&["patch", "node", "n2", "--subresource=status", "--type=merge", "-p", &patch], "")
            .expect("the status of a node can be written");
        moved_to(NEXT);
        a_while(sent);
        drop(kubelet);
        moved_to(&first);
        a_while(sent);
    });
    // The kernel replaces a destination by two requests. What is sent between them goes to both addresses.
    assert_eq!(each_arrives(&receiver, PORT, sent, 2), 0, "the first datagram arrives, too");
    scene.sandbox.ready("web");
}
