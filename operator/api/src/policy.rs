use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// What taps may do in this cluster. Only the object named `default` is read.
///
/// Without it, taps between pods and nodes work with the defaults below, and no external destination is allowed.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podtap.dev",
    version = "v1alpha1",
    kind = "PodTapPolicy",
    plural = "podtappolicies",
    derive = "PartialEq",
    doc = "What taps may do in this cluster. Only the object named default is read.",
    validation = Rule::new("self.metadata.name == 'default'").message("only the PodTapPolicy named default is read: use that name"),
    printcolumn(name = "External", type_ = "string", json_path = ".spec.allowedExternalCIDRs"),
    printcolumn(name = "Port", type_ = "integer", json_path = ".spec.receiverPort"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PodTapPolicySpec {
    /// Networks that external destinations may be in. Empty: none is allowed.
    #[serde(default, rename = "allowedExternalCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 64)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry of allowedExternalCIDRs must be a network such as 192.0.2.0/24 or 2001:db8::/32; a single host is 192.0.2.10/32"))]
    pub allowed_external_cidrs: Vec<String>,

    /// VXLAN network identifiers that taps may have.
    #[serde(default)]
    pub vni_range: VniRange,

    /// UDP port at which nodes and pods of the cluster receive copies. Nodes must be able to reach each other on it.
    /// It must not be the port of the CNI's own VXLAN (4789 or 8472).
    #[serde(default = "default_receiver_port")]
    #[schemars(default = "default_receiver_port")]
    #[x_kube(validation = Rule::new("self >= 1024 && self <= 65535 && self != 14788")
        .message("receiverPort must be between 1024 and 65535, and not 14788, which the sending side uses"))]
    pub receiver_port: i32,

    /// Largest IP packet that the network between the nodes carries, for clouds whose network carries less than the nodes'
    /// interfaces say, for example 1400 on Azure. Copies are made to fit it. Unset: what the nodes' routes say.
    #[serde(default, rename = "underlayMTU", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 576 && self <= 65535")
        .message("underlayMTU must be between 576 and 65535; leave it out to use what the nodes' routes say"))]
    pub underlay_mtu: Option<i32>,

    /// Namespaces whose pods are never tapped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 63)))]
    pub excluded_namespaces: Vec<String>,

    /// Upper bounds.
    #[serde(default)]
    pub limits: Limits,
}

fn default_receiver_port() -> i32 {
    14789
}

/// A range of VXLAN network identifiers, both ends included.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.first >= 1 && self.first <= self.last && self.last <= 16777215")
    .message("vniRange must have 1 <= first <= last <= 16777215"))]
pub struct VniRange {
    /// The lowest one; free ones are allocated from here upwards.
    #[serde(default = "default_first")]
    #[schemars(default = "default_first")]
    pub first: i64,
    /// The highest one.
    #[serde(default = "default_last")]
    #[schemars(default = "default_last")]
    pub last: i64,
}

fn default_first() -> i64 {
    100
}

fn default_last() -> i64 {
    15_999_999
}

impl VniRange {
    /// Whether the range has the VNI.
    #[must_use]
    pub fn contains(&self, vni: i64) -> bool {
        (self.first..=self.last).contains(&vni)
    }
}

impl Default for VniRange {
    fn default() -> Self {
        Self { first: default_first(), last: default_last() }
    }
}

/// Upper bounds.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// How many taps a pod may be under at the same time. The oldest taps win.
    #[serde(default = "default_taps_per_pod")]
    #[schemars(default = "default_taps_per_pod")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 64").message("limits.tapsPerPod must be between 1 and 64"))]
    pub taps_per_pod: i32,

    /// How many taps a namespace may have at the same time. The oldest win.
    #[serde(default = "default_taps_per_namespace")]
    #[schemars(default = "default_taps_per_namespace")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1000").message("limits.tapsPerNamespace must be between 1 and 1000"))]
    pub taps_per_namespace: i32,

    /// How many pods one tap may have, whatever its maxPods says.
    #[serde(default = "default_targets_per_tap")]
    #[schemars(default = "default_targets_per_tap")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 500").message("limits.targetsPerTap must be between 1 and 500"))]
    pub targets_per_tap: i32,
}

fn default_taps_per_pod() -> i32 {
    16
}

fn default_taps_per_namespace() -> i32 {
    64
}

fn default_targets_per_tap() -> i32 {
    500
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            taps_per_pod: default_taps_per_pod(),
            taps_per_namespace: default_taps_per_namespace(),
            targets_per_tap: default_targets_per_tap(),
        }
    }
}
