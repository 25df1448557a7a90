//! Which pods of a tap with `deduplicate` may leave flows to each other. Pure.
//!
//! # Guarantees
//! - An address is a peer only while the node of its pod reports an active sender on the interface with that address, with the same
//!   options as all other senders of the tap.
//! - A sender is removed only after all nodes have stopped leaving flows to it. Its pod, namespace or node opting out ends it at once.
//! - Where any of this is uncertain, both ends mirror a flow.
//!
//! Peers depend on what nodes report, and nothing that nodes report depends on peers, so the two cannot oscillate.

mod leaving;
mod peers;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::{Direction, Sender, Tap, Uid};

use crate::{
    plan::tap_plan::TapPlan,
    store::{generations::Generations, node_tap::CachedNodeTap, snapshot::Snapshot},
    validate::spec::TapSpec,
};

/// How long what a node has reported still counts while its helper pod is not ready. Senders keep running without it, for at least
/// twice as long.
const UNATTENDED: SignedDuration = SignedDuration::from_secs(15);

/// How long a sender stays for nodes that do not report that they have stopped leaving flows to it.
const LEAVING: SignedDuration = SignedDuration::from_secs(5);

/// The peers of each tap, and the senders that stay although their pods are no longer targets.
#[derive(Debug, Default)]
pub struct Deduplication {
    peers: BTreeMap<Uid, Vec<IpAddr>>,
    /// By tap: the node and the pod of each sender.
    leaving: BTreeMap<Uid, Vec<(String, Sender)>>,
    /// An input of the next reconcile.
    pub waits: Waits,
    /// When to reconcile again even if nothing changes.
    pub next: Option<Timestamp>,
}

/// What deduplication waits for, and since when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waits {
    /// Nodes that are not ready, or have no helper pod that is.
    unattended: BTreeMap<String, Timestamp>,
    /// Senders to be removed, by tap and pod.
    leaving: BTreeMap<(Uid, Uid), Timestamp>,
}

impl Deduplication {
    pub fn peers_of(&self, tap: &Uid) -> Vec<IpAddr> {
        self.peers.get(tap).cloned().unwrap_or_default()
    }

    /// The tap's senders that stay for now, and their nodes.
    pub fn leaving_of(&self, tap: &Uid) -> impl Iterator<Item = (String, Sender)> {
        self.leaving.get(tap).into_iter().flatten().cloned()
    }
}

/// Finds peers and senders that stay, for all taps.
pub fn deduplication(
    taps: &[TapPlan<'_>],
    snapshot: &Snapshot,
    generations: &Generations,
    before: &Waits,
) -> Deduplication {
    let mut result = Deduplication::default();
    let taps: Vec<DeduplicatedTap<'_>> = taps.iter().filter_map(DeduplicatedTap::new).collect();
    if taps.is_empty() {
        return result;
    }
    let is_unattended = |node: &&String| {
        let is_ready = snapshot.nodes.get(*node).is_some_and(|node| node.ready);
        !(is_ready && snapshot.helpers_of(node).iter().any(|helper| helper.ready && !helper.terminating))
    };
    let unattended = snapshot.node_taps.keys().filter(is_unattended).cloned();
    let unattended = result.wait(&before.unattended, unattended, UNATTENDED, snapshot.now);
    let attended: BTreeMap<&str, &CachedNodeTap> = snapshot
        .node_taps
        .iter()
        .filter(|(node, _)| unattended.get(*node).is_none_or(|wait| !wait.is_over))
        .map(|(node, node_tap)| (node.as_str(), node_tap.as_ref()))
        .collect();
    let owners = peers::owners(snapshot);
    let senders = peers::senders(&attended);
    let mut candidates = BTreeMap::new();
    for tap in &taps {
        result.peers.insert(tap.uid().clone(), peers::peers(tap, &attended, generations, &owners, &senders));
        for (node, sender) in leaving::senders(tap, snapshot, &attended) {
            candidates.insert((tap.uid().clone(), sender.pod.uid.clone()), (node, sender));
        }
    }
    let leaving = result.wait(&before.leaving, candidates.keys().cloned(), LEAVING, snapshot.now);
    for (key, (node, sender)) in candidates {
        if leaving.get(&key).is_some_and(|wait| !wait.is_over) {
            result.leaving.entry(key.0).or_default().push((node, sender));
        }
    }
    let since = |wait: Wait| wait.since;
    result.waits = Waits {
        unattended: unattended.into_iter().map(|(key, wait)| (key, since(wait))).collect(),
        leaving: leaving.into_iter().map(|(key, wait)| (key, since(wait))).collect(),
    };
    result
}

/// One wait.
#[derive(Clone, Copy)]
struct Wait {
    since: Timestamp,
    is_over: bool,
}

impl Deduplication {
    /// Waits that last as long as their keys are named, and are over after a while.
    fn wait<K: Ord + Clone>(
        &mut self,
        before: &BTreeMap<K, Timestamp>,
        keys: impl Iterator<Item = K>,
        limit: SignedDuration,
        now: Timestamp,
    ) -> BTreeMap<K, Wait> {
        let wait = |key: K| {
            let since = before.get(&key).copied().unwrap_or(now);
            let end = since + limit;
            if now < end {
                self.next = Some(self.next.map_or(end, |next| next.min(end)));
            }
            (key, Wait { since, is_over: now >= end })
        };
        keys.map(wait).collect()
    }
}

/// A tap that is carried out with deduplication.
struct DeduplicatedTap<'a> {
    plan: &'a TapPlan<'a>,
    spec: &'a TapSpec,
}

impl<'a> DeduplicatedTap<'a> {
    fn new(plan: &'a TapPlan<'a>) -> Option<Self> {
        let spec = plan.tap.spec.as_ref().ok()?;
        let is_deduplicated = plan.options.deduplicate.is_some() && spec.direction == Direction::Both;
        (plan.is_executed() && is_deduplicated).then_some(Self { plan, spec })
    }

    fn uid(&self) -> &Uid {
        &self.plan.tap.reference.uid
    }

    /// The tap in a `NodeTap`, if it has the options that decide which frames are mirrored already.
    fn entry<'b>(&self, node_tap: &'b CachedNodeTap) -> Option<&'b Tap> {
        let entry = entry(self.uid(), node_tap)?;
        let same = entry.interface == self.spec.interface
            && entry.direction == self.spec.direction
            && entry.options == self.plan.options
            && entry.program.as_ref() == self.plan.program.as_ref().map(|program| &program.id);
        same.then_some(entry)
    }

    /// The UIDs of the pods to tap.
    fn pods(&self) -> BTreeSet<&str> {
        self.plan.targets.tapped().map(|pod| &*pod.uid).collect()
    }
}

/// The tap in a `NodeTap`.
fn entry<'b>(tap: &Uid, node_tap: &'b CachedNodeTap) -> Option<&'b Tap> {
    node_tap.spec.as_ref()?.taps.iter().find(|entry| entry.uid == *tap)
}

#[cfg(test)]
mod tests;
