use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Direction, NodeTapTreatment};

/// What one node holds for all taps: the spec is written by the controller, the status by the node's helper pod.
///
/// Not for users to write; `kubectl get nodetap NODE -o yaml` shows what a node believes.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "podtap.dev",
    version = "v1alpha1",
    kind = "NodeTap",
    status = "NodeTapStatus",
    derive = "PartialEq",
    doc = "What one node holds for all taps. Written by PodTap, not by users.",
    printcolumn(name = "Senders", type_ = "integer", json_path = ".status.activeSenders"),
    printcolumn(name = "Receivers", type_ = "integer", json_path = ".status.activeReceivers"),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".metadata.generation"),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.observedGeneration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapSpec {
    /// Pods of this node whose traffic is copied.
    #[serde(default)]
    pub senders: Vec<NodeTapSender>,
    /// Interfaces of this node, or of pods on it, at which copies arrive.
    #[serde(default)]
    pub receivers: Vec<NodeTapReceiver>,
    /// What becomes of the frames of treated senders: at most one entry per tap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub treatments: Vec<NodeTapTreatment>,
    /// Largest IP packet that the network between the nodes carries; unset for what the routes say.
    #[serde(default, rename = "underlayMTU", skip_serializing_if = "Option::is_none")]
    pub underlay_mtu: Option<i32>,
}

/// The tap that an entry belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TapReference {
    /// Namespace of the PodTap.
    pub namespace: String,
    /// Name of the PodTap.
    pub name: String,
    /// UID of the PodTap.
    pub uid: String,
}

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapPod {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// UID by which the kubelet names the pod's cgroup, where it differs: static pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_uid: Option<String>,
    /// Addresses of the pod, primary first; empty until the kubelet has reported them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

/// One pod under one tap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapSender {
    /// The tap.
    pub tap: TapReference,
    /// The pod.
    pub pod: NodeTapPod,
    /// Interface inside the pod; empty for the one with the primary address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// Which frames are copied.
    pub direction: Direction,
    /// Where the copies go.
    pub destinations: Vec<NodeTapEndpoint>,
    /// Whether the entry of the tap in spec.treatments says what becomes of its frames; otherwise all are copied as they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub treated: bool,
}

/// A VXLAN endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapEndpoint {
    /// IP address.
    pub address: String,
    /// UDP port.
    pub port: i32,
    /// VXLAN network identifier.
    pub vni: i64,
}

/// An interface at which copies arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapReceiver {
    /// The tap.
    pub tap: TapReference,
    /// VXLAN network identifier; no other receiver of the node has it.
    pub vni: i64,
    /// UDP port on the node.
    pub port: i32,
    /// Whether the copies arrive over IPv6.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
    /// Name of the interface.
    pub interface_name: String,
    /// Whether it shows frames as the kernel has them, and not as on the wire.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
    /// The pod that gets the interface; unset for the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<NodeTapPod>,
}

/// What the node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapStatus {
    /// The generation of the spec that was carried out last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many senders are Active.
    #[serde(default)]
    pub active_senders: i32,
    /// How many receivers are Active.
    #[serde(default)]
    pub active_receivers: i32,
    /// One entry per sender that is wanted, or still there.
    #[serde(default)]
    pub senders: Vec<NodeTapSenderStatus>,
    /// One entry per receiver that is wanted, or still there.
    #[serde(default)]
    pub receivers: Vec<NodeTapReceiverStatus>,
    /// What the node's kernel can do, by name: found out by trying.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, bool>,
}

/// State of one sender.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapSenderStatus {
    /// UID of the tap.
    pub tap_uid: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Interface of the pod that is tapped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// How it is.
    pub state: ItemState,
    /// Why, as one word.
    pub reason: String,
    /// Why, and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What of the wish this node's kernel cannot do, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
}

/// State of one receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTapReceiverStatus {
    /// UID of the tap.
    pub tap_uid: String,
    /// VXLAN network identifier.
    pub vni: i64,
    /// How it is.
    pub state: ItemState,
    /// Why, as one word.
    pub reason: String,
    /// Why, and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ItemState {
    /// In place.
    Active,
    /// Not yet; goes on by itself.
    #[default]
    Waiting,
    /// Never attempted, and nothing was touched.
    Refused,
    /// The kernel refused; tried again.
    Failed,
    /// Not wanted any more, still being removed.
    Removing,
}
