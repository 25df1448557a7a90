use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Deduplicate, Filter, Limit, Oversize, Sample, Truncate};

/// Copies the traffic of pods to where somebody looks at it.
///
/// Every frame that a matching pod of this namespace sends or receives arrives once at each destination, over VXLAN.
/// The pods need no change and no restart. Deleting the object removes every trace.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podtap.dev",
    version = "v1alpha1",
    kind = "PodTap",
    namespaced,
    shortname = "ptap",
    status = "PodTapStatus",
    derive = "PartialEq",
    doc = "Copies the traffic of pods of its own namespace to a node, a pod or any VXLAN endpoint.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Matched", type_ = "integer", json_path = ".status.matchedPods"),
    printcolumn(name = "Tapped", type_ = "integer", json_path = ".status.tappedPods"),
    printcolumn(name = "Destination", type_ = "string", json_path = ".status.destination"),
    printcolumn(name = "VNI", type_ = "integer", json_path = ".status.vni"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PodTapSpec {
    /// The pods whose traffic is copied.
    pub targets: Targets,

    /// Which frames are copied, as seen from the pod: Ingress (they enter the pod), Egress (they leave it) or Both.
    #[serde(default)]
    pub direction: Direction,

    /// Which of these frames are copied. Unset: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,

    /// How much of each frame is copied. Unset: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<Truncate>,

    /// Copies one of so many flows. Unset: all flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,

    /// How much is copied at most, per pod. Unset: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,

    /// Copies flows between two tapped pods once instead of twice; {} for the networks of this cluster. Unset: each pod's tap
    /// has all of its flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplicate: Option<Deduplicate>,

    /// What becomes of copies that do not fit the path to their destination: Fragment (sent whole, in IP fragments) or
    /// Truncate (cut to what fits).
    #[serde(default)]
    pub oversize: Oversize,

    /// Where the copies go: one to four places, each of which gets every frame.
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(validation = Rule::new("self.all(d, self.exists_one(e, e == d))")
        .message("destinations must differ from each other: remove the repeated one"))]
    pub destinations: Vec<Destination>,

    /// How the copies are encapsulated. Unset: a free VXLAN network identifier is allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<Vxlan>,

    /// Seconds after which the tap ends, counted from the first time that a pod was tapped. The data path is removed then,
    /// and the object stays with Ready=False and the reason Expired. Unset: until the object is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 31536000")
        .message("durationSeconds must be between 1 and 31536000 (a year); leave it out for a tap without an end"))]
    pub duration_seconds: Option<i64>,

    /// Removes the data path and keeps the object, until it is false again.
    #[serde(default)]
    pub suspend: bool,
}

/// Selects pods, and the interface in them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.podNames) != has(self.podSelector)")
    .message("set exactly one of targets.podNames and targets.podSelector; podSelector: {} selects every pod of the namespace"))]
pub struct Targets {
    /// Names of the pods to tap. A pod that does not exist yet is tapped when it appears. At most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    pub pod_names: Option<Vec<String>>,

    /// Labels of the pods to tap; {} selects every pod of the namespace. Pods that appear, move or change their
    /// labels are followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,

    /// Interface inside the pod, for example net1 for a secondary network. Empty: the one that carries the pod's
    /// primary address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[^/: %]{0,15}$') && !(self in ['.', '..'])")
        .message("targets.interface must be the name of an interface inside the pod: at most 15 characters, without slash, colon, percent sign or space; leave it empty for the one with the pod's primary address"))]
    pub interface: String,

    /// Upper bound for the number of pods. When more match, the oldest ones are tapped and the condition
    /// TargetsResolved is False with the reason TooManyPods.
    #[serde(default = "default_max_pods")]
    #[schemars(default = "default_max_pods")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 500").message("targets.maxPods must be between 1 and 500"))]
    pub max_pods: i32,
}

fn default_max_pods() -> i32 {
    32
}

/// Which frames are copied, as seen from the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Direction {
    /// Frames that enter the pod.
    Ingress,
    /// Frames that leave the pod.
    Egress,
    /// All frames.
    #[default]
    Both,
}

