//! After all other tests of this tier, the nodes of the lab are as they were before the first one.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podtap_api::{NodeTap, PodTap};
use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, namespace_of_node, traces},
    wait::until,
};

#[test]
#[ignore = "runs when all others have ended; `make e2e` does so"]
fn no_tap_left_anything_behind() {
    let lab = Cluster::lab();
    let taps: Vec<PodTap> = lab.list_all();
    assert!(taps.is_empty(), "{} taps are left: their tests should have deleted them", taps.len());
    // Helper pods stay for a minute after the last tap.
    until("the helper pods and NodeTaps are deleted", Duration::from_secs(100), || {
        let pods: Vec<Pod> = lab.list(PODTAP_NAMESPACE);
        let helpers = pods.iter().filter(|p| p.spec.as_ref().is_some_and(|s| s.host_network == Some(true))).count();
        let nodes: Vec<NodeTap> = lab.list_all();
        if (helpers, nodes.len()) == (0, 0) {
            Ok(())
        } else {
            Err(format!("{helpers} helper pods, {} NodeTaps", nodes.len()))
        }
    });
    for node in ["n1", "n2"] {
        assert_eq!(traces(&namespace_of_node(lab, node)), [""; 0], "on {node}");
    }
}
