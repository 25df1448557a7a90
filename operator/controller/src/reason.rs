//! Reasons: the one word of a condition, a failure or an event. Users write scripts against them: a word is never reused
//! for something else. `docs/troubleshooting.md` has a section per word.

/// Everything is in place.
pub const ESTABLISHED: &str = "Established";
/// The pods are known, and all of them can be tapped.
pub const RESOLVED: &str = "Resolved";
/// Every destination has what it needs.
pub const AVAILABLE: &str = "Available";
/// Goes on by itself.
pub const WAITING: &str = "Waiting";

/// The object contradicts itself, or is not understood.
pub const INVALID_SPEC: &str = "InvalidSpec";
/// `suspend` is set.
pub const SUSPENDED: &str = "Suspended";
/// `durationSeconds` are over.
pub const EXPIRED: &str = "Expired";
/// Its copies would go around in a circle.
pub const MIRRORING_LOOP: &str = "TapCycle";

/// No pod matches.
pub const NO_PODS_MATCH: &str = "NoPodsMatch";
/// A pod named in `podNames` is not there.
pub const POD_NOT_FOUND: &str = "PodNotFound";
/// More pods match than are allowed.
pub const TOO_MANY_PODS: &str = "TooManyPods";
/// The administrator excluded the namespace.
pub const NAMESPACE_EXCLUDED: &str = "NamespaceExcluded";
/// The node or the pod has opted out.
pub const EXCLUDED: &str = "Excluded";
/// A pod that cannot be tapped by its nature.
pub const TARGET_UNSUPPORTED: &str = "TargetUnsupported";
/// The pod is one of the tap's own destinations.
pub const DESTINATION_IS_TARGET: &str = "DestinationIsTarget";
/// The pod is under as many older taps as are allowed.
pub const TOO_MANY_TAPS: &str = "TooManyTaps";

/// There is no such node.
pub const NODE_NOT_FOUND: &str = "NodeNotFound";
/// The node is not Ready.
pub const NODE_NOT_READY: &str = "NodeNotReady";
/// The node has no address that copies could be sent to.
pub const NODE_WITHOUT_ADDRESS: &str = "NodeWithoutAddress";
/// The destination pod is not on a node yet, or none is Ready.
pub const POD_NOT_READY: &str = "PodNotReady";
/// The destination pod shares its node's network.
pub const HOST_NETWORK: &str = "HostNetwork";
/// The policy does not list the address.
pub const EXTERNAL_NOT_ALLOWED: &str = "ExternalNotAllowed";
/// An external address needs a policy, and there is none.
pub const POLICY_NOT_FOUND: &str = "PolicyNotFound";
/// No address family is common to all destinations.
pub const ADDRESS_FAMILY_MISMATCH: &str = "AddressFamilyMismatch";
/// An older tap has an interface of that name there.
pub const INTERFACE_NAME_IN_USE: &str = "InterfaceNameInUse";
/// Another tap has the VNI.
pub const VNI_IN_USE: &str = "VNIInUse";
/// The VNI is outside of the policy's range.
pub const VNI_NOT_ALLOWED: &str = "VNINotAllowed";
/// All VNIs of the policy's range are taken.
pub const VNI_EXHAUSTED: &str = "VNIExhausted";

/// Not degraded: everything that is in place is as it was asked for.
pub const NOTHING_MISSING: &str = "NothingMissing";
/// Degraded: a node's kernel cannot do all that was asked for.
pub const KERNEL_LIMITED: &str = "KernelLimited";
/// Degraded: the cluster does not say which networks its pods or services have.
pub const NETWORKS_UNKNOWN: &str = "NetworksUnknown";

/// The helper pod of a node does not run.
pub const HELPER_FAILED: &str = "HelperFailed";
/// The API server refuses the helper pod.
pub const HELPER_REJECTED: &str = "HelperRejected";

/// Event: every pod is tapped.
pub const TAP_ESTABLISHED: &str = "TapEstablished";
/// Event: a destination is not there.
pub const DESTINATION_UNAVAILABLE: &str = "DestinationUnavailable";
/// Event: a part of what was asked for is not done.
pub const DEGRADED: &str = "Degraded";
/// Event: a node could not tap a pod.
pub const TAP_FAILED: &str = "TapFailed";
/// Event: the object went although a node has not reported that it is clean.
pub const CLEANUP_ABANDONED: &str = "CleanupAbandoned";
