use std::time::Duration as StdDuration;

use kube::{CustomResource, KubeSchema, core::Duration};
use podtap_model::{
    IpNet, Vni,
    bounds::{DEFAULT_ORPHAN_TIMEOUT_SECONDS, RECEIVER_PORT},
};
use serde::{Deserialize, Serialize};

/// What taps may do in this cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "podtap.dev",
    version = "v1alpha1",
    kind = "PodTapPolicy",
    plural = "podtappolicies",
    derive = "PartialEq",
    doc = "What taps may do in this cluster. Only the object named default is read. Without it, the defaults below apply, and no external destination is allowed.",
    validation = Rule::new("self.metadata.name == 'default'").message("only the PodTapPolicy named default is read: use that name"),
    printcolumn(name = "External", type_ = "string", json_path = ".spec.allowedExternalCIDRs"),
    printcolumn(name = "Port", type_ = "integer", json_path = ".spec.receiverPort"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspendAll"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PodTapPolicySpec {
    /// Networks that external destinations may be in. Empty: no external destination is allowed.
    #[serde(default, rename = "allowedExternalCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        with = "Vec<String>",
        length(max = 256),
        inner(length(max = 64)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry of allowedExternalCIDRs must be a network such as 192.0.2.0/24 or 2001:db8::/32; a single host is 192.0.2.10/32"))]
    pub allowed_external_cidrs: Vec<IpNet>,

    /// VXLAN network identifiers that taps may use. Those that no tap requests are chosen by a hash.
    #[serde(default)]
    pub vni_range: VniRange,

    /// UDP port on which nodes and pods of the cluster receive mirrored frames. Nodes must be able to reach each other on it.
    /// It must not be the port of the CNI's own VXLAN (4789 or 8472).
    #[serde(default = "default_receiver_port")]
    #[schemars(with = "i32", default = "default_receiver_port")]
    #[x_kube(validation = Rule::new("self >= 1024 && self <= 65535 && self != 14788")
        .message("receiverPort must be between 1024 and 65535, and not 14788, which the sending side uses"))]
    pub receiver_port: u16,

    /// Networks from which receivers accept mirrored frames in addition to the nodes of the cluster that have taps. Mirrored frames
    /// from other addresses are dropped. Needed only if the network between the nodes changes the source addresses of packets (NAT).
    #[serde(default, rename = "receiverSourceCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        with = "Vec<String>",
        length(max = 256),
        inner(length(max = 64)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry of receiverSourceCIDRs must be a network such as 192.0.2.0/24 or 2001:db8::/32; a single host is 192.0.2.10/32"))]
    pub receiver_source_cidrs: Vec<IpNet>,

    /// Largest IP packet, in bytes, that the network between the nodes carries, for clouds where it is smaller than the MTU of the
    /// nodes' interfaces, for example 1400 on Azure. Mirrored frames are made to fit it. Unset: the MTU of the nodes' routes.
    #[serde(default, rename = "underlayMTU", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>")]
    #[x_kube(validation = Rule::new("self >= 576 && self <= 65535")
        .message("underlayMTU must be between 576 and 65535; leave it out to use the MTU of the nodes' routes"))]
    pub underlay_mtu: Option<u32>,

    /// EtherType of the probes that prove that mirrored frames arrive: 1536 to 65535, and none of IP, ARP and VLAN tags. 34997
    /// (0x88B5) is for local experiments. Pods' own frames with it are not mirrored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>")]
    #[x_kube(validation = Rule::new("self >= 1536 && self <= 65535 && !(self in [2048, 2054, 33024, 34525, 34984])")
        .message("probeEtherType must be between 1536 and 65535, and not 2048, 2054, 33024, 34525 or 34984 (IP, ARP, VLAN tags); leave it out for 34997 (0x88B5)"))]
    pub probe_ether_type: Option<u16>,

    /// Label keys to include in metadata, besides the names and workloads of pods, for example `app.kubernetes.io/name`. Up to 150 bytes
    /// of keys and values are sent per pod; later entries are dropped. They take room in the object of each node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 317)), extend("x-kubernetes-list-type" = "set"))]
    pub metadata_labels: Vec<String>,

    /// Namespaces whose pods are never tapped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 1024),
        inner(length(min = 1, max = 63)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub excluded_namespaces: Vec<String>,

    /// Quotas.
    #[serde(default)]
    pub limits: Limits,

    /// How long a mirror keeps running after the API server last confirmed it: between 1m and 720h (30 days), for example 10m or
    /// 1h30m. Then the kernel stops it by itself: its node could not reach the API server for that long, or the agent or PodTap
    /// itself is gone. It resumes when the API server confirms it again.
    #[serde(default = "default_orphan_timeout")]
    #[schemars(default = "default_orphan_timeout_text", length(max = 32))]
    #[x_kube(validation = Rule::new(r"self.matches('^([0-9]+([.][0-9]+)?(h|m|s|ms))+$') && duration(self) >= duration('1m') && duration(self) <= duration('720h')")
        .message("orphanTimeout must be between 1m and 720h (30 days), for example 10m or 1h30m; leave it out for 1h"))]
    pub orphan_timeout: Duration,

    /// Stops all taps while it is true, and keeps the objects.
    #[serde(default)]
    pub suspend_all: bool,
}

