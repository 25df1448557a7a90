//! After all other tests of this tier, the nodes of the lab are as they were before the first one.

use std::{process::Command, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use podtap_api::{NodeTap, PodTap};
use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE, namespace_of_node, traces},
    wait::until,
};
use serde_json::Value;

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
