//! What is kept of a pod.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Pod as Object, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff,
};
use podtap_flow::{
    Timestamp,
    names::{Pod, Workload, syntax::is_name},
};

use super::owners::{Owner, first_owner};

/// Labels that tell generations of a workload apart, and nothing about it.
const OF_GENERATIONS: [&str; 4] =
    ["pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name"];
/// Annotation of a static pod's mirror pod (kubelet, `pkg/kubelet/types`).
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod before it is known what it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// Its workload is the pod itself.
    pub pod: Pod,
    pub owner: Option<Owner>,
    /// The name that its users give to its workload.
    pub workload_name: Option<String>,
    /// Whether it has ended, also if nothing tells when.
    pub is_over: bool,
    /// When it was noticed, if no kubelet had started it by then.
    pub noticed: Option<Timestamp>,
}

impl Projection {
    /// `None` if it has no UID: no API server returns that.
    pub fn new(object: Object, annotation: &str) -> Option<Self> {
        let (meta, spec, status) =
            (object.metadata, object.spec.unwrap_or_default(), object.status.unwrap_or_default());
        let (uid, name, node) =
            (meta.uid?, meta.name.unwrap_or_default(), spec.node_name.filter(|name| !name.is_empty()));
        let annotations = meta.annotations.as_ref();
        let is_mirror = annotations.is_some_and(|annotations| annotations.contains_key(CONFIG_MIRROR));
        let workload_name = annotations.and_then(|annotations| annotations.get(annotation)).cloned();
        let labels = meta.labels.into_iter().flatten().filter(|(key, _)| !OF_GENERATIONS.contains(&key.as_str()));
        // The owner of a static pod is its node, and its name ends with that of the node.
        let suffix = node.as_ref().filter(|_| is_mirror).map(|node| format!("-{node}"));
        let own_name = suffix.and_then(|suffix| name.strip_suffix(&suffix)).unwrap_or(&name).to_owned();
        Some(Self {
            owner: meta.owner_references.filter(|_| !is_mirror).and_then(first_owner),
            // What is not a name could be anything to the programs that read the map.
            workload_name: workload_name.filter(|name| is_name(name)),
            is_over: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            noticed: None,
            pod: Pod {
                namespace: meta.namespace.unwrap_or_default(),
                uid,
                addresses: addresses(&status),
                node,
                host_network: spec.host_network.unwrap_or_default(),
                workload: Workload { kind: "Pod".to_owned(), name: own_name, api_version: "v1".to_owned() },
                started: status.start_time.as_ref().map_or(Timestamp(0), timestamp),
                ended: ended(&status),
                end_is_estimate: false,
                labels: std::sync::Arc::new(labels.collect()),
                name,
            },
        })
    }
}

impl Projection {
    /// Takes over when it was noticed from what was `known` of it. Kubelets tell whole seconds of when they started it, in which another
    /// pod may still have had its address: it cannot have been before it was noticed.
    pub fn notice(&mut self, known: Option<&Self>, now: Timestamp) {
        let started = self.pod.started;
        let is_new = known.is_none() && started == Timestamp(0);
        self.noticed = known.map_or(is_new.then_some(now), |known| known.noticed);
        if let Some(noticed) = self.noticed.filter(|_| started != Timestamp(0)) {
            self.pod.started = noticed.clamp(started, started.plus(Duration::from_secs(1)));
        }
    }
}

fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let reported = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<IpAddr> =
        status.pod_ip.as_deref().into_iter().chain(reported).filter_map(|address| address.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// When its last container ended, if all have: its address is free for another pod from then on. Kubelets report whole seconds.
fn ended(status: &PodStatus) -> Option<Timestamp> {
    // Sidecars are among the init containers, and end last.
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let finished = containers.map(|container| {
        let terminated = container.state.as_ref()?.terminated.as_ref()?;
        terminated.finished_at.as_ref().map(timestamp)
    });
    let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let last = finished.collect::<Option<Vec<_>>>()?.into_iter().max()?;
    is_over.then(|| last.plus(Duration::from_secs(1)))
}

pub fn timestamp(time: &Time) -> Timestamp {
    let since = time.0.duration_since(jiff::Timestamp::UNIX_EPOCH);
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ANNOTATION: &str = "intents.otterize.com/workload-name";

    fn projection(metadata: &Value, spec: &Value, status: &Value) -> Projection {
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        Projection::new(serde_json::from_value(object).expect("a pod"), ANNOTATION).expect("it has a UID")
    }

    #[test]
    fn what_names_need_is_kept() {
        let found = projection(
            &json!({"namespace": "shop", "name": "web-1", "uid": "u", "annotations": {ANNOTATION: "front"},
                "labels": {"app": "web", "pod-template-hash": "7c9f"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9f", "uid": "r"}]}),
            &json!({"nodeName": "n1", "containers": []}),
            &json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "startTime": "2026-01-01T00:00:01Z",
                "phase": "Running"}),
        );
        assert_eq!(found.pod.addresses.len(), 2, "each once");
        assert_eq!(*found.pod.labels, [("app".to_owned(), "web".to_owned())].into(), "without those of generations");
        assert_eq!(found.pod.started, Timestamp::from_seconds(1_767_225_601));
        assert_eq!((found.pod.ended, found.workload_name.as_deref()), (None, Some("front")));
        assert_eq!(found.owner.expect("it has one").workload.kind, "ReplicaSet");
    }

    #[test]
    fn a_static_pod_is_called_as_its_file() {
        let found = projection(
            &json!({"namespace": "kube-system", "name": "etcd-n1", "uid": "u", "annotations": {CONFIG_MIRROR: "x"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n"}]}),
            &json!({"nodeName": "n1", "hostNetwork": true, "containers": []}),
            &json!({}),
        );
        let expected = Workload { kind: "Pod".into(), name: "etcd".into(), api_version: "v1".into() };
        assert_eq!((found.pod.workload, found.owner, found.pod.host_network), (expected, None, true));
    }

    #[test]
    fn a_pod_has_not_started_before_it_was_noticed() {
        let version = |start: Option<&str>| {
            let pod = json!({"metadata": {"uid": "u", "name": "web"}, "status": {"startTime": start}});
            Projection::new(serde_json::from_value(pod).expect("a pod"), "x/y").expect("it has a UID")
        };
        let start = 1_767_225_600_000_000_000;
        let started = |noticed: Option<u64>| {
            let mut known = noticed.map(|at| {
                let mut first = version(None);
                first.notice(None, Timestamp(at));
                first
            });
            for _ in 0..2 {
                let mut next = version(Some("2026-01-01T00:00:00Z"));
                next.notice(known.as_ref(), Timestamp(start + 5_000_000_000));
                known = Some(next);
            }
            known.expect("it was noticed").pod.started.0 - start
        };
        // Nanoseconds. The kubelet's clock may be another one.
        for (noticed, expected) in [(300_000_000, 300_000_000), (1_700_000_000, 1_000_000_000)] {
            assert_eq!(started(Some(start + noticed)), expected, "{noticed}");
        }
        assert_eq!((started(Some(start - 3_000_000_000)), started(None)), (0, 0));
    }

    #[test]
    fn a_pod_has_ended_when_its_last_container_has() {
        let ended = |phase: &str, states: &[Value]| {
            let statuses: Vec<Value> = states
                .iter()
                .map(|state| json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}))
                .collect();
            projection(
                &json!({"namespace": "shop", "name": "job", "uid": "u"}),
                &json!({"containers": []}),
                &json!({"phase": phase, "containerStatuses": statuses}),
            )
            .pod
            .ended
        };
        let at =
            |second: &str| json!({"terminated": {"exitCode": 0, "finishedAt": format!("2026-01-01T00:00:0{second}Z")}});
        let running = json!({"running": {}});
        assert_eq!(ended("Succeeded", &[at("1"), at("3")]), Some(Timestamp::from_seconds(1_767_225_604)));
        assert_eq!(ended("Running", &[at("1"), running]), None);
        assert_eq!(ended("Running", &[at("1")]), None, "it is about to be restarted");
        assert_eq!(ended("Failed", &[]), None, "nothing tells when");
    }
}
