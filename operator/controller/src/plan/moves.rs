//! Taps whose destinations change: nodes send to the old ones until the new ones are in place. Pure.
//!
//! # Guarantees
//! - No frame is lost because a destination is replaced. While a node changes from one to the other, for less than a millisecond as a rule,
//!   frames may go to both.
//! - Old destinations get nothing that they did not get before: a node whose pods or settings change, too, changes over at once.
//! - An old destination stays for [`LIMIT`] at most, and not at all if it is external, if its node or pod has opted out or is gone, or if
//!   its interface is in the way of another one.
//! - An old receiver stays until no node sends to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::{Endpoint, NodeState, Receiver, State, Tap, Uid};

use crate::{
    plan::{node_specs, tap_plan::TapPlan},
    store::snapshot::Snapshot,
};

/// How long an old destination stays: enough for a helper pod to be started at the new one.
const LIMIT: SignedDuration = SignedDuration::from_secs(30);

/// The destinations that stay for now.
#[derive(Debug, Default)]
pub struct Moves {
    /// By tap and node: where the node keeps sending.
    destinations: BTreeMap<(Uid, String), Vec<Endpoint>>,
    /// By tap: receivers that are no longer requested, and their nodes.
    receivers: BTreeMap<Uid, Vec<(String, Receiver)>>,
    /// Since when each tap has been moving. An input of the next reconcile.
    pub since: BTreeMap<Uid, Timestamp>,
    /// When to reconcile again even if nothing changes.
    pub next: Option<Timestamp>,
}

impl Moves {
    /// Where a node keeps sending the tap's frames, if not to its destinations.
    pub fn destinations_of(&self, tap: &Uid, node: &str) -> Option<&Vec<Endpoint>> {
        self.destinations.get(&(tap.clone(), node.to_owned()))
    }

    /// The nodes and receivers of the tap that stay for now.
    pub fn receivers_of(&self, tap: &Uid) -> impl Iterator<Item = &(String, Receiver)> {
        self.receivers.get(tap).into_iter().flatten()
    }
}

/// Finds what stays, for all taps. `before` is [`Moves::since`] of the last reconcile.
pub fn moves(taps: &[TapPlan<'_>], snapshot: &Snapshot, before: &BTreeMap<Uid, Timestamp>) -> Moves {
    let mut moves = Moves::default();
    let executed = || taps.iter().filter(|plan| plan.is_executed());
    let taken: BTreeSet<Place> = executed().flat_map(requested).map(|(node, new)| place(&node, &new)).collect();
    for plan in executed() {
        let tap = &plan.tap.reference.uid;
        let old = Old::find(plan, snapshot, &taken);
        if old.receivers.is_empty() || !(old.is_replaced() || before.contains_key(tap)) {
            continue;
        }
        let since = before.get(tap).copied().filter(|since| *since <= snapshot.now).unwrap_or(snapshot.now);
        moves.since.insert(tap.clone(), since);
        let end = since + LIMIT;
        if snapshot.now >= end {
            continue;
        }
        let is_ready = new_receivers_are_active(plan, snapshot);
        let held: Vec<_> = if is_ready { Vec::new() } else { old.senders().collect() };
        let is_used = |(node, receiver): &&(String, Receiver)| {
            let is_to = |to: &Endpoint| old.is_at(to, node, receiver);
            held.iter().any(|(_, destinations)| destinations.iter().any(is_to)) || old.may_send(is_to)
        };
        let receivers: Vec<_> = old.receivers.iter().filter(is_used).cloned().collect();
        if !receivers.is_empty() {
            moves.next = Some(moves.next.map_or(end, |next| next.min(end)));
            moves.receivers.insert(tap.clone(), receivers);
        }
        for (node, destinations) in held {
            moves.destinations.insert((tap.clone(), node.to_owned()), destinations.clone());
        }
    }
    moves
}

/// The receivers of the plan, with their nodes.
fn requested(plan: &TapPlan<'_>) -> Vec<(String, Receiver)> {
    plan.destinations.iter().filter_map(|destination| node_specs::receiver(plan, destination)).collect()
}

/// Where an interface is: on a node, in the network namespace of a pod or of the node, and its name.
type Place = (String, Option<Uid>, String);

fn place(node: &str, receiver: &Receiver) -> Place {
    (node.to_owned(), receiver.pod.as_ref().map(|pod| pod.uid.clone()), receiver.interface_name.to_string())
}

/// Whether every receiver of the plan is in place.
fn new_receivers_are_active(plan: &TapPlan<'_>, snapshot: &Snapshot) -> bool {
    let tap: &str = &plan.tap.reference.uid;
    requested(plan).into_iter().all(|(node, receiver)| {
        let Some(node_tap) = snapshot.node_taps.get(&node) else { return false };
        let is_requested = node_tap.spec.as_ref().is_some_and(|spec| spec.receivers.contains(&receiver));
        let mut reports = node_tap.status.receivers.iter();
        let report = reports.find(|report| report.tap_uid == tap && report.vni == receiver.vni.get());
        let is_active = report.is_some_and(|report| report.state == State::Active);
        is_requested && is_active && node_tap.has_observed(node_tap.generation)
    })
}

/// What the nodes were told about a tap, and is no longer requested.
struct Old<'a> {
    snapshot: &'a Snapshot,
    /// The receivers that could stay, with their nodes.
    receivers: Vec<(String, Receiver)>,
    /// By node: its destinations.
    told: BTreeMap<&'a str, &'a Vec<Endpoint>>,
    /// The nodes for which nothing else changes.
    same: BTreeSet<&'a str>,
    /// The destinations of the plan.
    new: Vec<Endpoint>,
}

