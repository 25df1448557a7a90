//! The kinds of `podtap.dev/v1alpha1`.
//!
//! Users write [`PodTap`], administrators write [`ClusterPodTap`] and [`PodTapPolicy`]; [`NodeTap`] is between the controller and the nodes. Rules that
//! need no knowledge of the cluster are part of the schema (CEL), so that the API server rejects what can never work, with a
//! message that says what to write instead.
//!
//! The doc comments of fields are what `kubectl explain` shows: they are written for the users of the API.

#![expect(clippy::duplicated_attributes, reason = "it takes the arguments of several `printcolumn` for one list")]

mod cluster_pod_tap;
mod condition;
mod definition;
mod destination;
mod mirror_spec;
mod node_tap;
mod opt_out;
mod pod_tap;
mod policy;
mod selector;
mod status;

pub use cluster_pod_tap::{ClusterPodTap, ClusterPodTapSpec, ClusterTargets};
pub use condition::{
    CONDITION_DEGRADED, CONDITION_DELIVERING, CONDITION_DESTINATIONS_READY, CONDITION_READY, CONDITION_TAPPED,
    CONDITION_TARGETS_RESOLVED,
};
pub use definition::definitions;
pub use destination::{
    CollectorDestination, DEFAULT_EXTERNAL_PORT, Destination, ExternalDestination, NodeDestination, PodDestination,
};
pub use mirror_spec::{MirrorSpec, Vxlan};
pub use node_tap::{NodeTap, NodeTapSpec};
pub use opt_out::is_excluded;
pub use pod_tap::{DEFAULT_MAX_PODS, PodTap, PodTapSpec, Targets};
pub use policy::{Limits, PodTapPolicy, PodTapPolicySpec, VniRange};
pub use selector::ObjectSelector;
pub use status::{DestinationStatus, PodTapStatus, SkippedPods, TapFailure};

/// API group of all kinds.
pub const GROUP: &str = "podtap.dev";

/// Label or annotation that opts a pod, a namespace or a node out of every tap, unless its value is `"false"`.
pub const EXCLUDE: &str = "podtap.dev/exclude";

/// Finalizer of a [`PodTap`] and of a [`ClusterPodTap`]: kept until every node has reported that its part of the tap is gone.
pub const FINALIZER: &str = "podtap.dev/cleanup";

/// Annotation of a helper pod: the TCP port on the loopback of its node where its `/metrics` are.
pub const METRICS_PORT: &str = "podtap.dev/metrics-port";

/// Name of the only [`PodTapPolicy`] that is read.
pub const POLICY_NAME: &str = "default";
