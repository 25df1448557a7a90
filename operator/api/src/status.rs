use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use podtap_model::{Reason, Vni};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::destination::default_name;

/// The state of a tap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTapStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// VXLAN network identifier of the tap. Further nodes and pods have one of their own, see destinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,

    /// The destinations in one line, for `kubectl get`. Derived from destinations; programs read those.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination: String,

    /// Where each destination is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 4),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub destinations: Vec<DestinationStatus>,

    /// How many pods on nodes are to be tapped: those that match, without those that are skipped or excluded.
    #[serde(default)]
    pub matched_pods: i32,

    /// How many of them are tapped.
    #[serde(default)]
    pub tapped_pods: i32,

    /// How many of them are about to be tapped: they have not started yet, or have been waiting for less than 30 seconds. They do
    /// not make an established tap not Ready.
    #[serde(default)]
    pub pending_pods: i32,

    /// How many pods match podSelector, but cannot be tapped. They are left out, and do not make the tap not Ready.
    #[serde(default)]
    pub skipped_pods: i32,

    /// Why pods are skipped: one entry per reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["reason"])
    )]
    pub skipped: Vec<SkippedPods>,

    /// How many pods match, but have opted out of every tap with podtap.dev/exclude, by themselves or with their node.
    #[serde(default)]
    pub excluded_pods: i32,

    /// The first 16 pods that cannot be tapped, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub failures: Vec<TapFailure>,

    /// The last generation of the spec for which the tap has been Ready. From then on, pods that come and go do not make it not
    /// Ready. Unset while nothing is mirrored, for example while the tap is suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub established_generation: Option<i64>,

    /// When the first pod was tapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,

    /// When the tap ends, if duration is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<Time>,

    /// Ready, TargetsResolved, DestinationsReady, Tapped and Degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl PodTapStatus {
    /// The status of the destination of this name.
    #[must_use]
    pub fn destination(&self, name: &str) -> Option<&DestinationStatus> {
        self.destinations.iter().find(|destination| destination.name == name)
    }
}

/// Where a destination is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DestinationStatus {
    /// Name of the destination.
    #[serde(default = "default_name")]
    #[schemars(default = "default_name", length(min = 1, max = 63))]
    pub name: String,
    /// Node that receives the frames. Unset for an external endpoint, or while it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Pod that receives the frames. Unset for a node or an external endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Interface that shows the frames. Unset for an external endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_name: Option<String>,
    /// Address that the encapsulated frames are sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// VXLAN network identifier of the frames for this destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// Whether the destination can receive frames.
    #[serde(default)]
    pub ready: bool,
}

/// Pods that match, but cannot be tapped for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SkippedPods {
    /// Why, as one word.
    pub reason: Reason,
    /// How many.
    pub count: i32,
    /// Names of the first four; in a ClusterPodTap as namespace/name.
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub pods: Vec<String>,
}

/// A pod that cannot be tapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TapFailure {
    /// Name of the pod; in a ClusterPodTap as namespace/name.
    pub pod: String,
    /// Node of the pod. Unset until it is scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why, as one word.
    pub reason: Reason,
    /// Why, and what to do about it.
    pub message: String,
}
