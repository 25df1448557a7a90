//! Growing pauses between attempts. Without dependencies, since the privileged tap-helper uses it, too.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// Pauses that double from `first` up to `cap`, each spread by ±20 % so that many clients do not return in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts with a pause of `first`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// The pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = self.next.saturating_mul(2).min(self.cap);
        jittered(pause)
    }

    /// To be called when an attempt succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `period`, spread by ±20 %.
#[must_use]
pub fn jittered(period: Duration) -> Duration {
    // Each `RandomState` has other keys: random enough to spread requests, without a crate for it.
    let random = u32::try_from(RandomState::new().hash_one(0_u8) >> 32).unwrap_or_default();
    period.mul_f64(0.8 + 0.4 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_about(actual: Duration, seconds: f64) {
        assert!((0.8 * seconds..=1.2 * seconds).contains(&actual.as_secs_f64()), "{actual:?} is not about {seconds} s");
    }

    #[test]
    fn doubles_up_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for seconds in [1.0, 2.0, 4.0, 5.0, 5.0] {
            assert_about(backoff.pause(), seconds);
        }
        backoff.reset();
        assert_about(backoff.pause(), 1.0);
    }

    #[test]
    fn jitter_spreads() {
        let pauses: std::collections::HashSet<_> = (0..32).map(|_| jittered(Duration::from_secs(1))).collect();
        assert!(pauses.len() > 16, "only {} different pauses of 32", pauses.len());
    }
}