impl<'a> Old<'a> {
    fn find(plan: &TapPlan<'_>, snapshot: &'a Snapshot, taken: &BTreeSet<Place>) -> Self {
        let tap = &plan.tap.reference.uid;
        let new = requested(plan);
        let told = || snapshot.node_taps.iter().filter_map(|(node, node_tap)| Some((node, node_tap.spec.as_ref()?)));
        let of_tap = |(node, spec): (&String, &'a NodeState)| {
            let receivers = spec.receivers.iter().filter(|receiver| receiver.tap.uid == *tap);
            receivers.map(|receiver| (node.clone(), receiver.clone())).collect::<Vec<_>>()
        };
        let can_stay = |(node, receiver): &(String, Receiver)| {
            // It becomes the new one.
            let is_kept = new.iter().any(|(new_node, new)| new_node == node && new.vni == receiver.vni);
            !is_kept && !taken.contains(&place(node, receiver)) && is_usable(snapshot, node, receiver)
        };
        let receivers = told().flat_map(of_tap).filter(can_stay).collect();
        let destinations = |(node, spec): (&'a String, &'a NodeState)| {
            let entry = spec.taps.iter().find(|entry| entry.uid == *tap)?;
            Some((node.as_str(), &entry.destinations))
        };
        Self {
            snapshot,
            receivers,
            told: told().filter_map(destinations).collect(),
            same: told().filter(|(node, spec)| is_same(plan, node, spec)).map(|(node, _)| node.as_str()).collect(),
            new: node_specs::endpoints(plan),
        }
    }

    /// Whether some node is to send elsewhere than it does, and not only to fewer destinations.
    fn is_replaced(&self) -> bool {
        let mut told = self.told.values();
        told.any(|told| told.iter().any(|to| self.is_old(to)) && self.new.iter().any(|to| !told.contains(to)))
    }

    /// The nodes that can keep sending what they do where they do, since all of that is still requested or can stay.
    fn senders(&self) -> impl Iterator<Item = (&'a str, &'a Vec<Endpoint>)> {
        let can_stay = |to: &Endpoint| self.new.contains(to) || self.is_old(to);
        let same = self.told.iter().filter(|(node, _)| self.same.contains(*node));
        let senders = same.filter(move |(_, told)| told.iter().all(&can_stay));
        senders.map(|(node, told)| (*node, *told))
    }

    fn is_old(&self, to: &Endpoint) -> bool {
        self.receivers.iter().any(|(node, receiver)| self.is_at(to, node, receiver))
    }

    /// Whether an endpoint is that of a receiver.
    fn is_at(&self, to: &Endpoint, node: &str, receiver: &Receiver) -> bool {
        let addresses = self.snapshot.nodes.get(node).map(|node| &node.all_addresses);
        let has = |addresses: &BTreeSet<IpAddr>| addresses.contains(&to.address);
        to.vni == receiver.vni && to.port == receiver.port && addresses.is_some_and(has)
    }

    /// Whether some node has such a destination, or may have: it has not applied its newest spec.
    fn may_send(&self, is_to: impl Fn(&Endpoint) -> bool) -> bool {
        self.told.iter().any(|(node, destinations)| {
            let is_behind = self.snapshot.node_taps.get(*node).is_some_and(|n| !n.has_observed(n.generation));
            is_behind || destinations.iter().any(&is_to)
        })
    }
}

/// Whether nothing of the tap changes on a node but destinations and peers, and no pod is added: no spec ever
/// asked for more to be sent to an old destination.
fn is_same(plan: &TapPlan<'_>, node: &str, told: &NodeState) -> bool {
    let tap = &plan.tap.reference.uid;
    let settings = |entry: &Tap| Tap { destinations: Vec::new(), peers: Vec::new(), ..entry.clone() };
    let (Ok(spec), Some(entry)) = (&plan.tap.spec, told.taps.iter().find(|entry| entry.uid == *tap)) else {
        return false;
    };
    let is_told = |uid: &Uid| told.senders.iter().any(|sender| sender.tap == *tap && sender.pod.uid == *uid);
    let mut pods = plan.targets.tapped().filter(|pod| pod.node.as_deref() == Some(node));
    settings(entry) == settings(&node_specs::tap(plan, spec, Vec::new())) && pods.all(|pod| is_told(&pod.uid))
}

/// Whether a receiver may keep receiving frames.
fn is_usable(snapshot: &Snapshot, node: &str, receiver: &Receiver) -> bool {
    let node_is_usable = snapshot.nodes.get(node).is_some_and(|node| node.ready && !node.excluded);
    let pod_is_usable = receiver.pod.as_ref().is_none_or(|pod| {
        let cached = snapshot.pod(&pod.namespace, &pod.name).filter(|cached| cached.uid == pod.uid);
        cached.is_some_and(|cached| !cached.finished && !cached.excluded)
    });
    node_is_usable && pod_is_usable
}

#[cfg(test)]
mod tests;
