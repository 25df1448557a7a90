//! After all other tests of this tier, and the last tap, the nodes of the lab are as they were before the first one.

use std::{process::Command, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use podtap_api::{NodeTap, PodTap};
use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, Sandbox, namespace_of_node, namespace_of_pod, traces},
    wait::until,
};
use serde_json::Value;

use crate::{helper_pods::helper_of, scene::tap};

#[test]
#[ignore = "runs when all others have ended; `make e2e` does so"]
fn helper_pods_end_a_minute_after_the_last_tap_and_nothing_is_left() {
    let lab = Cluster::lab();
    let taps: Vec<PodTap> = lab.list_all();
    assert!(taps.is_empty(), "{} taps are left: their tests should have deleted them", taps.len());
    let sandbox = Sandbox::new("last");
    let network = sandbox.network(&sandbox.pod("web", "n1", "web"));
    tap(&sandbox, "n2", "res-last");
    let pods = ["n1", "n2"].map(|node| helper_of(node).expect("a node with a target or a receiver has a helper pod"));
    sandbox.kubectl(&["delete", "podtap", "web"], "").expect("a tap can be deleted");
    let names = |pods: &[Pod]| pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
    let stay = ["n1", "n2"].map(|node| helper_of(node).expect("it stays for a minute"));
    assert_eq!(names(&stay), names(&pods));
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
    for pod in pods {
        let uid = pod.metadata.uid.expect("a stored pod has a UID");
        until("its processes end", Duration::from_secs(30), || namespace_of_pod(&uid).err().ok_or("they run"));
    }
    for node in ["n1", "n2"] {
        assert_eq!(traces(&namespace_of_node(lab, node)), [""; 0], "on {node}");
    }
    assert_eq!(traces(&network), [""; 0], "in the pod");
    // Programs are in no namespace. The kernel frees them a moment after the last filter or process that used them.
    until(
        "no eBPF program of PodTap is loaded on this machine, in this lab or another one",
        Duration::from_secs(30),
        || {
            let programs = programs();
            if programs.is_empty() { Ok(()) } else { Err(programs.join(", ")) }
        },
    );
}

fn programs() -> Vec<String> {
    let output = Command::new("bpftool").args(["-j", "prog", "show"]).output().expect("make e2e installs bpftool");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let programs: Vec<Value> = serde_json::from_slice(&output.stdout).expect("bpftool prints JSON");
    let names = programs.iter().filter_map(|program| program["name"].as_str());
    names.filter(|name| name.starts_with("podtap_")).map(str::to_owned).collect()
}
