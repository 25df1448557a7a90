//! What the leader keeps between reconciles. All of it can be lost: a new leader then waits a little longer here and there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;
use podtap_model::Uid;
use tokio::time::Instant;

use crate::{
    apply::helper_requests::HelperRequests,
    expression::compiled::Compilations,
    failure::Failure,
    plan::{deduplication, helper_pods::Unready, vni::Vnis},
    retries::Retries,
    status::{unknown_keys, waits::Waits, write::LastWrites},
    store::{
        generations::Generations,
        tap::{CachedPolicy, DecodeError},
    },
};

/// The state of the controller.
#[derive(Debug, Default)]
pub struct ControllerState {
    /// Since when a node has had nothing to do and nothing left.
    pub idle_since: BTreeMap<String, Timestamp>,
    /// Since when each node has been swept that has not reported yet.
    pub sweep_begun: BTreeMap<String, Timestamp>,
    /// PodTap was about to be uninstalled: no further node is swept.
    pub sweep_ended: bool,
    /// The generation of each `NodeTap` with which each tap's part of it was last written.
    pub generations: Generations,
    /// What `deduplicate` waits for, and since when.
    pub deduplication: deduplication::Waits,
    /// The taps whose destinations change, and since when.
    pub moves: BTreeMap<Uid, Timestamp>,
    pub retries: Retries,
    /// Since when each tap is known to be deleted.
    pub deleting_since: BTreeMap<Uid, Instant>,
    /// The nodes whose helper pod is not Ready, and since when.
    pub unready: BTreeMap<String, Unready>,
    /// Why a node's helper pod does not work. Kept until one does, so that the pause between two attempts does not look like success.
    pub helper_failures: BTreeMap<String, Failure>,
    /// The requests for helper pods that have not been answered yet.
    pub helper_requests: HelperRequests,
    /// The template whose rollout has stopped; reported once.
    pub rollout_stopped: Option<String>,
    /// What each tap lacks, and since when.
    pub waits: BTreeMap<Uid, Waits>,
    /// The taps of which a receiver gets no probes of some pod.
    pub without_probes: BTreeSet<Uid>,
    /// When statuses were last written.
    pub last_writes: LastWrites,
    /// The unknown labels and annotations that were reported.
    pub unknown_keys: unknown_keys::Reported,
    /// The decoding error that was last reported for each unreadable tap.
    pub unreadable: BTreeMap<Uid, DecodeError>,
    /// The VNIs of the last reconcile. The next leader finds them in the statuses of the taps and on the nodes.
    pub vnis: Vnis,
    /// When each tap started, until its status says so.
    pub starts: BTreeMap<Uid, Timestamp>,
    /// The last policy that could be decoded, while there is one.
    pub last_policy: Option<Arc<CachedPolicy>>,
    /// Why the policy cannot be decoded; logged once.
    pub policy_error: Option<DecodeError>,
    /// The filter expressions, compiled or being compiled.
    pub expressions: Compilations,
}
