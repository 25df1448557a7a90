use kube::{CustomResource, KubeSchema};
use podtap_model::InterfaceName;
use serde::{Deserialize, Serialize};

use crate::{MirrorSpec, ObjectSelector, PodTapStatus, destination::empty_is_unset};

/// What to mirror of the whole cluster, and where to.
// No `categories`: with `all`, `kubectl delete all --all` would stop mirrors. The columns are those of a PodTap, see `definitions`.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podtap.dev",
    version = "v1alpha1",
    kind = "ClusterPodTap",
    shortname = "cptap",
    status = "PodTapStatus",
    derive = "PartialEq",
    doc = "Mirrors the traffic of pods of many namespaces, as a PodTap does for its own namespace: for administrators of the cluster. Pods of PodTap itself are never tapped."
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.destinations.all(d, !has(d.pod) || has(d.pod.__namespace__))")
    .message("set pod.namespace in each destination that is a pod: a ClusterPodTap has no namespace of its own"))]
pub struct ClusterPodTapSpec {
    /// The pods to tap.
    pub targets: ClusterTargets,

    /// Which frames are mirrored, and where to.
    #[serde(flatten)]
    pub mirror: MirrorSpec,
}

/// Selects pods of the cluster, and the interface in them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterTargets {
    /// Labels of the namespaces whose pods are tapped; {} selects every namespace but that of PodTap. The label
    /// kubernetes.io/metadata.name is the name of the namespace.
    pub namespace_selector: ObjectSelector,

    /// Labels of the pods to tap. Unset or {}: every pod of these namespaces. The tap follows pods as they are created, rescheduled,
    /// recreated and relabelled.
    #[serde(default)]
    pub pod_selector: ObjectSelector,

    /// Labels of the nodes whose pods are tapped, for example matchLabels: {topology.kubernetes.io/zone: a}. Unset or {}: every node,
    /// those of the control plane included.
    #[serde(default)]
    pub node_selector: ObjectSelector,

    /// Interface inside the pods, for example net1 for a secondary network. Empty: the interface with the pod's primary address.
    #[serde(default, deserialize_with = "empty_is_unset", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]{0,15}$') && !self.matches('[/:%]') && !(self in ['.', '..'])")
        .message("targets.interface must be the name of an interface inside the pods: at most 15 characters of printable ASCII, without slash, colon, percent sign or space; leave it empty for the one with the pod's primary address"))]
    pub interface: Option<InterfaceName>,

    /// Upper bound for the number of pods. If more match, the oldest ones are tapped, and the condition TargetsResolved is False
    /// with the reason TooManyPods.
    #[serde(default = "default_max_pods")]
    #[schemars(with = "i32", default = "default_max_pods")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 10000").message("targets.maxPods must be between 1 and 10000"))]
    pub max_pods: u32,
}

fn default_max_pods() -> u32 {
    1000
}
