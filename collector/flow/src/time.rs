//! Time, as frames carry it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds since 1970, in UTC. This crate has no clock: the time is that of the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Later than every frame.
    pub const MAX: Self = Self(u64::MAX);

    /// From whole seconds since 1970.
    #[must_use]
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn milliseconds(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The time since `earlier`, or zero if that is later: frames of several CPUs are not exactly in order.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// A while before this time.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// This time and a while.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}
