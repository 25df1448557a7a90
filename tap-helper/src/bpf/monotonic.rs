use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A moment of `CLOCK_MONOTONIC`, in nanoseconds. The programs read this clock (`bpf_ktime_get_coarse_ns`), and nothing sets it: the
/// time of day of the node does not matter to a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(u64);

impl Monotonic {
    /// Later than any deadline.
    pub const MAX: Self = Self(u64::MAX);

    /// The present.
    #[must_use]
    pub fn now() -> Self {
        // It cannot fail: Linux always has this clock.
        let since_boot = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        Self(nanoseconds(since_boot))
    }

    /// The moment that much after the machine started.
    #[cfg(test)]
    pub(crate) fn at(since_boot: Duration) -> Self {
        Self(nanoseconds(since_boot))
    }

    /// The moment that much later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(duration)))
    }

    /// The time from `now` until this moment; zero if it has passed.
    #[must_use]
    pub fn left(self, now: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now.0))
    }

    pub(super) fn from_nanoseconds(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    pub(super) fn nanoseconds(self) -> u64 {
        self.0
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