impl Default for PodTapPolicySpec {
    fn default() -> Self {
        Self {
            allowed_external_cidrs: Vec::new(),
            vni_range: VniRange::default(),
            receiver_port: default_receiver_port(),
            underlay_mtu: None,
            probe_ether_type: None,
            metadata_labels: Vec::new(),
            excluded_namespaces: Vec::new(),
            limits: Limits::default(),
            orphan_timeout: default_orphan_timeout(),
            receiver_source_cidrs: Vec::new(),
            suspend_all: false,
        }
    }
}

fn default_orphan_timeout() -> Duration {
    StdDuration::from_secs(DEFAULT_ORPHAN_TIMEOUT_SECONDS.into()).into()
}

/// The same as a user would write it.
fn default_orphan_timeout_text() -> &'static str {
    "1h"
}

fn default_receiver_port() -> u16 {
    RECEIVER_PORT
}

/// A range of VXLAN network identifiers, both ends included.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.first >= 1 && self.first <= self.last && self.last <= 16777215")
    .message("vniRange must have 1 <= first <= last <= 16777215"))]
pub struct VniRange {
    /// The lowest identifier. The default leaves out the low ones, which other programs and their examples use.
    #[serde(default = "default_first")]
    #[schemars(with = "i64", default = "default_first")]
    pub first: Vni,
    /// The highest identifier.
    #[serde(default = "default_last")]
    #[schemars(with = "i64", default = "default_last")]
    pub last: Vni,
}

fn default_first() -> Vni {
    vni(4096)
}

fn default_last() -> Vni {
    vni(15_999_999)
}

fn vni(number: u32) -> Vni {
    number.try_into().expect("the constants are valid identifiers")
}

impl VniRange {
    /// Whether the VNI is in the range.
    #[must_use]
    pub fn contains(&self, vni: Vni) -> bool {
        (self.first..=self.last).contains(&vni)
    }
}

impl Default for VniRange {
    fn default() -> Self {
        Self { first: default_first(), last: default_last() }
    }
}

/// Quotas.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// How many taps may tap a pod at the same time. The oldest taps win.
    #[serde(default = "default_taps_per_pod")]
    #[schemars(with = "i32", default = "default_taps_per_pod")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 64").message("limits.tapsPerPod must be between 1 and 64"))]
    pub taps_per_pod: u32,

    /// How many taps of a namespace may run at the same time, and how many of the kind ClusterPodTap. The oldest win.
    #[serde(default = "default_taps_per_namespace")]
    #[schemars(with = "i32", default = "default_taps_per_namespace")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1000").message("limits.tapsPerNamespace must be between 1 and 1000"))]
    pub taps_per_namespace: u32,

    /// How many pods one PodTap may tap, whatever its maxPods is.
    #[serde(default = "default_targets_per_tap")]
    #[schemars(with = "i32", default = "default_targets_per_tap")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 500").message("limits.targetsPerTap must be between 1 and 500"))]
    pub targets_per_tap: u32,

    /// How many pods one ClusterPodTap may tap, whatever its maxPods is.
    #[serde(default = "default_targets_per_cluster_tap")]
    #[schemars(with = "i32", default = "default_targets_per_cluster_tap")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 10000").message("limits.targetsPerClusterTap must be between 1 and 10000"))]
    pub targets_per_cluster_tap: u32,
}

fn default_taps_per_pod() -> u32 {
    16
}

fn default_taps_per_namespace() -> u32 {
    64
}

fn default_targets_per_tap() -> u32 {
    500
}

fn default_targets_per_cluster_tap() -> u32 {
    10_000
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            taps_per_pod: default_taps_per_pod(),
            taps_per_namespace: default_taps_per_namespace(),
            targets_per_tap: default_targets_per_tap(),
            targets_per_cluster_tap: default_targets_per_cluster_tap(),
        }
    }
}
