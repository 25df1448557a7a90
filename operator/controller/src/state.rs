//! What the leader keeps between reconciles. All of it can be lost: a new leader then waits a little longer here and there.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use podtap_model::Uid;

use crate::{
    expression::compiled::Expressions,
    failure::Failure,
    plan::vni::Vnis,
    retries::Retries,
    store::{generations::Generations, tap::DecodeError},
};

/// The state of the controller.
#[derive(Debug, Default)]
pub struct ControllerState {
    /// Since when a node has had nothing to do and nothing left.
    pub idle_since: BTreeMap<String, Timestamp>,
    /// The generation of each `NodeTap` with which each tap's part of it was last written.
    pub generations: Generations,
    pub retries: Retries,
    /// Why a node's helper pod does not run. Kept until one does, so that the pause between two attempts does not look like success.
    pub helper_failures: BTreeMap<String, Failure>,
    /// The decoding error that was last reported for each unreadable tap.
    pub unreadable: BTreeMap<Uid, DecodeError>,
    /// The VNIs of the last reconcile. The next leader finds them in the statuses of the taps and on the nodes.
    pub vnis: Vnis,
    /// The compiled filter expressions.
    pub expressions: Expressions,
}
