//! Nodes that lose power, and controllers that do.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use podtap_api::{NodeTap, PodTap};
use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox, namespace_of_node, traces},
    wait::until,
};

use crate::{
    controller::{leader, leaders_node},
    helper_pods::helper_of,
    scene::{capture, fdb_destinations, node_address},
};

const TIMEOUT: Duration = Duration::from_secs(90);

/// Taps all pods with the label app=web to an interface on a node.
fn tap_all(sandbox: &Sandbox, node: &str, interface: &str) {
    sandbox.apply(&format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
         targets: {{podSelector: {{matchLabels: {{app: web}}}}}}\n  \
         destinations: [{{node: {{name: {node}, interfaceName: {interface}}}}}]\n"
    ));
    sandbox.ready("web");
}

/// After a drain, both controllers may be on one node. The other one gets the next that is created.
fn spread_controllers() {
    let lab = Cluster::lab();
    until("the controllers are on both nodes", TIMEOUT, || {
        let label = "app.kubernetes.io/component";
        let is_controller = |pod: &Pod| {
            pod.metadata.labels.as_ref().and_then(|labels| labels.get(label)).is_some_and(|of| of == "controller")
        };
        let controllers: Vec<Pod> = lab.list(PODTAP_NAMESPACE).into_iter().filter(is_controller).collect();
        let nodes: BTreeSet<_> = controllers.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
        if nodes.len() == 2 {
            return Ok(());
        }
        let leads = leader();
        let standby = controllers
            .iter()
            .filter_map(|pod| pod.metadata.name.as_deref())
            .find(|name| leads.as_deref() != Some(name));
        if let Some(name) = standby.filter(|_| controllers.len() == 2) {
            lab.kubectl(&["-n", PODTAP_NAMESPACE, "delete", "pod", name], "")?;
        }
        Err(format!("{nodes:?}"))
    });
}

/// A node without power. It is Ready again when this is dropped.
struct PowerOff(&'static str);

impl PowerOff {
    fn new(node: &'static str) -> Self {
        spread_controllers();
        Cluster::lab().tool("lab", &["node-kill", node]).expect("a node can lose power");
        Self(node)
    }
}

impl Drop for PowerOff {
    fn drop(&mut self) {
        if let Err(message) = Cluster::lab().tool("lab", &["node-start", self.0]) {
            eprintln!("{} stays without power: {message}", self.0);
        }
    }
}

#[test]
fn a_dead_node_does_not_block_a_delete_and_comes_back_clean() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("dead-node");
    let lab = sandbox.lab();
    // Until another controller leads, nothing ends.
    let leads = until("a controller leads", TIMEOUT, || leaders_node().ok_or("none does"));
    let [dead, other] = if leads == "n2" { ["n1", "n2"] } else { ["n2", "n1"] };
    sandbox.pod("web", dead, "web");
    tap_all(&sandbox, other, "out-dead");
    lab.tool("lab", &["partition", dead]).expect("a node can be cut off");
    let start = Instant::now();
    let deleted = sandbox.kubectl(&["delete", "podtap", "web", "--timeout=60s"], "");
    let healed = lab.tool("lab", &["heal", dead]);
    deleted.expect("the delete ends although the node does not answer");
    assert!(start.elapsed() < Duration::from_secs(45), "{:?}", start.elapsed());
    healed.expect("a node can be joined again");
    // The pod may have been evicted meanwhile; the node's own namespace must be clean in any case.
    until("the node cleans itself up", TIMEOUT, || {
        let mut left = traces(&namespace_of_node(lab, dead));
        if let Some(pod) = lab.get::<Pod>(sandbox.namespace(), "web")
            && let Ok(network) =
                podtap_tests::cluster::namespace_of_pod(pod.metadata.uid.as_deref().unwrap_or_default())
        {
            left.extend(traces(&network));
        }
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    });
}

