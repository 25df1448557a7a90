//! When something that failed is tried again.

use std::time::Duration;

use podtap_backoff::Backoff;

/// Intervals between attempts: from half a second to half a minute.
pub fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(500), Duration::from_secs(30))
}
