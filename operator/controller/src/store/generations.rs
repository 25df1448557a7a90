//! Which generation of a `NodeTap` a node must have observed before its status says anything about a tap.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use podtap_model::{Direction, Endpoint, InterfaceName, MirrorOptions, NodeState, Pod, ProgramId, Receiver, Tap, Uid};

use crate::store::node_tap::CachedNodeTap;

/// By node: the generation of the `NodeTap` with which each tap, and each sender and receiver of it, was last written.
///
/// What did not change does not look pending while a node applies another change: of another tap, or of another pod of the same tap.
#[derive(Debug, Default)]
pub struct Generations(BTreeMap<String, NodeGenerations>);

#[derive(Debug)]
struct NodeGenerations {
    uid: String,
    /// For what has not changed since this process first saw the object.
    baseline: i64,
    taps: BTreeMap<Uid, i64>,
    parts: BTreeMap<Part, Change>,
}

/// A sender or a receiver in the spec of a `NodeTap`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Sender { tap: Uid, pod: Uid },
    Receiver { tap: Uid, vni: u32 },
}

impl Part {
    fn tap(&self) -> &Uid {
        match self {
            Self::Sender { tap, .. } | Self::Receiver { tap, .. } => tap,
        }
    }
}

/// The last change of a part, and its generation: the one that a node must have observed before its status says anything about the
/// part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was added.
    Added(i64),
    /// It existed before.
    Modified(i64),
    /// It has not changed since this process first saw the object, which had this generation.
    Before(i64),
}

impl Change {
    pub fn generation(self) -> i64 {
        match self {
            Self::Added(generation) | Self::Modified(generation) | Self::Before(generation) => generation,
        }
    }
}

impl NodeGenerations {
    fn new(uid: &str, baseline: i64) -> Self {
        Self { uid: uid.to_owned(), baseline, taps: BTreeMap::new(), parts: BTreeMap::new() }
    }
}

impl Generations {
    /// The generation that `node_tap` must have observed before its status says whether anything of `tap` is left.
    pub fn required(&self, node_tap: &CachedNodeTap, tap: &str) -> i64 {
        match self.of(node_tap) {
            Some(node) => node.taps.get(tap).copied().unwrap_or(node.baseline),
            None => node_tap.generation,
        }
    }

    /// The last change of a sender or receiver.
    pub fn change(&self, node_tap: &CachedNodeTap, part: &Part) -> Change {
        match self.of(node_tap) {
            Some(node) => node.parts.get(part).copied().unwrap_or(Change::Before(node.baseline)),
            None => Change::Before(node_tap.generation),
        }
    }

    fn of(&self, node_tap: &CachedNodeTap) -> Option<&NodeGenerations> {
        self.0.get(&node_tap.name).filter(|node| node.uid == node_tap.uid)
    }

    /// Records the objects that exist already, and forgets those that are gone.
    pub fn observe(&mut self, node_taps: &BTreeMap<String, Arc<CachedNodeTap>>) {
        self.0.retain(|name, node| node_taps.get(name).is_some_and(|object| object.uid == node.uid));
        for (name, object) in node_taps {
            self.0.entry(name.clone()).or_insert_with(|| NodeGenerations::new(&object.uid, object.generation));
        }
    }

    /// Records a write that turned `old` into `new`.
    pub fn record(&mut self, old: Option<&CachedNodeTap>, new: &CachedNodeTap) {
        let node = self.0.entry(new.name.clone()).or_insert_with(|| NodeGenerations::new(&new.uid, 0));
        if node.uid != new.uid {
            *node = NodeGenerations::new(&new.uid, 0);
        }
        let empty = NodeState::default();
        let old = parts(old.and_then(|object| object.spec.as_ref()).unwrap_or(&empty));
        let parts = parts(new.spec.as_ref().unwrap_or(&empty));
        let mut changed: BTreeSet<&Uid> = BTreeSet::new();
        for (part, content) in &parts {
            let change = match old.get(part) {
                None => Change::Added(new.generation),
                Some(before) if before != content => Change::Modified(new.generation),
                Some(_) => continue,
            };
            changed.insert(part.tap());
            node.parts.insert(part.clone(), change);
        }
        for part in old.keys().filter(|part| !parts.contains_key(part)) {
            changed.insert(part.tap());
            node.parts.remove(part);
        }
        node.taps.extend(changed.into_iter().map(|tap| (tap.clone(), new.generation)));
    }

    /// Forgets a tap that is gone.
    pub fn forget_tap(&mut self, tap: &str) {
        for node in self.0.values_mut() {
            node.taps.remove(tap);
        }
    }
}

/// What a node must have applied before its status about a part is about the present.
#[derive(PartialEq)]
enum Content<'a> {
    Sender(Pod, Option<Settings<'a>>),
    Receiver(Receiver),
}

/// Which frames of a tap are mirrored, and where to. The rest of a [`Tap`] says who it is and when it ends, peers come and go with
/// the pods of other nodes, and the underlay MTU of the node may change at any time: a node that learns of those late mirrors the right
/// frames.
type Settings<'a> = (Option<&'a InterfaceName>, Direction, &'a [Endpoint], &'a MirrorOptions, Option<&'a ProgramId>);

fn settings(tap: &Tap) -> Settings<'_> {
    (tap.interface.as_ref(), tap.direction, &tap.destinations, &tap.options, tap.program.as_ref())
}

fn parts(state: &NodeState) -> BTreeMap<Part, Content<'_>> {
    let taps: BTreeMap<&Uid, &Tap> = state.taps.iter().map(|tap| (&tap.uid, tap)).collect();
    let senders = state.senders.iter().map(|sender| {
        let part = Part::Sender { tap: sender.tap.clone(), pod: sender.pod.uid.clone() };
        let settings = taps.get(&sender.tap).map(|tap| settings(tap));
        (part, Content::Sender(without_addresses(sender.pod.clone()), settings))
    });
    let receivers = state.receivers.iter().cloned().map(|receiver| {
        let part = Part::Receiver { tap: receiver.tap.uid.clone(), vni: receiver.vni.get() };
        (part, Content::Receiver(Receiver { pod: receiver.pod.map(without_addresses), ..receiver }))
    });
    senders.chain(receivers).collect()
}

/// The pod without its addresses, which only help the tap-helper to find the interface: it keeps what it has found.
fn without_addresses(pod: Pod) -> Pod {
    Pod { addresses: Vec::new(), ..pod }
}

#[cfg(test)]
mod tests;