#[test]
fn a_node_that_lost_power_is_tapped_again() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("power");
    let lab = sandbox.lab();
    sandbox.pod("web", "n2", "web");
    tap_all(&sandbox, "n1", "out-power");
    let receiver = capture(&namespace_of_node(lab, "n1"), "out-power");
    let off = PowerOff::new("n2");
    until("the tap is not Ready", TIMEOUT, || {
        let status = sandbox.tap("web").status.unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.clone());
        if ready.as_deref() == Some("True") { Err("still Ready") } else { Ok(()) }
    });
    drop(off);
    // The pod is the same object, unless it was evicted: then this creates another one.
    until("the pod exists again", TIMEOUT, || match lab.get::<Pod>(sandbox.namespace(), "web") {
        Some(pod) if pod.metadata.deletion_timestamp.is_none() => Ok(()),
        Some(_) => Err("still being deleted"),
        None => {
            sandbox.start("web", "n2", "web", "sleep 3600");
            Err("recreated")
        }
    });
    until("it is tapped again", TIMEOUT, || {
        let status = sandbox.tap("web").status.unwrap_or_default();
        let conditions: Vec<_> =
            status.conditions.iter().map(|c| format!("{} {} {}", c.type_, c.status, c.message)).collect();
        if status.tapped_pods == 1 { Ok(()) } else { Err(conditions.join("; ")) }
    });
    let seen = receiver.so_far().len();
    until("frames arrive", TIMEOUT, || {
        let _ = sandbox.in_pod("web", "ping -c 1 -W 1 10.96.0.1");
        if receiver.so_far().len() > seen { Ok(()) } else { Err("none") }
    });
}

/// A node that is gone, and one of its name that joins later.
#[test]
fn a_node_that_is_removed_is_left_out_and_may_join_again() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("removed");
    let lab = sandbox.lab();
    let (web, _) = (sandbox.pod("web", "n1", "web"), sandbox.pod("other", "n2", "web"));
    tap_all(&sandbox, "n1", "out-stay");
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: away}\nspec:\n  targets: {podNames: [web]}\n  \
         destinations: [{node: {name: n2, interfaceName: out-away}}]\n",
    );
    sandbox.ready("away");
    let (network, address) = (sandbox.network(&web), node_address("n2"));
    assert!(fdb_destinations(&network).contains(&address), "{:?}", fdb_destinations(&network));
    let off = PowerOff::new("n2");
    lab.kubectl(&["delete", "node", "n2"], "").expect("a node can be removed");
    // As the pod garbage collector does some minutes later.
    sandbox.kubectl(&["delete", "pod", "other", "--force", "--grace-period=0"], "").expect("a pod can be removed");

    sandbox.condition("away", "DestinationsReady", "False", "NodeNotFound");
    sandbox.condition("away", "Ready", "False", "NodeNotFound");
    until("nothing is sent to it", TIMEOUT, || {
        let addresses = fdb_destinations(&network);
        if addresses.contains(&address) { Err(addresses.join(", ")) } else { Ok(()) }
    });
    until("the other node is tapped, and nothing is kept for the one that is gone", TIMEOUT, || {
        let status = sandbox.tap("web").status.unwrap_or_default();
        let nodes: Vec<NodeTap> = lab.list_all();
        let nodes: Vec<String> = nodes.iter().map(kube::ResourceExt::name_any).collect();
        let is_so = (status.matched_pods, status.tapped_pods) == (1, 1) && nodes == ["n1"] && helper_of("n2").is_none();
        if is_so { Ok(()) } else { Err(format!("{nodes:?} {status:?}")) }
    });
    sandbox.ready("web");
    let receiver = capture(&namespace_of_node(lab, "n1"), "out-stay");
    sandbox.in_pod("web", "ping -c 1 -W 1 10.66.0.1").expect("it answers");
    until("frames arrive", TIMEOUT, || if receiver.so_far().is_empty() { Err("none") } else { Ok(()) });

    drop(off);
    sandbox.ready("away");
    assert!(fdb_destinations(&network).contains(&address), "{:?}", fdb_destinations(&network));
    let receiver = capture(&namespace_of_node(lab, "n2"), "out-away");
    until("frames arrive there", TIMEOUT, || {
        let _ = sandbox.in_pod("web", "ping -c 1 -W 1 10.66.0.1");
        if receiver.so_far().is_empty() { Err("none") } else { Ok(()) }
    });
}

#[test]
fn another_controller_takes_over() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("take-over");
    let lab = sandbox.lab();
    sandbox.pod("web", "n1", "web");
    tap_all(&sandbox, "n1", "out-lead");
    let vni = sandbox.tap("web").status.and_then(|s| s.vni);
    let holder = leader().expect("one of them leads");
    lab.kubectl(&["-n", PODTAP_NAMESPACE, "delete", "pod", &holder, "--grace-period=0", "--force"], "")
        .expect("the leader can be removed");
    sandbox.pod("web-2", "n2", "web");
    until("the new pod is tapped by the next leader", TIMEOUT, || {
        let tap: PodTap = sandbox.tap("web");
        let status = tap.status.unwrap_or_default();
        if status.tapped_pods == 2 { Ok(()) } else { Err(format!("{} tapped", status.tapped_pods)) }
    });
    assert_eq!(sandbox.tap("web").status.and_then(|s| s.vni), vni, "the VNI is the same one");
}
