//! Which nodes are swept: each node that existed when PodTap was installed gets a helper pod once, which removes what an earlier
//! installation has left behind there.
//!
//! Nodes that join the cluster later are not swept: no earlier installation has mirrored on them. On a machine that leaves the cluster
//! and comes back as another node, a mirror has stopped by its orphan timeout, and the next helper pod removes it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::State;

use crate::store::{node_tap::CachedNodeTap, snapshot::Snapshot};

/// How many nodes are swept at the same time.
const CONCURRENCY: usize = 8;
/// How long a node may take before another one is swept in its place. It is tried again when another replica becomes the leader, and
/// swept whenever it gets a helper pod for a tap.
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

/// What is to be swept now.
#[derive(Debug, Default, PartialEq)]
pub struct Sweep {
    pub nodes: BTreeSet<String>,
    /// When to reconcile again even if nothing changes.
    pub next: Option<Timestamp>,
}

/// Chooses among the `unswept` nodes. `begun` has the time of each that was chosen before.
pub fn choose(unswept: &BTreeSet<String>, snapshot: &Snapshot, begun: &mut BTreeMap<String, Timestamp>) -> Sweep {
    let now = snapshot.now;
    // A node that is drained is to become empty: it is swept when it is uncordoned.
    let is_cordoned = |name: &str| snapshot.nodes.get(name).is_some_and(|node| node.unschedulable);
    begun.retain(|node, _| unswept.contains(node) && !is_cordoned(node));
    let can_be_swept = |name: &&String| {
        snapshot.nodes.get(*name).is_some_and(|node| node.ready && node.linux && !node.excluded)
            && !is_cordoned(name)
            && begun.get(*name).is_none_or(|begun| now < *begun + PATIENCE)
    };
    // Those that were chosen before come first.
    let (running, waiting): (Vec<_>, Vec<_>) =
        unswept.iter().filter(can_be_swept).partition(|name| begun.contains_key(*name));
    let nodes: BTreeSet<String> = running.into_iter().chain(waiting).take(CONCURRENCY).cloned().collect();
    for node in &nodes {
        begun.entry(node.clone()).or_insert(now);
    }
    let next = nodes.iter().filter_map(|node| Some(*begun.get(node)? + PATIENCE)).min();
    Sweep { nodes, next }
}

/// The nodes that have not been swept yet. A node that has left the cluster does not count.
pub fn remaining<T: AsRef<CachedNodeTap>>(
    unswept: &BTreeSet<String>,
    snapshot: &Snapshot,
    node_taps: &BTreeMap<String, T>,
) -> BTreeSet<String> {
    let remains = |node: &&String| {
        snapshot.nodes.contains_key(*node) && !node_taps.get(*node).is_some_and(|node_tap| is_swept(node_tap.as_ref()))
    };
    unswept.iter().filter(remains).cloned().collect()
}

/// A tap-helper that starts adopts or removes whatever carries PodTap's marks, and reports what it is still removing and where it could not
/// look. Every report is of this installation: when the record began, it deleted the `NodeTap`s that no helper pod served.
fn is_swept(node_tap: &CachedNodeTap) -> bool {
    let status = &node_tap.status;
    let senders = status.senders.iter().map(|sender| sender.state);
    let mut all = senders.chain(status.receivers.iter().map(|receiver| receiver.state));
    let is_complete = status.unsearched.is_empty() && status.leftovers.is_empty();
    status.observed_generation.is_some() && is_complete && !all.any(|state| state == State::Removing)
}

#[cfg(test)]
mod tests;
