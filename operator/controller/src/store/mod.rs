//! What the controller knows about the cluster: watches fill caches of small projections, and each reconcile reads one snapshot.

pub mod cache;
pub mod caches;
pub mod generations;
pub mod node;
pub mod node_tap;
pub mod pod;
pub mod snapshot;
pub mod tap;
pub mod unknown_keys;
pub mod watch;
mod workload;
