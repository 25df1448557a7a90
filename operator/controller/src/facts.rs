//! What the controller remembers of an object: the few fields that decide something, as plain data.
//!
//! Two versions of an object that differ in nothing that matters are equal here, so that a kubelet's heartbeat wakes
//! nobody, and ten thousand pods fit into a few megabytes.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod},
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use podtap_api::{
    EXCLUDE, FINALIZER, NodeTap, NodeTapSpec, NodeTapStatus, PodTap, PodTapPolicy, PodTapPolicySpec, PodTapSpec,
    PodTapStatus,
};

use super::{helper_pod, names, network::Network};

/// Annotation of a static pod's mirror: the UID that its cgroup has (kubelet, `pkg/kubelet/types`).
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct PodFact {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: Timestamp,
    pub labels: BTreeMap<String, String>,
    /// Opted out by label or annotation.
    pub excluded: bool,
    /// Set from the moment that it is bound to a node.
    pub node: Option<String>,
    pub host_network: bool,
    /// Primary first; empty until the kubelet has reported them.
    pub addresses: Vec<IpAddr>,
    /// Succeeded or Failed: its network namespace is gone, or about to go.
    pub finished: bool,
    pub ready: bool,
    pub terminating: bool,
    pub cgroup_uid: Option<String>,
    /// What else is needed of a helper pod of ours.
    pub helper: Option<HelperFact>,
}

/// What else is needed of a helper pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperFact {
    /// Hash of the template that it was made from.
    pub template: String,
    /// Failed or Succeeded, and why.
    pub ended: Option<Complaint>,
    /// What the kubelet or the scheduler says against it.
    pub complaint: Option<Complaint>,
}

/// A reason and a message of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    pub reason: String,
    pub message: String,
}

impl PodFact {
    /// `own_namespace` is where helper pods live: a label on somebody else's pod means nothing.
    pub fn new(pod: Pod, own_namespace: &str) -> Self {
        let helper = helper_fact(&pod, own_namespace);
        let excluded = is_excluded(&pod.metadata);
        let meta = pod.metadata;
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let annotation = |name: &str| meta.annotations.as_ref().and_then(|a| a.get(name)).cloned();
        let mut addresses: Vec<IpAddr> = Vec::new();
        let reported = status.pod_ips.into_iter().flatten().map(|ip| ip.ip);
        for address in status.pod_ip.into_iter().chain(reported).filter_map(|ip| ip.parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Self {
            cgroup_uid: annotation(CONFIG_MIRROR).and_then(|_| annotation(CONFIG_HASH)).filter(|hash| is_hash(hash)),
            excluded,
            node: spec.node_name.filter(|name| !name.is_empty()),
            host_network: spec.host_network.unwrap_or_default(),
            addresses,
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
            terminating: meta.deletion_timestamp.is_some(),
            created: created(&meta),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            labels: meta.labels.unwrap_or_default(),
            helper,
        }
    }
}

/// Whether a kubelet can have made it: 128 bits in hexadecimal digits (`applyDefaults`, pkg/kubelet/config/common.go). Users can write
/// the annotation, too.
fn is_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn helper_fact(pod: &Pod, own_namespace: &str) -> Option<HelperFact> {
    let label = |name: &str| pod.metadata.labels.as_ref().and_then(|l| l.get(name)).map(String::as_str);
    let ours = pod.metadata.namespace.as_deref() == Some(own_namespace)
        && label(helper_pod::LABEL_NAME) == Some(names::PRODUCT)
        && label(helper_pod::LABEL_COMPONENT) == Some(names::HELPER);
    if !ours {
        return None;
    }
    let annotations = pod.metadata.annotations.as_ref();
    let template = annotations.and_then(|a| a.get(helper_pod::TEMPLATE_HASH)).cloned().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")).then(|| Complaint {
        reason: status.reason.clone().or_else(|| status.phase.clone()).unwrap_or_default(),
        message: status.message.clone().unwrap_or_default(),
    });
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let complaint = containers.find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().unwrap_or_default();
        // On its way, not in trouble.
        if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            return None;
        }
        let last = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        let message = match (waiting.message.as_deref().unwrap_or_default(), last) {
            (message, Some(last)) => {
                format!(
                    "{message} (container {}: {}, exit code {})",
                    container.name,
                    last.reason.as_deref().unwrap_or("ended"),
                    last.exit_code
                )
            }
            (message, None) => message.to_owned(),
        };
        Some(Complaint { reason: reason.to_owned(), message: without_pauses(&message) })
    });
    Some(HelperFact { template, ended, complaint })
}

