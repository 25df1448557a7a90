//! The time, as frames carry it.

use std::time::{SystemTime, UNIX_EPOCH};

use podtap_flow::Timestamp;

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
