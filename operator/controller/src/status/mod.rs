//! What users see: conditions (pure), statuses and events.

pub mod conditions;
pub mod degraded;
pub mod delivering;
pub mod progress;
pub mod rollout_stop;
pub mod tap_status;
pub mod transitions;
pub mod unknown_keys;
pub mod unreadable;
pub mod waits;
pub mod write;
