//! Condition types of a [`PodTap`](crate::PodTap).

/// Everything asked for is in place: the other conditions are all true.
pub const CONDITION_READY: &str = "Ready";
/// The pods to tap are known, and every one of them can be tapped.
pub const CONDITION_TARGETS_RESOLVED: &str = "TargetsResolved";
/// Every destination exists, is allowed, and has its receiver device.
pub const CONDITION_DESTINATIONS_READY: &str = "DestinationsReady";
/// The nodes report sender device and filters in place for every pod to tap.
pub const CONDITION_TAPPED: &str = "Tapped";
/// Something of what is asked for is not done, although the rest is: the message says what, and where.
pub const CONDITION_DEGRADED: &str = "Degraded";
