use kube::{CustomResource, KubeSchema};
use podtap_model::InterfaceName;
use serde::{Deserialize, Serialize};

use crate::{MirrorSpec, ObjectSelector, PodTapStatus, destination::empty_is_unset};

/// What to mirror, and where to.
// No `categories`: with `all`, `kubectl delete all --all` would stop mirrors.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podtap.dev",
    version = "v1alpha1",
    kind = "PodTap",
    namespaced,
    shortname = "ptap",
    status = "PodTapStatus",
    derive = "PartialEq",
    doc = "Mirrors the traffic of pods of its own namespace to a node, a pod or any VXLAN endpoint. Every frame that a matching pod sends or receives arrives once at each destination, over VXLAN. The pods are neither changed nor restarted. Deleting the object removes every trace.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Matched", type_ = "integer", json_path = ".status.matchedPods"),
    printcolumn(name = "Tapped", type_ = "integer", json_path = ".status.tappedPods"),
    printcolumn(name = "Destination", type_ = "string", json_path = ".status.destination"),
    printcolumn(name = "VNI", type_ = "integer", json_path = ".status.vni"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expirationTime"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.pendingPods", priority = 1),
    printcolumn(name = "Skipped", type_ = "integer", json_path = ".status.skippedPods", priority = 1),
    printcolumn(name = "Excluded", type_ = "integer", json_path = ".status.excludedPods", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.destinations.all(d, !has(d.pod) || !has(d.pod.__namespace__))")
    .message("a PodTap mirrors to pods of its own namespace: leave out pod.namespace of its destinations, or ask an administrator for a ClusterPodTap"))]
pub struct PodTapSpec {
    /// The pods to tap.
    pub targets: Targets,

    /// Which frames are mirrored, and where to.
    #[serde(flatten)]
    pub mirror: MirrorSpec,
}

/// Selects pods, and the interface in them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.podNames) != has(self.podSelector)")
    .message("set exactly one of targets.podNames and targets.podSelector; podSelector: {} selects every pod of the namespace"))]
pub struct Targets {
    /// Names of the pods to tap. A pod that does not exist yet is tapped when it is created. At most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 253)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub pod_names: Option<Vec<String>>,

    /// Labels of the pods to tap; {} selects every pod of the namespace. The tap follows pods as they are created, rescheduled,
    /// recreated and relabelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<ObjectSelector>,

    /// Interface inside the pod, for example net1 for a secondary network. Empty: the interface with the pod's primary address.
    #[serde(default, deserialize_with = "empty_is_unset", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]{0,15}$') && !self.matches('[/:%]') && !(self in ['.', '..'])")
        .message("targets.interface must be the name of an interface inside the pod: at most 15 characters of printable ASCII, without slash, colon, percent sign or space; leave it empty for the one with the pod's primary address"))]
    pub interface: Option<InterfaceName>,

    /// Upper bound for the number of pods. If more match, the oldest ones are tapped, and the condition TargetsResolved is False
    /// with the reason TooManyPods.
    #[serde(default = "default_max_pods")]
    #[schemars(with = "i32", default = "default_max_pods")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 500").message("targets.maxPods must be between 1 and 500"))]
    pub max_pods: u32,
}

/// How many pods a [`PodTap`] taps at most, unless its spec has another number.
pub const DEFAULT_MAX_PODS: u32 = 32;

fn default_max_pods() -> u32 {
    DEFAULT_MAX_PODS
}
