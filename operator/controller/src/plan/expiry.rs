//! When taps start and end.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_model::{State, UnixTime};

use crate::{
    store::snapshot::Snapshot,
    validate::{spec::TapSpec, tap::Tap},
};

/// How much longer than its duration a tap may run that starts while no controller runs.
const START: SignedDuration = SignedDuration::from_mins(20);

/// What the nodes know of the taps' times, by the UIDs of the taps.
#[derive(Debug)]
pub struct OnNodes<'a> {
    now: Timestamp,
    /// Taps with an active sender.
    active: BTreeSet<&'a str>,
    /// When nodes will stop taps, the earliest of each.
    expirations: BTreeMap<&'a str, UnixTime>,
}

/// When a tap that started at `start` ends. A duration that no timestamp can express never ends.
pub fn expiration(start: Timestamp, duration: SignedDuration) -> Timestamp {
    start.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// Whether the tap's duration is over.
pub fn is_expired(tap: &Tap, spec: &TapSpec, now: Timestamp) -> bool {
    recorded_start(tap).zip(spec.duration).is_some_and(|(start, duration)| expiration(start, duration) <= now)
}

/// When the tap's first pod was tapped, as its status has it.
pub fn recorded_start(tap: &Tap) -> Option<Timestamp> {
    tap.status.start_time.as_ref().map(|time| time.0)
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
        Self { now: snapshot.now, active: active.collect(), expirations }
    }

    /// When the tap's first pod was tapped: now, if no status has it yet. In whole seconds, the precision of the API server.
    pub fn start(&self, tap: &Tap) -> Option<Timestamp> {
        let now = || Timestamp::from_second(self.now.as_second()).unwrap_or(self.now);
        recorded_start(tap).or_else(|| self.active.contains(&*tap.reference.uid).then(now))
    }

    /// When nodes are to stop the tap by themselves.
    ///
    /// Only the controller notices when a tap starts. Until then, nodes have a later time, so that it ends even if no controller runs
    /// from before it starts. That time changes only when less than the duration is left of it.
    pub fn expiration(&self, tap: &Tap, spec: &TapSpec) -> Option<UnixTime> {
        let duration = spec.duration?;
        if let Some(start) = self.start(tap) {
            return Some(unix_time(expiration(start, duration)));
        }
        let enough = unix_time(expiration(self.now, duration));
        let known = self.expirations.get(&*tap.reference.uid).copied().filter(|known| *known >= enough);
        known.or_else(|| Some(unix_time(expiration(self.now, duration.saturating_add(START)))))
    }
}

/// Rounded up: no node stops earlier than the controller.
fn unix_time(time: Timestamp) -> UnixTime {
    let fraction = i64::from(time.subsec_nanosecond() > 0);
    UnixTime::from_seconds(time.as_second().saturating_add(fraction))
}

#[cfg(test)]
mod tests;
