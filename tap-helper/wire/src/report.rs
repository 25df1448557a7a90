use serde::{Deserialize, Serialize};

/// What the node holds, and why not where it does not hold what is wanted.
///
/// Has an entry for everything wanted, and one in [`State::Removing`] for everything of ours that is not wanted any
/// more but still there. What is gone has no entry: a report without entries is a clean node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// Generation of the [`Desired`](crate::Desired) that this answers.
    pub generation: i64,
    /// One entry per tap and pod, sorted by both.
    #[serde(default)]
    pub senders: Vec<SenderReport>,
    /// One entry per receiver device, sorted by VNI.
    #[serde(default)]
    pub receivers: Vec<ReceiverReport>,
    /// What the node's kernel can do.
    #[serde(default)]
    pub features: Features,
}

/// What the node's kernel can do: found out by trying, not from its version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Features {
    /// eBPF programs can be loaded and used as classifiers.
    pub ebpf: bool,
    /// Copies of TCP superframes can be made to fit the path.
    pub fit: bool,
}

/// State of one [`Sender`](crate::Sender).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SenderReport {
    /// UID of the tap.
    pub tap: String,
    /// UID of the pod's API object.
    pub pod: String,
    /// Interface of the pod that is tapped; empty while it is not known.
    #[serde(default)]
    pub interface: String,
    /// How it is.
    pub status: Status,
    /// What of the wish this kernel cannot do, a sentence each; empty when everything is as wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
}

/// State of one [`Receiver`](crate::Receiver).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReceiverReport {
    /// UID of the tap.
    pub tap: String,
    /// VXLAN network identifier of the device.
    pub vni: u32,
    /// How it is.
    pub status: Status,
}

/// A state, why, and a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Status {
    /// What holds now.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// What happened and what to do about it; empty when there is nothing to do.
    #[serde(default)]
    pub message: String,
}

/// What holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// Copies flow.
    Active,
    /// Not yet; the helper goes on by itself when what it waits for comes.
    Waiting,
    /// Never attempted, and nothing was touched: it would harm, or cannot work.
    Refused,
    /// The kernel refused; tried again with growing pauses.
    Failed,
    /// Not wanted any more, still being removed.
    Removing,
}

/// Why something is in its [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// Everything is in place.
    Established,
    /// No process of the pod runs on this node yet.
    PodNotRunning,
    /// The pod shares the node's network namespace.
    HostNetwork,
    /// The pod has no interface of the wanted name, or none with its address.
    InterfaceNotFound,
    /// An `ingress` qdisc of somebody else stands where `clsact` is needed.
    IngressQdisc,
    /// A device of somebody else has the wanted name.
    NameTaken,
    /// Another socket has the UDP port.
    PortTaken,
    /// What is wanted contradicts itself, or a limit.
    Invalid,
    /// The kernel lacks a kind of device, qdisc, filter or action.
    KernelFeature,
    /// Another error of the kernel; the message has it.
    Kernel,
    /// No longer wanted.
    NotWanted,
}

impl Reason {
    /// The reason as it appears in a condition.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "Established",
            Self::PodNotRunning => "PodNotRunning",
            Self::HostNetwork => "HostNetwork",
            Self::InterfaceNotFound => "InterfaceNotFound",
            Self::IngressQdisc => "IngressQdisc",
            Self::NameTaken => "NameTaken",
            Self::PortTaken => "PortTaken",
            Self::Invalid => "Invalid",
            Self::KernelFeature => "KernelFeature",
            Self::Kernel => "Kernel",
            Self::NotWanted => "NotWanted",
        }
    }
}
