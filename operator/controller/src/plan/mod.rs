//! From valid taps to the desired state of every node. Pure.
//!
//! # Guarantees
//! - The result depends on the snapshot and on the VNIs of the last reconcile only, not on the order of events.
//! - Every pod to tap has exactly one sender per tap, on the node to which it is bound.
//! - No node gets two receivers with one VNI, nor two with one name in one network namespace.
//! - Every node's part fits in its `NodeTap`.
//! - Nothing of a refused, suspended or expired tap is on any node.

pub mod build;
pub mod deduplication;
pub mod destinations;
pub mod helper_pods;
pub mod interface_names;
pub mod limits;
pub mod mirroring_loops;
pub mod moves;
pub mod node_budget;
pub mod node_size;
pub mod node_specs;
pub mod nodes;
pub mod pod_index;
pub mod reachability;
pub mod resolve;
pub mod rollout;
pub mod sources;
pub mod sweep;
pub mod tap_plan;
pub mod targets;
pub mod vni;
