//! The time from `apply` to the first mirrored frame at the receiver.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use podtap_api::{NodeTap, PodTap};
use podtap_tests::{
    capture::Capture,
    cluster::{Cluster, Sandbox, namespace_of_node},
    wait::until,
};

use crate::{interrupt, report::Report};

const ROUNDS: usize = 30;
/// Each takes the minute after which idle helper pods are deleted.
const COLD_ROUNDS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A frame of the pod every two milliseconds, so that the wait for the next one does not matter.
struct Pings(Child);

impl Pings {
    fn start(network: &Path, address: &str) -> Self {
        let child = Command::new("nsenter")
            .arg(format!("--net={}", network.display()))
            .args(["ping", "-q", "-i", "0.002", "-w", "600", address])
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("ping runs"))
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn tap(sandbox: &Sandbox, interface: &str) -> PodTap {
    let tap = serde_json::json!({
        "apiVersion": "podtap.dev/v1alpha1", "kind": "PodTap", "metadata": {"name": interface, "namespace": sandbox.namespace()},
        "spec": {"targets": {"podNames": ["web"]}, "destinations": [{"node": {"name": "n2", "interfaceName": interface}}]}
    });
    serde_json::from_value(tap).expect("a tap")
}

/// Milliseconds from sending the request to the API server to the first frame at the receiver.
fn round(sandbox: &Sandbox, node: &Path, interface: &str) -> f64 {
    let lab = Cluster::lab();
    let api: Api<PodTap> = Api::namespaced(lab.client(), sandbox.namespace());
    let tap = tap(sandbox, interface);
    let start = Instant::now();
    lab.wait(api.create(&PostParams::default(), &tap)).expect("a tap can be made");
    let first = loop {
        if let Ok(capture) = Capture::try_start(node, interface) {
            break until("the first frame", TIMEOUT, || capture.so_far().first().map(|f| f.at).ok_or("none"));
        }
        assert!(start.elapsed() < TIMEOUT, "no receiver device");
        std::thread::sleep(Duration::from_millis(1));
    };
    let milliseconds = first.duration_since(start).as_secs_f64() * 1e3;
    sandbox.kubectl(&["delete", "podtap", interface], "").expect("a tap can be deleted");
    milliseconds
}

/// With helper pods on both nodes.
pub fn warm(sandbox: &Sandbox, pods: &[Pod; 2], report: &mut Report) {
    let (pod, node) = (sandbox.network(&pods[0]), namespace_of_node(sandbox.lab(), "n2"));
    let peer = pods[1].status.as_ref().and_then(|s| s.pod_ip.clone()).expect("a running pod has an address");
    let _pings = Pings::start(&pod, &peer);
    let _first = round(sandbox, &node, "warm-up");
    let samples =
        (0..ROUNDS).take_while(|_| !interrupt::stopped()).map(|i| round(sandbox, &node, &format!("warm{i}"))).collect();
    report.add("apply -> first mirrored frame, helper pods there", "p50 < 150, p95 < 500 ms", "ms", samples);
}

/// Without helper pods, which are deleted a minute after the last tap.
pub fn cold(sandbox: &Sandbox, pods: &[Pod; 2], report: &mut Report) {
    let (pod, node) = (sandbox.network(&pods[0]), namespace_of_node(sandbox.lab(), "n2"));
    let peer = pods[1].status.as_ref().and_then(|s| s.pod_ip.clone()).expect("a running pod has an address");
    let _pings = Pings::start(&pod, &peer);
    let samples = (0..COLD_ROUNDS)
        .take_while(|_| !interrupt::stopped())
        .map(|i| {
            until("the helper pods are deleted", Duration::from_secs(120), || {
                let left: Vec<NodeTap> = sandbox.lab().list_all();
                let helpers = sandbox.lab().list::<Pod>(podtap_tests::cluster::PODTAP_NAMESPACE);
                let helpers =
                    helpers.iter().filter(|p| p.spec.as_ref().is_some_and(|s| s.host_network == Some(true))).count();
                if left.is_empty() && helpers == 0 { Ok(()) } else { Err(format!("{} {helpers}", left.len())) }
            });
            round(sandbox, &node, &format!("cold{i}"))
        })
        .collect();
    report.add("the same, cold (helper pods must start)", "< 4000 ms", "ms", samples);
}
