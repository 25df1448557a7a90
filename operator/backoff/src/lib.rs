//! Exponential backoff. It has no dependencies, so that the privileged tap-helper can share it.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// Pauses between attempts: they double from `first` up to `cap`. Each varies by ±20 %, so that many clients do not retry in
/// step. The longest pause is therefore 1.2 × `cap`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// A backoff whose first pause is about `first`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// The pause before the next attempt. Each call is one failure.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = self.next.saturating_mul(2).min(self.cap);
        jittered(pause)
    }

    /// Starts over after a success: the next pause is `first` again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `period`, varied by ±20 %.
#[must_use]
pub fn jittered(period: Duration) -> Duration {
    // The keys of each `RandomState` differ: random enough to spread requests, without another dependency.
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
    fn doubles_up_to_the_cap_and_resets() {
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
