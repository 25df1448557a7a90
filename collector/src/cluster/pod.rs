//! What is kept of a pod.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1::{Pod as Object, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff,
};
use podtap_flow::{
    Timestamp,
    names::{Pod, Workload},
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
            workload_name: workload_name.filter(|name| !name.is_empty()),
            pod: Pod {
                namespace: meta.namespace.unwrap_or_default(),
                uid,
                addresses: addresses(&status),
                node,
                host_network: spec.host_network.unwrap_or_default(),
                workload: Workload { kind: "Pod".to_owned(), name: own_name, api_version: "v1".to_owned() },
                started: status.start_time.as_ref().map_or(Timestamp(0), timestamp),
                ended: ended(&status),
                labels: labels.collect(),
                name,
            },
        })
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
    let containers = status.container_statuses.as_deref().filter(|containers| !containers.is_empty())?;
    let finished = containers.iter().map(|container| {
        let terminated = container.state.as_ref()?.terminated.as_ref()?;
        terminated.finished_at.as_ref().map(timestamp)
    });
    let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let last = finished.collect::<Option<Vec<_>>>()?.into_iter().max()?;
    is_over.then(|| last.plus(std::time::Duration::from_secs(1)))
}

pub fn timestamp(time: &Time) -> Timestamp {
    let since = time.0.duration_since(jiff::Timestamp::UNIX_EPOCH);
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or_default())
}
