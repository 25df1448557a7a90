//! Part of stage 4: what becomes of each node's `NodeTap` and helper pod. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::NodeTapSpec;

use crate::{store::{objects::CachedNodeTap, snapshot::Snapshot}};

/// How long a node keeps its helper after its last tap: the next one is then there at once.
const LINGER: SignedDuration = SignedDuration::from_secs(60);

/// What is to be of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodePlan {
    /// A `NodeTap` with this spec, and a helper pod. The spec is empty while a node is to clean up, or lingers.
    Serve(NodeTapSpec),
    /// Neither. The helper pod goes first: it must not see its object vanish before it has gone.
    Retire,
    /// Neither, both at once: the node is no longer part of the cluster.
    Forget,
}

/// What is to be of all nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct NodePlans {
    pub nodes: BTreeMap<String, NodePlan>,
    /// Since when a node has had nothing to do and nothing left; to be handed in again at the next pass.
    pub idle_since: BTreeMap<String, Timestamp>,
    /// When to look again although nothing changes.
    pub next: Option<Timestamp>,
}

/// Decides for each node that has work, or a `NodeTap`, or a helper pod.
pub fn plan(
    snapshot: &Snapshot,
    mut work: BTreeMap<String, NodeTapSpec>,
    idle_since: &BTreeMap<String, Timestamp>,
) -> NodePlans {
    let known = snapshot.node_taps.keys().chain(snapshot.helpers.keys()).cloned();
    let names: BTreeSet<String> = known.chain(work.keys().cloned()).collect();
    let mut plans = NodePlans { nodes: BTreeMap::new(), idle_since: BTreeMap::new(), next: None };
    for name in names {
        let node = snapshot.nodes.get(&name);
        let plan = match (node, work.remove(&name), snapshot.node_taps.get(&name)) {
            (None, _, _) => NodePlan::Forget,
            (Some(_), Some(spec), _) => NodePlan::Serve(spec),
            (Some(_), None, None) => NodePlan::Retire,
            (Some(_), None, Some(node_tap)) if !is_clean(node_tap) => NodePlan::Serve(NodeTapSpec::default()),
            (Some(_), None, Some(_)) => {
                let since = idle_since.get(&name).copied().unwrap_or(snapshot.now);
                plans.idle_since.insert(name.clone(), since);
                let end = since + LINGER;
                if snapshot.now >= end {
                    NodePlan::Retire
                } else {
                    plans.next = Some(plans.next.map_or(end, |next| next.min(end)));
                    NodePlan::Serve(NodeTapSpec::default())
                }
            }
        };
        plans.nodes.insert(name, plan);
    }
    plans
}

/// Whether the node has nothing left, and knows that it is to have nothing; or never heard of anything.
fn is_clean(node_tap: &CachedNodeTap) -> bool {
    let status = &node_tap.status;
    let is_empty = status.senders.is_empty() && status.receivers.is_empty();
    let spec_is_empty = node_tap.spec.as_ref().is_some_and(|spec| spec.senders.is_empty() && spec.receivers.is_empty());
    let untouched = status.observed_generation.is_none();
    is_empty && spec_is_empty && (untouched || node_tap.has_observed(node_tap.generation))
}

#[cfg(test)]
mod tests;
