//! Logs, in the format of agent and controller.

use std::time::Instant;

use podtap_backoff::Backoff;
use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::retry::backoff;

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT: &str = "info";

/// Sends logs to standard error, as lines for people or as JSON.
///
/// `RUST_LOG` sets the level, also per module, as in `info,tap_helper=debug`.
pub fn init_logs(json: bool) {
    let requested = std::env::var("RUST_LOG").ok().filter(|requested| !requested.trim().is_empty());
    let filter: Option<Targets> = requested.as_deref().unwrap_or(DEFAULT).parse().ok();
    let rejected = filter.is_none();
    let filter = filter.or_else(|| DEFAULT.parse().ok()).unwrap_or_default();
    let logs = fmt::layer().with_writer(std::io::stderr);
    if json {
        tracing_subscriber::registry().with(logs.json().flatten_event(true).with_filter(filter)).init();
    } else {
        tracing_subscriber::registry().with(logs.with_filter(filter)).init();
    }
    if rejected {
        tracing::warn!(RUST_LOG = requested, "not a list of target=level; using {DEFAULT}");
    }
}

/// Limits how often a recurring failure is logged: the first time at once, then no more often than it would be retried.
#[derive(Debug)]
pub struct Repeated {
    backoff: Backoff,
    not_before: Option<Instant>,
    failures: u32,
}

impl Default for Repeated {
    fn default() -> Self {
        Self { backoff: backoff(), not_before: None, failures: 0 }
    }
}

impl Repeated {
    /// Records a failure. Returns how many there were since the last one that was logged, if it is to be logged.
    pub fn failed(&mut self, now: Instant) -> Option<u32> {
        self.failures = self.failures.saturating_add(1);
        if self.not_before.is_some_and(|moment| now < moment) {
            return None;
        }
        self.not_before = Some(now + self.backoff.pause());
        Some(std::mem::take(&mut self.failures))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_failure_that_repeats_is_logged_less_and_less_often() {
        let (mut repeated, start) = (Repeated::default(), Instant::now());
        let mut fail = |after: u64| repeated.failed(start + Duration::from_millis(after));
        // 200 times per second, for ten minutes.
        let logged: Vec<u32> = (0..120_000).filter_map(|number| fail(number * 5)).collect();
        assert_eq!(logged.first(), Some(&1), "at once");
        assert!((20..40).contains(&logged.len()), "{logged:?}");
        let unlogged = fail(700_000).expect("the last one was long ago");
        assert_eq!(logged.iter().sum::<u32>() + unlogged, 120_001, "each is counted");
    }
}
