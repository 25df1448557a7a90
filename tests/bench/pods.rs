//! One tap of many pods on a node.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podtap_tests::wait::until;
use serde_json::json;

use crate::{
    columns::{Column, Receiver},
    rounds::Bench,
    table::{PRODUCT, Table},
};

const ROWS: [(usize, &str, &str, &str); 2] = [
    (50, "TCP, 1 flow, 50 tapped pods", "UDP 64 B, 50 tapped pods", "apply -> Ready, 50 pods"),
    (250, "TCP, 1 flow, 250 tapped pods", "UDP 64 B, 250 tapped pods", "apply -> Ready, 250 pods"),
];
/// How long the lab may take to start them.
const TIMEOUT: Duration = Duration::from_secs(300);

pub fn measure(bench: &Bench<'_>) -> Table {
    let mut table = ROWS.into_iter().fold(Table::new("pods"), |table, (_, tcp, udp, ready)| {
        table.row(tcp, "Gbit/s", "as with one").row(udp, "packets/s", "as with one").row(ready, "s", "-")
    });
    for (pods, tcp, udp, ready) in ROWS {
        // One of them is the pod `web`, whose traffic is measured.
        start(bench, pods - 1);
        let spec = json!({"targets": {
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "many"]}]}, "maxPods": pods,
        }});
        let (one, many) = (Column::podtap("PodTap, one pod", json!({})), Column::podtap(PRODUCT, spec));
        bench.compare(
            &[Column::Untapped, one, many],
            Receiver::Drops,
            &mut table,
            |table, round, column, running| {
                if column.name() == PRODUCT {
                    table.record(ready, column.name(), round, Ok(running.ready_after.as_secs_f64()));
                    let tap: podtap_api::PodTap = bench.stage.sandbox.tap("bench");
                    let tapped = tap.status.map(|status| status.tapped_pods);
                    assert_eq!(tapped.and_then(|count| usize::try_from(count).ok()), Some(pods), "Ready says so");
                }
                table.record(tcp, column.name(), round, bench.gigabits(1, false));
                table.record(udp, column.name(), round, bench.datagrams(1, false));
            },
            |table, round, column, why| table.record(tcp, column.name(), round, Err(why)),
        );
    }
    bench.stage.sandbox.kubectl(&["delete", "deployment", "many", "--timeout=120s"], "").expect("it exists");
    table
}

/// Starts as many other pods on the node of the pod `web`, and returns when they run.
fn start(bench: &Bench<'_>, count: usize) {
    let sandbox = &bench.stage.sandbox;
    sandbox.apply(
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"}, "spec": {
            "replicas": count,
            "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": {"labels": {"app": "many"}}, "spec": {
                "nodeName": "n1", "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "podtap.dev/busybox:1", "imagePullPolicy": "Never", "command": ["sleep", "3600"]}],
            }},
        }})
        .to_string(),
    );
    until(&format!("{count} pods run"), TIMEOUT, || {
        let pods: Vec<Pod> = sandbox.lab().list(sandbox.namespace());
        let running = pods.iter().filter(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.metadata.name.as_ref().is_some_and(|name| name.starts_with("many-")) && phase == Some("Running")
        });
        let running = running.count();
        if running == count { Ok(()) } else { Err(format!("{running} of {count}")) }
    });
}
