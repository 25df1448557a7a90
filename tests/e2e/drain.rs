//! Nodes that are drained.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podtap_api::NodeTap;
use podtap_tests::{
    capture::{Capture, Frame},
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox, namespace_of_node, traces},
    wait::until,
};

use crate::{
    helper_pods::helper_of,
    scene::{capture, node_address, same_traffic},
};

const TIMEOUT: Duration = Duration::from_secs(60);

/// A Deployment on n1, as long as that may be, and a tap of its pods and others, to n2.
const WORKLOAD: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {of: deployment}}
  template:
    metadata: {labels: {app: web, of: deployment}}
    spec:
      terminationGracePeriodSeconds: 3
      automountServiceAccountToken: false
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n1]}]}
      containers:
      - {name: main, image: 'podtap.dev/busybox:1', imagePullPolicy: Never, command: [sh, -c, sleep 3600]}
---
apiVersion: podtap.dev/v1alpha1
kind: PodTap
metadata: {name: web}
spec:
  targets: {podSelector: {matchLabels: {app: web}}}
  filter: {include: [{protocol: ICMP}]}
  destinations: [{node: {name: n2, interfaceName: drn-tap}}]
";

/// Makes n1 schedulable again.
struct Uncordon;

impl Drop for Uncordon {
    fn drop(&mut self) {
        if let Err(message) = Cluster::lab().kubectl(&["uncordon", "n1"], "") {
            eprintln!("n1 stays cordoned: {message}");
        }
    }
}

/// Pods on n1 that nothing would recreate, which kubectl refuses to delete: those of earlier tests, which are being deleted.
fn without_controller() -> Vec<String> {
    let pods: Vec<Pod> = Cluster::lab().list_all();
    let is_in_the_way = |pod: &&Pod| {
        let owners = pod.metadata.owner_references.iter().flatten();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let is_helper = pod.spec.as_ref().is_some_and(|spec| spec.host_pid == Some(true));
        node == Some("n1") && !is_helper && !owners.into_iter().any(|owner| owner.controller == Some(true))
    };
    pods.iter().filter(is_in_the_way).filter_map(|pod| pod.metadata.name.clone()).collect()
}

fn is_icmp(frame: &Frame) -> bool {
    frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 1
}

#[test]
fn a_node_with_a_helper_pod_is_drained_and_other_nodes_do_not_notice() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("drain");
    let lab = sandbox.lab();
    until("n1 has no pods of earlier tests", TIMEOUT, || match without_controller() {
        pods if pods.is_empty() => Ok(()),
        pods => Err(pods.join(", ")),
    });
    let stays = sandbox.pod("stays", "n2", "web");
    sandbox.apply(WORKLOAD);
    until("two pods are tapped", TIMEOUT, || match sandbox.tap("web").status.unwrap_or_default().tapped_pods {
        2 => Ok(()),
        tapped => Err(format!("{tapped} tapped")),
    });
    assert!(helper_of("n1").is_some(), "the Deployment's pod is on n1");
    let receiver = capture(&namespace_of_node(lab, "n2"), "drn-tap");
    let sent = Capture::start(&sandbox.network(&stays), "eth0");

    let _uncordon = Uncordon;
    let ping = format!("ping -q -i 0.1 -c 100 {} >/dev/null", node_address("n1"));
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| sandbox.in_pod("stays", &ping));
        lab.kubectl(&["drain", "n1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"], "")
            .expect("the node can be drained");
        pinging.join().expect("the thread does not panic").expect("n1 answers, drained or not");
    });
    until("n1 has no helper pod and no NodeTap any more", TIMEOUT, || {
        let nodes: Vec<NodeTap> = lab.list_all();
        let node_tap = nodes.iter().any(|node| node.metadata.name.as_deref() == Some("n1"));
        match (helper_of("n1").and_then(|pod| pod.metadata.name), node_tap) {
            (None, false) => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
    assert_eq!(traces(&namespace_of_node(lab, "n1")), [""; 0]);
    until("the Deployment's pod is tapped where it is now", TIMEOUT, || {
        let status = sandbox.tap("web").status.unwrap_or_default();
        if (status.matched_pods, status.tapped_pods) == (2, 2) { Ok(()) } else { Err(format!("{status:?}")) }
    });
    sandbox.ready("web");
    same_traffic(sent, receiver, is_icmp);
}

/// What it runs is still to be watched, and an administrator may start pods there.
#[test]
fn a_cordoned_node_is_tapped() {
    let _alone = Cluster::alone();
    let sandbox = Sandbox::alone("cordon");
    sandbox.lab().kubectl(&["cordon", "n1"], "").expect("a node can be cordoned");
    let _uncordon = Uncordon;
    let first = helper_of("n1").and_then(|pod| pod.metadata.name);
    if let Some(name) = &first {
        let delete = ["-n", PODTAP_NAMESPACE, "delete", "pod", name.as_str(), "--timeout=60s"];
        sandbox.lab().kubectl(&delete, "").expect("a helper pod can be deleted");
    }
    let web = sandbox.pod("web", "n1", "web");
    sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  targets: {podNames: [web]}\n  \
         filter: {include: [{protocol: ICMP}]}\n  \
         destinations: [{node: {name: n1, interfaceName: drn-cordon}}]\n",
    );
    sandbox.ready("web");
    assert_ne!(helper_of("n1").and_then(|pod| pod.metadata.name), first, "the helper pod was started there");
    let receiver = capture(&namespace_of_node(sandbox.lab(), "n1"), "drn-cordon");
    let sent = Capture::start(&sandbox.network(&web), "eth0");
    sandbox.in_pod("web", &format!("ping -q -c 3 -i 0.1 {}", node_address("n1"))).expect("the node answers");
    same_traffic(sent, receiver, is_icmp);
}
