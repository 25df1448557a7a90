//! Condition types of a [`PodTap`](crate::PodTap).

/// The spec is carried out: the other conditions, except Degraded, are true, or Unknown in the case of Delivering.
pub const CONDITION_READY: &str = "Ready";
/// The pods to tap are known, and all of them can be tapped.
pub const CONDITION_TARGETS_RESOLVED: &str = "TargetsResolved";
/// Every destination exists, is allowed, and has its receiver device.
pub const CONDITION_DESTINATIONS_READY: &str = "DestinationsReady";
/// The nodes report sender device and filters for every pod to tap.
pub const CONDITION_TAPPED: &str = "Tapped";
/// What is mirrored arrives at the receivers, as probes show. Unknown with external destinations, which report nothing.
pub const CONDITION_DELIVERING: &str = "Delivering";
/// Part of the spec is not carried out although frames are mirrored; the message says which part, and where.
pub const CONDITION_DEGRADED: &str = "Degraded";
