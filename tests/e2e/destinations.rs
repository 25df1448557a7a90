//! All kinds of destinations, alone and together.

use podtap_tests::{
    capture::{Capture, FrameDirection},
    cluster::{Cluster, namespace_of_node},
};

use crate::scene::{Scene, allow_external, as_on_the_wire, capture, outside, same_traffic};

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
struct Endpoint {
    name: String,
}

impl Endpoint {
    fn new(name: &str, vni: u32) -> Self {
        allow_external(&outside());
        Cluster::lab()
            .on_node(
                "cp",
                &format!(
                    "ip link add {name} type vxlan id {vni} dstport 4789 nolearning && \
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
    podtap_tests::wait::until("the other pod takes over", std::time::Duration::from_secs(20), || {
        let pod = destination_pod(&scene);
        if pod == "ids-b" { Ok(()) } else { Err(pod) }
    });
    let receiver = capture(&scene.sandbox.network(&next), "tap0");
    scene.sandbox.ready("web");
    let seen = receiver.so_far().len();
    scene.traffic();
    podtap_tests::wait::until("frames arrive at the other pod", std::time::Duration::from_secs(10), || {
        let now = receiver.so_far().len();
        if now > seen + 100 { Ok(()) } else { Err(now) }
    });
}

fn destination_pod(scene: &Scene) -> String {
    let status = scene.sandbox.tap("web").status.expect("a ready tap has a status");
    status.destinations.first().and_then(|destination| destination.pod.clone()).unwrap_or_default()
}
