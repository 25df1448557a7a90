//! When taps start and end.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::{State, UnixTime};

use crate::{store::snapshot::Snapshot, validate::tap::Tap};

/// How much longer than its duration a tap may run that starts while no controller runs.
const START: SignedDuration = SignedDuration::from_mins(20);

/// What the nodes know of the taps' times, by the UIDs of the taps.
#[derive(Debug)]
pub struct OnNodes<'a> {
    snapshot: &'a Snapshot,
    /// Taps with an active sender.
    active: BTreeSet<&'a str>,
    /// When nodes will stop taps, the earliest of each.
    expirations: BTreeMap<&'a str, UnixTime>,
}

/// When a tap that started at `start` ends. A duration that no timestamp can express never ends.
pub fn expiration(start: Timestamp, duration: SignedDuration) -> Timestamp {
    start.checked_add(duration).unwrap_or(Timestamp::MAX)
}

impl<'a> OnNodes<'a> {
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let node_taps = || snapshot.node_taps.values();
        let senders = node_taps().flat_map(|node_tap| &node_tap.status.senders);
        let active = senders.filter(|sender| sender.state == State::Active).map(|sender| sender.tap_uid.as_str());
        let mut expirations = BTreeMap::new();
        for tap in node_taps().filter_map(|node_tap| node_tap.spec.as_ref()).flat_map(|spec| &spec.taps) {
            if let Some(time) = tap.expiration_time {
                let earliest = expirations.entry(&*tap.uid).or_insert(time);
                *earliest = time.min(*earliest);
            }
        }
        Self { snapshot, active: active.collect(), expirations }
    }

    /// When the tap's first pod was tapped, in whole seconds, the precision of the API server.
    ///
    /// Until its status says so, what this leader or an earlier one has found before counts: a start that moved would change every
    /// `NodeTap` each time, and the tap would never end.
    pub fn start(&self, tap: &Tap, duration: Option<SignedDuration>) -> Option<Timestamp> {
        let uid = &tap.reference.uid;
        let recorded = tap.status.start_time.as_ref().map(|time| time.0);
        let known = recorded.or_else(|| self.snapshot.starts.get(uid).copied());
        known.or_else(|| self.active.contains(&**uid).then(|| self.first_start(tap, duration)))
    }

    /// The start of a tap that has an active sender: now, or the time from which the nodes' expiration was counted. That of a tap that
    /// had not started then is later than now.
    fn first_start(&self, tap: &Tap, duration: Option<SignedDuration>) -> Timestamp {
        let now = self.snapshot.now;
        let planned = self.expirations.get(&*tap.reference.uid).zip(duration).and_then(|(end, duration)| {
            Timestamp::from_second(i64::try_from(end.seconds()).ok()?).ok()?.checked_sub(duration).ok()
        });
        let start = planned.unwrap_or(now).max(tap.created).min(now);
        Timestamp::from_second(start.as_second()).unwrap_or(start)
    }

    /// When nodes are to stop the tap by themselves.
    ///
    /// Only the controller notices when a tap starts. Until then, nodes have a later time, so that it ends even if no controller runs
    /// from before it starts. That time changes only when less than the duration is left of it.
    pub fn expiration(&self, tap: &Tap, duration: Option<SignedDuration>) -> Option<UnixTime> {
        let duration = duration?;
        if let Some(start) = tap.start {
            return Some(unix_time(expiration(start, duration)));
        }
        let enough = unix_time(expiration(self.snapshot.now, duration));
        let known = self.expirations.get(&*tap.reference.uid).copied().filter(|known| *known >= enough);
        known.or_else(|| Some(unix_time(expiration(self.snapshot.now, duration.saturating_add(START)))))
    }
}

/// Rounded up: no node stops earlier than the controller.
fn unix_time(time: Timestamp) -> UnixTime {
    let fraction = i64::from(time.subsec_nanosecond() > 0);
    UnixTime::from_seconds(time.as_second().saturating_add(fraction))
}

#[cfg(test)]
mod tests;
