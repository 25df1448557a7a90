use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{endpoint::Vni, reason::Reason};

/// The actual state of a node: the status of a `NodeTap`.
///
/// It has an entry for everything that is requested, and one in the state Removing for everything of PodTap that is no longer
/// requested but still exists. What is gone has no entry: a status without entries is a clean node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many senders are Active.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "i32"))]
    pub active_senders: u32,
    /// How many receivers are Active.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "i32"))]
    pub active_receivers: u32,
    /// One entry per sender that is requested or still exists, sorted by tap and pod.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub senders: Vec<SenderStatus>,
    /// One entry per receiver that is requested or still exists, sorted by VNI.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub receivers: Vec<ReceiverStatus>,
    /// The VNIs with which the node sends, sorted by tap: those of every sender that exists, also while it is being removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub sent_vnis: Vec<SentVnis>,
    /// Source addresses of the mirrored frames that the node sends, by its routes, sorted; up to 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Vec<String>", length(max = 16), extend("x-kubernetes-list-type" = "atomic"))
    )]
    pub source_addresses: Vec<IpAddr>,
    /// Those of `checkedAddresses` that answer to TCP from this node, at port 10250, with a refusal or not; sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Vec<String>", length(max = 16), extend("x-kubernetes-list-type" = "atomic"))
    )]
    pub reachable_addresses: Vec<IpAddr>,
    /// How often the tap-helper was killed and restarted since its container started.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[cfg_attr(feature = "schema", schemars(with = "i32"))]
    pub helper_restarts: u32,
    /// Network namespaces that could not be searched for what an earlier tap-helper left, and why: one sentence each, up to 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub unsearched: Vec<String>,
    /// What carries PodTap's marks, belongs to no tap that the marks name, and could not be removed yet: one sentence each, up to 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub leftovers: Vec<String>,
    /// What the node's kernel supports, by name, found out by trying.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, bool>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The VNIs with which the senders of a tap send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SentVnis {
    /// UID of the tap.
    pub tap_uid: String,
    /// The VNIs, sorted.
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub vnis: Vec<Vni>,
}

/// State of one sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SenderStatus {
    /// UID of the tap.
    pub tap_uid: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Interface of the pod that is tapped. Unset while it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// With deduplicate: the addresses of the pod that this interface has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>", extend("x-kubernetes-list-type" = "atomic")))]
    pub addresses: Vec<IpAddr>,
    /// Its state.
    pub state: State,
    /// Why it is in that state.
    pub reason: Reason,
    /// What happened, and what to do about it. Unset when there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What may be missing from what is mirrored, one sentence each. Programs of others may hide frames from the tap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub degraded: Vec<String>,
}

/// State of one receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReceiverStatus {
    /// UID of the tap.
    pub tap_uid: String,
    /// VXLAN network identifier of the device; 0 if the request has no valid one.
    #[cfg_attr(feature = "schema", schemars(with = "i64"))]
    pub vni: u32,
    /// Its state.
    pub state: State,
    /// Why it is in that state.
    pub reason: Reason,
    /// What happened, and what to do about it. Unset when there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// UIDs of the pods whose probes arrive, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub pods_with_probes: Vec<String>,
    /// Those of `podsWithProbes` whose full-size probes do not arrive, while the small ones do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub pods_without_full_size_probes: Vec<String>,
}

/// State of a sender or receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum State {
    /// In place: frames are mirrored.
    Active,
    /// Not in place yet. It is retried automatically when what it waits for arrives.
    Pending,
    /// Not attempted, and nothing was touched: it would do harm, or cannot work.
    Refused,
    /// The kernel returned an error. It is retried with growing intervals.
    Failed,
    /// No longer requested, and still being removed.
    Removing,
}

impl SenderStatus {
    pub(crate) fn key(&self) -> (&str, &str) {
        (&self.tap_uid, &self.pod_uid)
    }
}
