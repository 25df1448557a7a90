//! The plan: what every node is to have, and what that means for each tap.

use std::collections::{BTreeMap, BTreeSet};

use podtap_api::FINALIZER;
use podtap_model::{NodeState, Reason, Uid};

use crate::{
    failure::Failure,
    plan::{deduplication::Deduplication, moves::Moves, node_specs, reachability, sources, tap_plan::TapPlan},
    store::snapshot::Snapshot,
    validate::{policy::Policy, state::TapState},
};

/// The plan for the cluster. Nothing changes it once it is built.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The desired state of each node that has something to do.
    pub nodes: BTreeMap<String, NodeState>,
    /// Oldest tap first.
    pub taps: Vec<TapPlan<'a>>,
}

/// Builds the plan. No node learns of the taps in `without_finalizer`. Receivers of those in `without_probes` get none of some pod.
pub fn build<'a>(
    snapshot: &Snapshot,
    taps: Vec<TapPlan<'a>>,
    without_finalizer: &BTreeSet<Uid>,
    without_probes: &BTreeSet<Uid>,
    policy: &Policy,
    deduplication: &Deduplication,
    moves: &Moves,
) -> Plan<'a> {
    let exclude = |plan: TapPlan<'a>| {
        if without_finalizer.contains(&plan.tap.reference.uid) {
            TapPlan { state: TapState::Refused(missing_finalizer()), ..plan }
        } else {
            plan
        }
    };
    let taps: Vec<TapPlan<'a>> = taps.into_iter().map(exclude).collect();
    let mut nodes = node_specs::node_specs(&taps, policy, deduplication, moves);
    sources::allow(&mut nodes, snapshot, &policy.receiver_sources);
    reachability::ask(&mut nodes, &taps, without_probes, snapshot);
    Plan { nodes, taps }
}

fn missing_finalizer() -> Failure {
    Failure::new(
        Reason::Pending,
        format!(
            "the finalizer {FINALIZER}, without which nothing would be cleaned up in the end, could not be added: it is retried automatically; if this persists, ask the cluster's administrator, who finds the cause in the controller's log"
        ),
    )
}

#[cfg(test)]
mod tests;
