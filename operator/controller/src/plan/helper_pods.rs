//! The helper pods of a node: which one serves it, and since when none is Ready. Pure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::Uid;

use crate::{
    plan::nodes::NodePlan,
    store::{pod::CachedPod, snapshot::Snapshot},
};

/// How long a helper pod may take to become Ready, or Ready again. Until then, the status of its node counts as current.
pub const READY_DEADLINE: SignedDuration = SignedDuration::from_mins(2);

/// The pod that serves the node, of all its helper pods: one of the current template if possible, then one that is Ready, then the
/// oldest. There are others only while they end, if the response to a request was lost, or if two controllers led for a moment.
pub fn serving<'a>(pods: &'a [Arc<CachedPod>], template: &str) -> Option<&'a Arc<CachedPod>> {
    let is_alive = |pod: &&Arc<CachedPod>| !pod.terminating && pod.helper.as_ref().is_some_and(|h| h.ended.is_none());
    // The successor of an outdated pod is known as soon as it is created, and that the outdated one is being deleted a little later.
    let rank = |pod: &&Arc<CachedPod>| (is_outdated(pod, template), !pod.ready, pod.created, pod.uid.clone());
    pods.iter().filter(is_alive).min_by_key(rank)
}

/// Whether a helper pod is of another template.
pub fn is_outdated(pod: &CachedPod, template: &str) -> bool {
    pod.helper.as_ref().is_none_or(|helper| helper.template != template)
}

/// A node to be served whose helper pod is not Ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unready {
    /// The pod that is not Ready; `None` if there is none.
    pub pod: Option<Uid>,
    pub since: Timestamp,
}

impl Unready {
    /// When the pod has had time enough.
    pub fn deadline(&self) -> Timestamp {
        self.since + READY_DEADLINE
    }
}

/// The nodes that are to be served, and whose helper pod is not Ready. Nodes that are not Ready themselves do not count: nothing that
/// is known about their pods is current. `previous` is the result of the previous reconcile.
pub fn unready(
    snapshot: &Snapshot,
    plans: &BTreeMap<String, NodePlan>,
    template: &str,
    previous: &BTreeMap<String, Unready>,
) -> BTreeMap<String, Unready> {
    let unready = |node: &String| {
        let pod = serving(snapshot.helpers_of(node), template);
        if pod.is_some_and(|pod| pod.ready) {
            return None;
        }
        let uid = pod.map(|pod| pod.uid.clone());
        let known = previous.get(node).filter(|known| known.pod == uid);
        Some((node.clone(), known.cloned().unwrap_or(Unready { pod: uid, since: snapshot.now })))
    };
    served(snapshot, plans).filter_map(unready).collect()
}

/// The nodes that are Ready and are to have a helper pod.
pub fn served<'a>(snapshot: &'a Snapshot, plans: &'a BTreeMap<String, NodePlan>) -> impl Iterator<Item = &'a String> {
    let is_ready = |name: &String| snapshot.nodes.get(name).is_some_and(|node| node.ready);
    plans.iter().filter(move |(name, plan)| matches!(plan, NodePlan::Serve(_)) && is_ready(name)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests;
