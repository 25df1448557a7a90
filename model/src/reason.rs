use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// The reason of a condition, a failure, an event or a resource of a node. Scripts depend on them: a reason is never
        /// reused for something else. `docs/troubleshooting.md` has a section for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $name,)+
            /// A reason of another version.
            #[serde(other)]
            Unknown,
        }

        impl Reason {
            /// All of them but [`Reason::Unknown`].
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason as users see it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                    Self::Unknown => "Unknown",
                }
            }
        }
    };
}

reasons! {
    /// Everything is as requested.
    AsExpected = "AsExpected",
    /// The pods are known, and all of them can be tapped.
    Resolved = "Resolved",
    /// Every destination is ready.
    Available = "Available",
    /// In progress; no action needed.
    Pending = "Pending",

    /// The object contradicts itself, exceeds a bound or cannot be decoded.
    InvalidSpec = "InvalidSpec",
    /// `suspend` is set.
    Suspended = "Suspended",
    /// `duration` is over.
    Expired = "Expired",
    /// The mirrored frames would be mirrored again, without end.
    MirroringLoop = "MirroringLoop",

    /// No pod matches.
    NoPodsMatch = "NoPodsMatch",
    /// Pods match, but none of them can be tapped.
    AllPodsSkipped = "AllPodsSkipped",
    /// A named pod does not exist.
    PodNotFound = "PodNotFound",
    /// The pod has ended.
    PodFinished = "PodFinished",
    /// More pods match than are allowed.
    TooManyPods = "TooManyPods",
    /// The policy excludes the namespace.
    NamespaceExcluded = "NamespaceExcluded",
    /// The pod or its node has opted out.
    Excluded = "Excluded",
    /// The pod cannot be tapped.
    TargetUnsupported = "TargetUnsupported",
    /// The pod is a destination of the tap.
    DestinationIsTarget = "DestinationIsTarget",
    /// The limit of taps per pod, per namespace or per node is reached.
    TooManyTaps = "TooManyTaps",
    /// The node's `NodeTap` has no room for the tap.
    NodeFull = "NodeFull",

    /// The node does not exist.
    NodeNotFound = "NodeNotFound",
    /// The node is not ready.
    NodeNotReady = "NodeNotReady",
    /// The node has no address that mirrored frames can be sent to.
    NodeWithoutAddress = "NodeWithoutAddress",
    /// The destination pod is not scheduled or not ready.
    PodNotReady = "PodNotReady",
    /// The pod shares the network namespace of its node.
    HostNetwork = "HostNetwork",
    /// The policy does not allow it.
    NotAllowedByPolicy = "NotAllowedByPolicy",
    /// There is no policy, which external destinations need.
    PolicyNotFound = "PolicyNotFound",
    /// The external address is one of a node or pod of the cluster.
    ClusterAddress = "ClusterAddress",
    /// The destinations have no address family in common.
    AddressFamilyMismatch = "AddressFamilyMismatch",
    /// The name of the interface is taken.
    InterfaceNameConflict = "InterfaceNameConflict",
    /// Another tap has the VXLAN network identifier.
    VniInUse = "VNIInUse",
    /// No VXLAN network identifier is free.
    VniExhausted = "VNIExhausted",

    /// Probes from a node do not arrive at a receiver.
    NoProbeFromNode = "NoProbeFromNode",
    /// Probes from a node do not arrive at a receiver, but TCP from there reaches its node.
    PortBlocked = "PortBlocked",
    /// Full-size probes do not arrive at a receiver, while small ones do.
    PathMtu = "PathMTU",
    /// A receiver is not in place.
    ReceiverDown = "ReceiverDown",
    /// An external destination does not report what arrives.
    ExternalDestination = "ExternalDestination",

    /// Programs of others may hide frames from a tap.
    FramesHidden = "FramesHidden",

    /// The helper pod of a node does not run, or is not Ready in time.
    HelperPodFailed = "HelperPodFailed",
    /// The API server rejects the helper pod of a node.
    HelperPodRejected = "HelperPodRejected",

    /// The pod has not been tapped in time.
    PodNotTapped = "PodNotTapped",
    /// No process of the pod runs on the node yet.
    PodNotRunning = "PodNotRunning",
    /// The pod has no such interface, or none with its address.
    InterfaceNotFound = "InterfaceNotFound",
    /// The interface has an `ingress` qdisc, which rules clsact out.
    IngressQdiscConflict = "IngressQdiscConflict",
    /// The pod's network namespace has more devices, filters and the like than are examined.
    PodNetworkTooLarge = "PodNetworkTooLarge",
    /// Another socket has the UDP port.
    PortInUse = "PortInUse",
    /// The kernel lacks a kind of device, qdisc, filter or action, or does not accept the programs.
    KernelFeatureMissing = "KernelFeatureMissing",
    /// The kernel returned an error.
    KernelError = "KernelError",
    /// The mirror has stopped, since the API server has not confirmed it for the orphan timeout.
    NotRenewed = "NotRenewed",
    /// No longer requested, and being removed.
    Removing = "Removing",

    /// Event: every pod is tapped.
    TapEstablished = "TapEstablished",
    /// Event: a destination is not available.
    DestinationUnavailable = "DestinationUnavailable",
    /// Event: programs of others may hide frames from a tap.
    Degraded = "Degraded",
    /// Event: nodes keep outdated helper pods because a new one fails.
    HelperRolloutStopped = "HelperRolloutStopped",
    /// Event: an object has a label or an annotation under `podtap.dev/` that means nothing.
    UnknownKey = "UnknownKey",
    /// Event: a node cannot tap a pod.
    TapFailed = "TapFailed",
    /// Event: the object is gone although a node has not reported that it is clean.
    CleanupAbandoned = "CleanupAbandoned",
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_agree_and_are_unique() {
        let mut texts: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("a reason"), reason.as_str());
        }
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Reason::ALL.len());
    }

    #[test]
    fn reasons_of_other_versions_can_be_read() {
        assert_eq!(serde_json::from_str::<Reason>("\"Tomorrow\"").expect("a reason"), Reason::Unknown);
    }
}
