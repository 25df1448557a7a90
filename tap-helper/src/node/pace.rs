use std::time::{Duration, Instant};

/// The pause after work, as a multiple of what the work took: it takes a quarter of the helper's time at most.
const PAUSE: u32 = 3;

/// When something may be done the next time; by default, at once.
#[derive(Debug, Default)]
pub(super) struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// The moment.
    pub(super) fn due_at(&self) -> Instant {
        self.not_before.unwrap_or_else(Instant::now)
    }

    /// Whether it has come.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|moment| moment <= now)
    }

    /// Sets it.
    pub(super) fn wait_until(&mut self, moment: Instant) {
        self.not_before = Some(moment);
    }

    /// Sets it after work that took this long and has just ended.
    pub(super) fn pause(&mut self, cost: Duration) {
        self.wait_until(Instant::now() + PAUSE * cost);
    }
}
