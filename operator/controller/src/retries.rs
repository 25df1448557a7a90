//! When a request that failed is sent again.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::Uid;
use podtap_runtime::backoff::Backoff;

/// What a retry is about. Each has a backoff of its own, so that one request that is refused delays no other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryKey {
    /// The record of nodes to sweep.
    SweepRecord,
    /// The policy against an early uninstallation.
    UninstallGuard,
    /// Finalizers of a tap, by its UID.
    Finalizers(Uid),
    /// Status of a tap, by its UID.
    Status(Uid),
    /// `NodeTap` of a node.
    NodeTap(String),
    /// The next helper pod of a node.
    Helper(String),
    /// Deletion of a helper pod, by its name.
    HelperDeletion(String),
    /// A filter expression, by its text.
    Expression(String),
}

/// The growing pauses after failures.
#[derive(Debug, Default)]
pub struct Retries(BTreeMap<RetryKey, (Backoff, Timestamp)>);

impl Retries {
    /// Whether it is too early for the next attempt.
    pub fn is_paused(&self, key: &RetryKey, now: Timestamp) -> bool {
        self.0.get(key).is_some_and(|(_, until)| *until > now)
    }

    /// Records a failure.
    pub fn failed(&mut self, key: RetryKey, now: Timestamp) {
        let first = || (Backoff::new(Duration::from_millis(250), Duration::from_secs(60)), now);
        let (backoff, until) = self.0.entry(key).or_insert_with(first);
        let pause = SignedDuration::try_from(backoff.pause()).unwrap_or(SignedDuration::from_secs(60));
        *until = now.checked_add(pause).unwrap_or(Timestamp::MAX);
    }

    /// Records a success.
    pub fn succeeded(&mut self, key: &RetryKey) {
        self.0.remove(key);
    }

    /// Forgets what has not been attempted for long after its pause: its object is gone.
    pub fn forget_old(&mut self, now: Timestamp) {
        self.0.retain(|_, (_, until)| *until + SignedDuration::from_secs(600) > now);
    }

    /// When the next attempt is due.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.0.values().map(|(_, until)| *until).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{at, uid};

    #[test]
    fn pauses_grow_and_end() {
        let mut retries = Retries::default();
        let key = RetryKey::Status(uid("t"));
        let mut last = SignedDuration::ZERO;
        for _ in 0..12 {
            retries.failed(key.clone(), at(0));
            let next = retries.next(at(0)).expect("a next attempt");
            last = next.duration_since(at(0));
            assert!(retries.is_paused(&key, at(0)) && !retries.is_paused(&key, next));
            assert!(!retries.is_paused(&RetryKey::Finalizers(uid("t")), at(0)), "another request is not delayed");
            assert_eq!(retries.next(next), None, "what is due is no deadline: that would keep the leader busy");
        }
        assert!((40..=80).contains(&last.as_secs()), "{last:?} is not about a minute");
        retries.succeeded(&key);
        assert!(!retries.is_paused(&key, at(0)));
        retries.failed(key.clone(), at(0));
        retries.forget_old(at(700));
        assert!(retries.0.is_empty());
    }
}