/// Takes the growing pause out of the kubelet's "back-off 20s restarting ...": a message that changes at each try
/// would be written at each try.
fn without_pauses(message: &str) -> String {
    match message.strip_prefix("back-off ").and_then(|rest| rest.split_once(' ')) {
        Some((_, rest)) => format!("back-off {rest}"),
        None => message.to_owned(),
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFact {
    pub name: String,
    pub ready: bool,
    /// Opted out by label or annotation.
    pub excluded: bool,
    /// `InternalIP`s in the order of the node's status.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`: where its pods are, if the CNI keeps to that.
    pub pod_networks: Vec<Network>,
}

impl From<Node> for NodeFact {
    fn from(node: Node) -> Self {
        let excluded = is_excluded(&node.metadata);
        let status = node.status.unwrap_or_default();
        let pod_cidrs = node.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
        Self {
            pod_networks: pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            excluded,
            name: node.metadata.name.unwrap_or_default(),
            ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
            addresses: status
                .addresses
                .into_iter()
                .flatten()
                .filter(|a| a.type_ == "InternalIP")
                .filter_map(|a| a.address.parse().ok())
                .collect(),
        }
    }
}

/// The networks of a `ServiceCIDR`.
pub fn service_networks(object: ServiceCIDR) -> Vec<Network> {
    let cidrs = object.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
    cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFact {
    pub name: String,
    /// Opted out by label or annotation.
    pub excluded: bool,
}

impl From<PartialObjectMeta<Namespace>> for NamespaceFact {
    fn from(PartialObjectMeta { metadata, .. }: PartialObjectMeta<Namespace>) -> Self {
        Self { excluded: is_excluded(&metadata), name: metadata.name.unwrap_or_default() }
    }
}

/// A tap as it stands in the API server, not yet understood.
#[derive(Clone, Debug, PartialEq)]
pub struct TapFact {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: Timestamp,
    pub generation: i64,
    /// Since when it is being deleted.
    pub deleting: Option<Timestamp>,
    pub finalizers: Vec<String>,
    /// Spec and status, or why they cannot be read.
    pub body: Result<(PodTapSpec, PodTapStatus), String>,
}

impl From<DeserializeGuard<PodTap>> for TapFact {
    fn from(guard: DeserializeGuard<PodTap>) -> Self {
        let (meta, body) = match guard.0 {
            Ok(tap) => (tap.metadata, Ok((tap.spec, tap.status.unwrap_or_default()))),
            Err(invalid) => (invalid.metadata, Err(invalid.error)),
        };
        Self {
            created: created(&meta),
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            deleting: meta.deletion_timestamp.map(|time| time.0),
            finalizers: meta.finalizers.unwrap_or_default(),
            body,
        }
    }
}

impl TapFact {
    /// Whether `new` differs from this in nothing but what the controller writes: the status, and its own finalizer.
    pub fn differs_only_in_ours(&self, new: &Self) -> bool {
        let spec = |tap: &Self| tap.body.as_ref().ok().map(|(spec, _)| spec.clone());
        let others = |tap: &Self| tap.finalizers.iter().filter(|f| *f != FINALIZER).cloned().collect::<Vec<_>>();
        self.uid == new.uid
            && self.generation == new.generation
            && self.deleting == new.deleting
            && others(self) == others(new)
            && spec(self) == spec(new)
    }
}

/// A node's part of all taps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTapFact {
    pub name: String,
    pub uid: String,
    pub generation: i64,
    /// None where it cannot be read, which is cured by writing it anew.
    pub spec: Option<NodeTapSpec>,
    pub status: NodeTapStatus,
}

impl From<DeserializeGuard<NodeTap>> for NodeTapFact {
    fn from(guard: DeserializeGuard<NodeTap>) -> Self {
        let (meta, spec, status) = match guard.0 {
            Ok(object) => (object.metadata, Some(object.spec), object.status.unwrap_or_default()),
            Err(invalid) => (invalid.metadata, None, NodeTapStatus::default()),
        };
        Self {
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            spec,
            status,
        }
    }
}

impl NodeTapFact {
    /// Whether the node has carried out what was written as `generation`.
    pub fn has_observed(&self, generation: i64) -> bool {
        self.status.observed_generation.is_some_and(|observed| observed >= generation)
    }

    /// Whether spec or status mention the tap.
    pub fn mentions(&self, tap: &str) -> bool {
        self.spec.as_ref().is_some_and(|spec| {
            spec.senders.iter().any(|s| s.tap.uid == tap) || spec.receivers.iter().any(|r| r.tap.uid == tap)
        }) || self.status.senders.iter().any(|s| s.tap_uid == tap)
            || self.status.receivers.iter().any(|r| r.tap_uid == tap)
    }
}

/// The policy named `default`, or why it cannot be read.
pub type PolicyFact = Result<PodTapPolicySpec, String>;

/// See [`PolicyFact`].
pub fn policy_fact(guard: DeserializeGuard<PodTapPolicy>) -> PolicyFact {
    guard.0.map(|policy| policy.spec).map_err(|invalid| invalid.error)
}

fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

fn is_excluded(meta: &ObjectMeta) -> bool {
    [&meta.labels, &meta.annotations]
        .into_iter()
        .any(|map| map.as_ref().and_then(|m| m.get(EXCLUDE)).is_some_and(|value| value == "true"))
}
