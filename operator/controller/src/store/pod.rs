//! Projection of pods: the fields that affect reconciliation, as plain data.
//!
//! Two versions of a pod that differ in nothing relevant are equal here, so that kubelet heartbeats do not wake the leader and ten thousand pods
//! fit into a few megabytes.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    jiff::Timestamp,
};
use podtap_api::is_excluded;
use podtap_model::{ConfigHash, Uid, Workload};

use crate::{
    names,
    store::{unknown_keys::unknown_keys, workload::workload},
};

/// Annotation of a static pod's mirror pod: the UID in the name of its cgroup (kubelet, `pkg/kubelet/types`).
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each mirrors an independent field of the object")]
pub struct CachedPod {
    pub namespace: String,
    pub name: String,
    pub uid: Uid,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    /// Opted out by label or annotation.
    pub excluded: bool,
    /// See [`unknown_keys`]; empty for pods of PodTap itself.
    pub unknown_keys: Vec<String>,
    /// Set as soon as the pod is bound to a node.
    pub node: Option<String>,
    pub host_network: bool,
    /// Primary first; empty until the kubelet has reported them.
    pub addresses: Vec<IpAddr>,
    /// Succeeded or Failed: its network namespace is gone or about to be deleted.
    pub finished: bool,
    pub ready: bool,
    /// When `ready` has changed last. Only of the collector's pods.
    pub ready_changed: Option<Timestamp>,
    pub terminating: bool,
    /// What it belongs to. `None`: only itself, or its node.
    pub workload: Option<Workload>,
    /// Names the cgroup of a static pod.
    pub config_hash: Option<ConfigHash>,
    /// Whether it is a pod of our collector.
    pub is_collector: bool,
    /// Whether it is one that sends frames to sensors.
    pub has_sensors: bool,
    /// Set for our helper pods.
    pub helper: Option<CachedHelper>,
}

/// Additional fields of a helper pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedHelper {
    /// Hash of the template that it was created from.
    pub template: String,
    /// Why the pod Failed or Succeeded, if it did.
    pub ended: Option<ContainerError>,
    /// Why a container does not run, as the kubelet reports it.
    pub container_error: Option<ContainerError>,
}

/// A reason and a message from the kubelet or the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerError {
    pub reason: String,
    pub message: String,
}

impl CachedPod {
    /// Whether the pod has, or had, a network. Until then it sends nothing, and nothing of it is missed.
    pub fn has_started(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// `own_namespace` is the namespace of the helper pods: their labels mean nothing on pods of other namespaces.
    pub fn new(pod: Pod, own_namespace: &str) -> Self {
        let is_collector = is_ours(&pod, own_namespace, names::COLLECTOR);
        let helper = cached_helper(&pod, own_namespace);
        let excluded = is_excluded(&pod.metadata);
        let is_own = pod.metadata.namespace.as_deref() == Some(own_namespace);
        let unknown_keys = if is_own { Vec::new() } else { unknown_keys(&pod.metadata) };
        let meta = pod.metadata;
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let annotation = |name: &str| meta.annotations.as_ref().and_then(|a| a.get(name)).cloned();
        let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
        let mut addresses: Vec<IpAddr> = Vec::new();
        let reported = status.pod_ips.into_iter().flatten().map(|ip| ip.ip);
        for address in status.pod_ip.into_iter().chain(reported).filter_map(|ip| ip.parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let is_static = annotation(CONFIG_MIRROR).is_some();
        Self {
            workload: workload(&meta).filter(|_| !is_static),
            // Users can write the annotation; a hash that no kubelet has written is ignored.
            config_hash: annotation(CONFIG_HASH).filter(|_| is_static).and_then(|hash| hash.parse().ok()),
            uid: names::uid(&meta),
            excluded,
            unknown_keys,
            node: spec.node_name.filter(|name| !name.is_empty()),
            host_network: spec.host_network.unwrap_or_default(),
            addresses,
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_changed: ready
                .filter(|_| is_collector)
                .and_then(|c| c.last_transition_time.as_ref())
                .map(|time| time.0),
            terminating: meta.deletion_timestamp.is_some(),
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            labels: meta.labels.unwrap_or_default(),
            is_collector,
            has_sensors: is_collector && spec.containers.iter().any(|container| container.name == names::SENSOR),
            helper,
        }
    }
}

/// Whether it is a pod of this component of PodTap. Its labels mean nothing in other namespaces.
fn is_ours(pod: &Pod, own_namespace: &str, component: &str) -> bool {
    let label = |name: &str| pod.metadata.labels.as_ref().and_then(|l| l.get(name)).map(String::as_str);
    pod.metadata.namespace.as_deref() == Some(own_namespace)
        && label(names::LABEL_NAME) == Some(names::PRODUCT)
        && label(names::LABEL_COMPONENT) == Some(component)
}

fn cached_helper(pod: &Pod, own_namespace: &str) -> Option<CachedHelper> {
    if !is_ours(pod, own_namespace, names::HELPER) {
        return None;
    }
    let annotations = pod.metadata.annotations.as_ref();
    let template = annotations.and_then(|a| a.get(names::TEMPLATE_HASH)).cloned().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")).then(|| ContainerError {
        reason: status.reason.clone().or_else(|| status.phase.clone()).unwrap_or_default(),
        message: status.message.clone().unwrap_or_default(),
    });
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    Some(CachedHelper { template, ended, container_error: containers.find_map(container_error) })
}

fn container_error(container: &ContainerStatus) -> Option<ContainerError> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    // Normal start-up.
    if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
        return None;
    }
    let message = waiting.message.as_deref().unwrap_or_default();
    let message = match container.last_state.as_ref().and_then(|state| state.terminated.as_ref()) {
        Some(last) => {
            let reason = last.reason.as_deref().unwrap_or("terminated");
            format!("{message} (container {}: {reason}, exit code {})", container.name, last.exit_code)
        }
        None => message.to_owned(),
    };
    Some(ContainerError { reason: reason.to_owned(), message: without_pause(&message) })
}

/// Removes the growing pause from the kubelet's "back-off 20s restarting ...": a message that changes with each attempt would cause
/// a write with each attempt.
fn without_pause(message: &str) -> String {
    match message.strip_prefix("back-off ").and_then(|rest| rest.split_once(' ')) {
        Some((_, rest)) => format!("back-off {rest}"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::object;

    #[test]
    fn the_kubelets_message_is_found() {
        let mut object: Pod = object(serde_json::json!({
            "metadata": {
                "namespace": "podtap-system", "name": "h",
                "labels": {"app.kubernetes.io/name": "podtap", "app.kubernetes.io/component": "helper"},
            },
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "agent", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
                {"name": "tap-helper", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                 "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}},
                 "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}},
            ]},
        }));
        let container_error =
            |pod: &Pod| CachedPod::new(pod.clone(), "podtap-system").helper.expect("a helper").container_error;
        let error = container_error(&object).expect("an error");
        assert_eq!(error.reason, "CrashLoopBackOff");
        assert_eq!(error.message, "back-off restarting failed container (container tap-helper: Error, exit code 1)");
        let status = object.status.as_mut().expect("a status").container_statuses.as_mut().expect("some");
        status[1].state.as_mut().expect("a state").waiting.as_mut().expect("waiting").reason =
            Some("ContainerCreating".into());
        assert_eq!(container_error(&object), None);
    }
}
