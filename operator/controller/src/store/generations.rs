//! Which generation of a `NodeTap` a node must have observed before its status says anything about a tap.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use podtap_model::{NodeState, Pod, Receiver, Tap, Uid};

use crate::store::node_tap::CachedNodeTap;

/// By node: the generation of the `NodeTap` with which each tap's part of it was last written.
///
/// A node that has not applied other taps' changes yet does not make a tap that did not change look pending.
#[derive(Debug, Default)]
pub struct Generations(BTreeMap<String, NodeGenerations>);

#[derive(Debug)]
struct NodeGenerations {
    uid: String,
    /// For taps that have not changed since this process first saw the object.
    baseline: i64,
    taps: BTreeMap<Uid, i64>,
}

impl Generations {
    /// The generation that `node_tap` must have observed before its status says anything about `tap`.
    pub fn required(&self, node_tap: &CachedNodeTap, tap: &str) -> i64 {
        match self.0.get(&node_tap.name).filter(|node| node.uid == node_tap.uid) {
            Some(node) => node.taps.get(tap).copied().unwrap_or(node.baseline),
            None => node_tap.generation,
        }
    }

    /// Records the objects that exist already, and forgets those that are gone.
    pub fn observe(&mut self, node_taps: &BTreeMap<String, Arc<CachedNodeTap>>) {
        self.0.retain(|name, node| node_taps.get(name).is_some_and(|object| object.uid == node.uid));
        for (name, object) in node_taps {
            self.0.entry(name.clone()).or_insert_with(|| NodeGenerations {
                uid: object.uid.clone(),
                baseline: object.generation,
                taps: BTreeMap::new(),
            });
        }
    }

    /// Records a write that turned `old` into `new`.
    pub fn record(&mut self, old: Option<&CachedNodeTap>, new: &CachedNodeTap) {
        let node = self.0.entry(new.name.clone()).or_insert_with(|| NodeGenerations {
            uid: new.uid.clone(),
            baseline: 0,
            taps: BTreeMap::new(),
        });
        if node.uid != new.uid {
            *node = NodeGenerations { uid: new.uid.clone(), baseline: 0, taps: BTreeMap::new() };
        }
        let empty = NodeState::default();
        let old = old.and_then(|object| object.spec.as_ref()).unwrap_or(&empty);
        for tap in changed_taps(old, new.spec.as_ref().unwrap_or(&empty)) {
            node.taps.insert(tap, new.generation);
        }
    }

    /// Forgets a tap that is gone.
    pub fn forget_tap(&mut self, tap: &str) {
        for node in self.0.values_mut() {
            node.taps.remove(tap);
        }
    }
}

/// The taps whose part of the spec differs. What says how long a mirror goes on does not count, nor does the underlay MTU: a node that
/// learns of it late mirrors the right frames. Nor do peers, which come and go with the pods of other nodes.
fn changed_taps(old: &NodeState, new: &NodeState) -> BTreeSet<Uid> {
    let taps = [old, new].into_iter().flat_map(|state| {
        let receivers = state.receivers.iter().map(|receiver| receiver.tap.uid.clone());
        state.senders.iter().map(|sender| sender.tap.clone()).chain(receivers)
    });
    let taps: BTreeSet<Uid> = taps.collect();
    let differs = |tap: &Uid| {
        let settings = |state: &NodeState| {
            let entry = state.taps.iter().find(|entry| entry.uid == *tap)?;
            Some(Tap { expiration_time: None, peers: Vec::new(), ..entry.clone() })
        };
        senders(old, tap) != senders(new, tap)
            || receivers(old, tap) != receivers(new, tap)
            || settings(old) != settings(new)
    };
    taps.into_iter().filter(differs).collect()
}

/// The tapped pods without their addresses, which only help the tap-helper to find the interface: it keeps what it has found.
fn senders(state: &NodeState, tap: &Uid) -> Vec<Pod> {
    let pods = state.senders.iter().filter(|sender| sender.tap == *tap).map(|sender| sender.pod.clone());
    pods.map(without_addresses).collect()
}

fn receivers(state: &NodeState, tap: &Uid) -> Vec<Receiver> {
    let receivers = state.receivers.iter().filter(|receiver| receiver.tap.uid == *tap).cloned();
    receivers.map(|receiver| Receiver { pod: receiver.pod.map(without_addresses), ..receiver }).collect()
}

fn without_addresses(pod: Pod) -> Pod {
    Pod { addresses: Vec::new(), ..pod }
}

#[cfg(test)]
mod tests;
