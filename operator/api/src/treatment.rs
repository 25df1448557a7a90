use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much of each frame is copied. The lengths in its headers stay as they are, so that readers show the original ones.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.bytes) != (has(self.headersOnly) && self.headersOnly)")
    .message("set exactly one of truncate.bytes and truncate.headersOnly: true; leave truncate out to copy whole frames"))]
pub struct Truncate {
    /// The first so many bytes, counted from the Ethernet header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 14 && self <= 65535")
        .message("truncate.bytes must be between 14 (the Ethernet header) and 65535"))]
    pub bytes: Option<i32>,

    /// All headers up to that of TCP, UDP, SCTP or ICMP, with TCP's options, and no payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_only: Option<bool>,
}

/// Copies a part of the flows.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// One of so many flows is copied, whole and in both directions. All nodes choose the same ones. 1: all of them.
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1000000")
        .message("sample.oneInFlows must be between 1 (all flows) and 1000000"))]
    pub one_in_flows: i32,
}

/// How much is copied at most, per pod, both directions together. What is beyond is not copied, and counted; the pod's own
/// frames are not touched.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.bitsPerSecond) && self.bitsPerSecond > 0) || (has(self.packetsPerSecond) && self.packetsPerSecond > 0)")
    .message("set limit.bitsPerSecond or limit.packetsPerSecond to more than 0; leave limit out to copy without one"))]
pub struct Limit {
    /// Bits of frames per second. Unset or 0: no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 100000000000")
        .message("limit.bitsPerSecond must be between 0 (no limit) and 100000000000 (100 Gbit/s)"))]
    pub bits_per_second: Option<i64>,

    /// Frames per second. Unset or 0: no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 1000000000")
        .message("limit.packetsPerSecond must be between 0 (no limit) and 1000000000"))]
    pub packets_per_second: Option<i64>,
}

/// For taps of everything: a flow between two tapped pods is copied once, at the end that accepted it, where addresses of
/// services are translated already. The end that opened it leaves it out.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deduplicate {
    /// Networks whose pods count as tapped. Unset: those in spec.podCIDRs of the nodes. CNIs that do not use these, as many of
    /// Calico, Cilium and the clouds do, need this field. At most 64,
    /// with those of services.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 64)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry of deduplicate.podCIDRs must be a network such as 10.244.0.0/16 or fd00:10:244::/56"))]
    pub pod_cidrs: Option<Vec<String>>,

    /// Networks of services. Unset: those in the ServiceCIDR objects of the cluster (Kubernetes 1.33 and later). At most 64,
    /// with those of pods.
    #[serde(default, rename = "serviceCIDRs", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 64)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry of deduplicate.serviceCIDRs must be a network such as 10.96.0.0/12 or fd00:10:96::/112"))]
    pub service_cidrs: Option<Vec<String>>,
}

/// What becomes of a copy that does not fit the path to its destination. TCP is always divided so that it fits: this is about
/// full-size frames of other protocols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Oversize {
    /// Sent whole, in IP fragments.
    #[default]
    Fragment,
    /// Cut to what fits.
    Truncate,
}
