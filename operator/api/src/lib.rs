//! The kinds of `podtap.dev/v1alpha1`.
//!
//! [`PodTap`] is what users write, [`PodTapPolicy`] what administrators write, [`NodeTap`] what the controller and
//! the nodes tell each other. Rules that need no knowledge of the cluster are part of the schema (CEL), so that the
//! API server refuses what can never work, with a message that says what to write instead.
//!
//! The doc comments of fields are what `kubectl explain` shows: they are written for the users of the API.

#![expect(clippy::duplicated_attributes, reason = "it takes the arguments of several `printcolumn` for one list")]

mod condition;
mod filter;
mod node_tap;
mod node_treatment;
mod pod_tap;
mod policy;
mod treatment;

pub use condition::{
    CONDITION_DEGRADED, CONDITION_DESTINATIONS_READY, CONDITION_READY, CONDITION_TAPPED, CONDITION_TARGETS_RESOLVED,
};
pub use filter::{Filter, FilterMatch, FilterPort, Protocol};
pub use node_tap::{
    ItemState, NodeTap, NodeTapEndpoint, NodeTapPod, NodeTapReceiver, NodeTapReceiverStatus, NodeTapSender,
    NodeTapSenderStatus, NodeTapSpec, NodeTapStatus, TapReference,
};
pub use node_treatment::{
    NodeTapDeduplicate, NodeTapFilter, NodeTapInstruction, NodeTapMatch, NodeTapPorts, NodeTapTreatment,
};
pub use pod_tap::{
    Destination, DestinationStatus, Direction, ExternalDestination, NodeDestination, PodDestination, PodTap,
    PodTapSpec, PodTapStatus, TapFailure, Targets, Vxlan,
};
pub use policy::{Limits, PodTapPolicy, PodTapPolicySpec, VniRange};
pub use treatment::{Deduplicate, Limit, Oversize, Sample, Truncate};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// API group of all kinds.
pub const GROUP: &str = "podtap.dev";

/// Label or annotation that opts a pod, a namespace or a node out of every tap when its value is `"true"`.
pub const EXCLUDE: &str = "podtap.dev/exclude";

/// Finalizer of a [`PodTap`]: held until every node has reported that its part of the tap is gone.
pub const FINALIZER: &str = "podtap.dev/cleanup";

/// Name of the only [`PodTapPolicy`] that is read.
pub const POLICY_NAME: &str = "default";

/// The definitions of all kinds, with the file each is committed as under `crds/`.
#[must_use]
pub fn definitions() -> [(&'static str, CustomResourceDefinition); 3] {
    [("podtaps.yaml", PodTap::crd()), ("nodetaps.yaml", NodeTap::crd()), ("podtappolicies.yaml", PodTapPolicy::crd())]
}
