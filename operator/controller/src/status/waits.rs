//! How long an established tap may lack something before it is not Ready. Pure.
//!
//! Pods come and go, and a new one is tapped a moment after it was bound to its node. A tap that reported each of these moments would
//! never be Ready in a busy namespace. So a tap that has once been Ready for its spec stays Ready until it has lacked the same thing
//! for [`GRACE`].

use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::{CONDITION_TAPPED, CONDITION_TARGETS_RESOLVED, PodTapStatus};
use podtap_model::Uid;

use crate::{
    status::{delivering::MissingProbes, progress::Progress},
    store::pod::CachedPod,
};

/// How long an established tap may lack something.
pub const GRACE: SignedDuration = SignedDuration::from_secs(30);

/// What one tap lacks, and since when the controller has known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waits {
    /// The targets as a whole: a named pod does not exist, or too many pods match.
    targets: Option<Timestamp>,
    /// Pods that are not tapped, by UID.
    pods: BTreeMap<Uid, PodWait>,
    /// Whose probes are missing at the receivers.
    pub missing_probes: MissingProbes,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct PodWait {
    since: Timestamp,
    /// The time counts from when the pod starts: until then it misses nothing.
    started: bool,
}

impl Waits {
    /// What the tap lacks now. What it lacked before keeps its time.
    ///
    /// A new leader does not know these times, and must not change what its predecessor has reported: if a condition is False already,
    /// what makes it False is as old as it can be.
    pub fn observe(
        &self,
        status: &PodTapStatus,
        lacks_targets: bool,
        senders: &[(&CachedPod, Progress)],
        now: Timestamp,
    ) -> Self {
        // Without the filter, a clock that was set back would prolong the time.
        let known = |since: Timestamp| Some(since).filter(|since| *since <= now);
        let is_false = |kind: &str| status.conditions.iter().any(|c| c.type_ == kind && c.status == "False");
        let was_tapped = !is_false(CONDITION_TAPPED);
        let targets = lacks_targets.then(|| {
            let first = if is_false(CONDITION_TARGETS_RESOLVED) { now - GRACE } else { now };
            self.targets.and_then(known).unwrap_or(first)
        });
        let waiting = senders.iter().filter(|(_, progress)| *progress != Progress::Active).map(|(pod, _)| {
            let started = pod.has_started();
            let before = self.pods.get(&pod.uid).filter(|wait| wait.started == started);
            let first = if was_tapped { now } else { pod.created.min(now) };
            let since = before.and_then(|wait| known(wait.since)).unwrap_or(first);
            (pod.uid.clone(), PodWait { since, started })
        });
        Self { targets, pods: waiting.collect(), missing_probes: MissingProbes::default() }
    }

    /// Likewise, with the probes that are missing.
    pub fn with(self, missing_probes: MissingProbes) -> Self {
        Self { missing_probes, ..self }
    }

    /// Whether the tap has lacked targets for too long.
    pub fn is_late_for_targets(&self, now: Timestamp) -> bool {
        self.targets.is_some_and(|since| is_late(since, now))
    }

    /// Whether the pod has been waiting for too long.
    pub fn is_late_for(&self, pod: &CachedPod, now: Timestamp) -> bool {
        self.pods.get(&pod.uid).is_some_and(|wait| is_late(wait.since, now))
    }

    /// When something will have been lacking for too long that has not been yet.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let times = self.targets.into_iter().chain(self.pods.values().map(|wait| wait.since));
        let times = times.filter(|since| !is_late(*since, now)).map(|since| since + GRACE);
        times.chain(self.missing_probes.next(now)).min()
    }
}

fn is_late(since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(since) >= GRACE
}

#[cfg(test)]
mod tests;
