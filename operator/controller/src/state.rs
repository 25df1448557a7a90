//! What the leader remembers between passes. All of it can be lost: a new leader then waits a little longer here and there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::{NodeTapReceiver, NodeTapSender, NodeTapSpec};

use crate::{expression::compiled::Expressions, failure::Failure, store::objects::CachedNodeTap};
use podtap_runtime::backoff::Backoff;

/// See the module.
#[derive(Debug, Default)]
pub struct ControllerState {
    /// Since when a node has had nothing to do and nothing left.
    pub idle_since: BTreeMap<String, Timestamp>,
    /// When which tap's part of a node was last written.
    pub generations: Generations,
    /// What failed, and when to try it again.
    pub retries: Retries,
    /// Why a node's helper pod does not run; kept until one does, so that the time between two attempts does not
    /// look like success.
    pub helper_failures: BTreeMap<String, Failure>,
    /// Objects that cannot be read, by UID, and the error that was already reported.
    pub unreadable: BTreeMap<String, String>,
    /// What the expressions of filters mean.
    pub expressions: Expressions,
}

/// By node: the generation of the `NodeTap` with which each tap's part of it was last written.
///
/// A node that is behind with other taps' changes says nothing against a tap that did not change.
#[derive(Debug, Default)]
pub struct Generations(BTreeMap<String, NodeWritten>);

#[derive(Debug)]
struct NodeWritten {
    uid: String,
    /// For taps that have not changed since this process saw the object for the first time.
    baseline: i64,
    taps: BTreeMap<String, i64>,
}

impl Generations {
    /// The generation that `node_tap` must have observed before its status says anything about `tap`.
    pub fn needed(&self, node_tap: &CachedNodeTap, tap: &str) -> i64 {
        match self.0.get(&node_tap.name).filter(|node| node.uid == node_tap.uid) {
            Some(node) => node.taps.get(tap).copied().unwrap_or(node.baseline),
            None => node_tap.generation,
        }
    }

    /// Takes note of what is there already, and forgets what is gone.
    pub fn look(&mut self, node_taps: &BTreeMap<String, std::sync::Arc<CachedNodeTap>>) {
        self.0.retain(|name, node| node_taps.get(name).is_some_and(|fact| fact.uid == node.uid));
        for (name, fact) in node_taps {
            self.0.entry(name.clone()).or_insert_with(|| NodeWritten {
                uid: fact.uid.clone(),
                baseline: fact.generation,
                taps: BTreeMap::new(),
            });
        }
    }

    /// Takes note of a write that turned `old` into `new`.
    pub fn note(&mut self, old: Option<&CachedNodeTap>, new: &CachedNodeTap) {
        let node = self.0.entry(new.name.clone()).or_insert_with(|| NodeWritten {
            uid: new.uid.clone(),
            baseline: 0,
            taps: BTreeMap::new(),
        });
        if node.uid != new.uid {
            *node = NodeWritten { uid: new.uid.clone(), baseline: 0, taps: BTreeMap::new() };
        }
        let empty = NodeTapSpec::default();
        let old = old.and_then(|fact| fact.spec.as_ref()).unwrap_or(&empty);
        for tap in changed_taps(old, new.spec.as_ref().unwrap_or(&empty)) {
            node.taps.insert(tap.to_owned(), new.generation);
        }
    }

    /// Forgets a tap that is gone.
    pub fn forget_tap(&mut self, tap: &str) {
        for node in self.0.values_mut() {
            node.taps.remove(tap);
        }
    }
}

fn changed_taps<'a>(old: &'a NodeTapSpec, new: &'a NodeTapSpec) -> BTreeSet<&'a str> {
    let taps: BTreeSet<&str> = [old, new]
        .into_iter()
        .flat_map(|spec| {
            let senders = spec.senders.iter().map(|sender| sender.tap.uid.as_str());
            senders.chain(spec.receivers.iter().map(|receiver| receiver.tap.uid.as_str()))
        })
        .collect();
    // The addresses only help the helper to recognise the pod: what stands stands, whether they are known or not.
    let senders = |spec: &NodeTapSpec, tap: &str| -> Vec<NodeTapSender> {
        let mut senders: Vec<_> = spec.senders.iter().filter(|sender| sender.tap.uid == tap).cloned().collect();
        for sender in &mut senders {
            sender.pod.addresses.clear();
        }
        senders
    };
    let receivers = |spec: &NodeTapSpec, tap: &str| -> Vec<NodeTapReceiver> {
        let mut receivers: Vec<_> = spec.receivers.iter().filter(|receiver| receiver.tap.uid == tap).cloned().collect();
        for pod in receivers.iter_mut().filter_map(|receiver| receiver.pod.as_mut()) {
            pod.addresses.clear();
        }
        receivers
    };
    let options = |spec: &NodeTapSpec, tap: &str| spec.treatments.iter().find(|entry| entry.tap_uid == tap).cloned();
    // What the path carries is no part of it: a node that follows it late still copies what it should.
    taps.into_iter()
        .filter(|tap| {
            senders(old, tap) != senders(new, tap)
                || receivers(old, tap) != receivers(new, tap)
                || options(old, tap) != options(new, tap)
        })
        .collect()
}

/// What is written, each of it by itself: where one write is refused, the others are not held back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryKey {
    Claims,
    /// Finalizers of a tap, by its UID.
    Finalizers(String),
    /// Status of a tap, by its UID.
    Status(String),
    NodeTap(String),
    Helper(String),
    /// An expression, by its text.
    Expression(String),
}

/// Pauses after failures, for each object by itself.
#[derive(Debug, Default)]
pub struct Retries(BTreeMap<RetryKey, (Backoff, Timestamp)>);

impl Retries {
    /// Whether it is too early to try again.
    pub fn holds(&self, key: &RetryKey, now: Timestamp) -> bool {
        self.0.get(key).is_some_and(|(_, until)| *until > now)
    }

    /// Takes note of a failure.
    pub fn failed(&mut self, key: RetryKey, now: Timestamp) {
        let first = || (Backoff::new(Duration::from_millis(250), Duration::from_secs(60)), now);
        let (backoff, until) = self.0.entry(key).or_insert_with(first);
        let pause = SignedDuration::try_from(backoff.pause()).unwrap_or(SignedDuration::from_secs(60));
        *until = now.checked_add(pause).unwrap_or(Timestamp::MAX);
    }

    /// Takes note of a success.
    pub fn succeeded(&mut self, key: &RetryKey) {
        self.0.remove(key);
    }

    /// Forgets what has not been tried for long after it could have been: its object is gone.
    pub fn forget_old(&mut self, now: Timestamp) {
        self.0.retain(|_, (_, until)| *until + SignedDuration::from_secs(600) > now);
    }

    /// When the next attempt is due.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.0.values().map(|(_, until)| *until).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests;