/// A place that gets every copied frame.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.node), has(self.pod), has(self.external)].filter(x, x).size() == 1")
        .message("set exactly one of node, pod and external in each destination, for example: node: {name: worker-3}"),
    validation = Rule::new("!(has(self.raw) && self.raw && has(self.external))")
        .message("raw is about the interface at a node or pod: leave it out of an external destination, which always gets frames as on the wire"),
)]
pub struct Destination {
    /// A network interface on a node of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeDestination>,

    /// A network interface inside a pod of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodDestination>,

    /// A VXLAN endpoint outside of PodTap's care. Its address must be allowed by the PodTapPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalDestination>,

    /// At a node or pod: shows frames as the kernel has them, several TCP segments in one and checksums not yet computed. That
    /// is faster, and many tools cannot read it. Unset or false: frames as they are on the wire.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub raw: bool,
}

/// A network interface on a node of the cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDestination {
    /// Name of the node, as in `kubectl get nodes`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Name that the interface gets on the node. Empty: ptap followed by the VXLAN network identifier.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[^/: %]{0,15}$') && !(self in ['.', '..', 'lo', 'all', 'default'])")
        .message("interfaceName must be a name that Linux takes for an interface: at most 15 characters, without slash, colon, percent sign or space, and not lo, all or default; leave it empty for one made from the VNI"))]
    pub interface_name: String,
}

/// A network interface inside a pod of the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.podSelector)")
    .message("set exactly one of name and podSelector in a pod destination"))]
pub struct PodDestination {
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,

    /// Labels of the pod. Of several, the oldest ready one gets the frames; another one when it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,

    /// Name that the interface gets inside the pod. Empty: ptap followed by the VXLAN network identifier.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[^/: %]{0,15}$') && !(self in ['.', '..', 'lo', 'all', 'default'])")
        .message("interfaceName must be a name that Linux takes for an interface: at most 15 characters, without slash, colon, percent sign or space, and not lo, all or default; leave it empty for one made from the VNI"))]
    pub interface_name: String,
}

/// A VXLAN endpoint outside of PodTap's care.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalDestination {
    /// IPv4 or IPv6 address.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).isGlobalUnicast()")
        .message("external.address must be the IPv4 or IPv6 address of one host, for example 192.0.2.10 (a host name is not resolved)"))]
    pub address: String,

    /// UDP port; 4789 is the one that IANA assigned to VXLAN.
    #[serde(default = "default_external_port")]
    #[schemars(default = "default_external_port")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 65535").message("external.port must be between 1 and 65535"))]
    pub port: i32,
}

fn default_external_port() -> i32 {
    4789
}

/// How the copies are encapsulated.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vxlan {
    /// VXLAN network identifier, within the range of the PodTapPolicy. No two taps have the same one: the younger
    /// waits, with the reason VNIInUse. Unset: a free one is allocated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 16777215")
        .message("vxlan.vni must be between 1 and 16777215 (24 bits); leave it out to have a free one allocated"))]
    pub vni: Option<i64>,
}

/// What PodTap last saw of a tap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodTapStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// VXLAN network identifier of the copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<i64>,

    /// The destinations, for printing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination: String,

    /// Where each destination is, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub destinations: Vec<DestinationStatus>,

    /// How many pods match.
    #[serde(default)]
    pub matched_pods: i32,

    /// How many of them are tapped.
    #[serde(default)]
    pub tapped_pods: i32,

    /// The first 16 pods that cannot be tapped, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub failures: Vec<TapFailure>,

    /// When the first pod was tapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,

    /// When the tap ends, if durationSeconds is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,

    /// Ready, TargetsResolved, DestinationsReady, Tapped and Degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where a destination is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DestinationStatus {
    /// Node on which the frames arrive; empty for an external endpoint, or while it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Pod inside which the frames arrive; empty for a node or an external endpoint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Interface at which the frames arrive.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface_name: String,
    /// Address that the encapsulated copies are sent to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// VXLAN network identifier of the copies for this destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<i64>,
    /// Whether the destination is there.
    #[serde(default)]
    pub ready: bool,
}

/// A pod that cannot be tapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TapFailure {
    /// Name of the pod.
    pub pod: String,
    /// Node of the pod; empty while it is not scheduled.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Why, as one word.
    pub reason: String,
    /// Why, and what to do.
    pub message: String,
}
