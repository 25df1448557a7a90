//! The `NodeTap` and the helper pod of each node: whether it has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::NodeState;

use crate::{
    names::{self, LABEL_COMPONENT, LABEL_NAME},
    store::{node_tap::CachedNodeTap, pod::CachedPod, snapshot::Snapshot},
};

/// How long a node keeps its helper pod after its last tap, so that the next tap starts at once.
const LINGER: SignedDuration = SignedDuration::from_secs(60);

/// What a node is to have.
#[derive(Clone, Debug, PartialEq)]
pub enum NodePlan {
    /// A `NodeTap` with this spec, and a helper pod. The spec is empty while the node cleans up, and for [`LINGER`] after that unless
    /// the node is cordoned.
    Serve(NodeState),
    /// Neither. The helper pod is deleted first: it must not see its `NodeTap` disappear.
    Retire,
    /// Neither; both are deleted at once, since no kubelet would confirm that the pod has ended.
    Forget,
}

/// What all nodes are to have.
#[derive(Clone, Debug, PartialEq)]
pub struct NodePlans {
    pub nodes: BTreeMap<String, NodePlan>,
    /// Since when a node has had nothing to do and nothing left; an input of the next reconcile.
    pub idle_since: BTreeMap<String, Timestamp>,
    /// When to reconcile again even if nothing changes.
    pub next: Option<Timestamp>,
}

/// Whether `helm uninstall` is running: its job waits until no `NodeTap` exists.
pub fn is_uninstalling(snapshot: &Snapshot, own_namespace: &str) -> bool {
    let is_job = |pod: &CachedPod| {
        let has = |label: &str, value: &str| pod.labels.get(label).is_some_and(|found| found == value);
        has(LABEL_NAME, names::PRODUCT) && has(LABEL_COMPONENT, names::UNINSTALL)
    };
    snapshot.pods.get(own_namespace).into_iter().flatten().any(|pod| !pod.finished && is_job(pod))
}

/// Decides for each node that has work, or a `NodeTap`, or a helper pod.
pub fn plan(
    snapshot: &Snapshot,
    mut work: BTreeMap<String, NodeState>,
    idle_since: &BTreeMap<String, Timestamp>,
    is_uninstalling: bool,
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
            (Some(_), None, Some(node_tap)) if !is_clean(node_tap, snapshot.helpers_of(&name)) => {
                NodePlan::Serve(NodeState::default())
            }
            (Some(node), None, Some(_)) if is_uninstalling => {
                if node.ready {
                    NodePlan::Retire
                } else {
                    NodePlan::Forget
                }
            }
            (Some(node), None, Some(_)) => {
                let since = idle_since.get(&name).copied().unwrap_or(snapshot.now);
                plans.idle_since.insert(name.clone(), since);
                // A node that is drained is to become empty, and gets no further taps.
                let end = if node.unschedulable { since } else { since + LINGER };
                if snapshot.now >= end {
                    NodePlan::Retire
                } else {
                    plans.next = Some(plans.next.map_or(end, |next| next.min(end)));
                    NodePlan::Serve(NodeState::default())
                }
            }
        };
        plans.nodes.insert(name, plan);
    }
    plans
}

/// Whether the node has nothing left and has observed that nothing is requested, or has never had a helper pod that could do anything.
fn is_clean(node_tap: &CachedNodeTap, helpers: &[Arc<CachedPod>]) -> bool {
    let never_served = node_tap.status.observed_generation.is_none() && !helpers.iter().any(|pod| pod.ready);
    node_tap.is_empty() && (never_served || node_tap.has_observed(node_tap.generation))
}

#[cfg(test)]
mod tests;
