//! When a tap ends.

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::validate::{spec::TapSpec, tap::Tap};

/// When a tap that started at `start` ends. A duration that no timestamp can express never ends.
pub fn expiration(start: Timestamp, duration: SignedDuration) -> Timestamp {
    start.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// Whether the tap's duration is over.
pub fn is_expired(tap: &Tap, spec: &TapSpec, now: Timestamp) -> bool {
    let start = tap.status.start_time.as_ref().map(|time| time.0);
    start.zip(spec.duration).is_some_and(|(start, duration)| expiration(start, duration) <= now)
}
