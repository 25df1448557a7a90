//! What becomes of the frames of a [`Sender`](crate::Sender) before they are copied: which ones, how much of them, how many.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Most entries of each list of a [`Filter`], and of each list of a [`Match`].
pub const MAX_MATCHES: usize = 16;

/// Most rules of a [`Filter`], both lists together: an entry is one for each combination of its ports and its networks.
pub const MAX_RULES: usize = 64;

/// Most networks of a [`Deduplicate`], both lists together.
pub const MAX_NETWORKS: usize = 64;

/// Highest rate of a [`Limit`].
pub const MAX_RATE: u64 = 100_000_000_000;

/// Most instructions of a [`Filter`]. An expression of 1024 characters, the longest that the API takes, has about 400.
pub const MAX_INSTRUCTIONS: usize = 512;

/// Smallest number of bytes that a copy can be cut to: the Ethernet header.
pub const MIN_TRUNCATED: u32 = 14;

/// Which frames are copied: those that any entry of `include` matches (or all, if it is empty), that no entry of
/// `exclude` matches, and that `expression` matches (or all, if it is empty).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Up to [`MAX_MATCHES`], and up to [`MAX_RULES`] with those of `exclude`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<Match>,
    /// Up to [`MAX_MATCHES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Match>,
    /// A program of classic BPF over Ethernet frames, up to [`MAX_INSTRUCTIONS`]: a result other than 0 is a match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expression: Vec<Instruction>,
}

impl Filter {
    /// How many rules it takes, of which there may be [`MAX_RULES`].
    #[must_use]
    pub fn rules(&self) -> usize {
        self.include.iter().chain(&self.exclude).map(Match::rules).sum()
    }

    /// Whether it lets every frame through.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Matches a frame for which all of its parts hold. A part that is empty holds for every frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// The protocol above IP; IPv4 and IPv6 extension headers are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Ports of TCP, UDP or SCTP, of either side: one of them must be in one of the ranges. Up to [`MAX_MATCHES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortRange>,
    /// Where the other side must be: the source of frames that enter the pod, the destination of those that leave it.
    /// Up to [`MAX_MATCHES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
}

impl Match {
    /// One for each combination of a range of ports and a network.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.ports.len().max(1) * self.networks.len().max(1)
    }
}

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// 6.
    #[serde(rename = "TCP")]
    Tcp,
    /// 17.
    #[serde(rename = "UDP")]
    Udp,
    /// 132.
    #[serde(rename = "SCTP")]
    Sctp,
    /// 1, in IPv4.
    #[serde(rename = "ICMP")]
    Icmp,
    /// 58, in IPv6.
    #[serde(rename = "ICMPv6")]
    Icmpv6,
}

impl Protocol {
    /// The number that IANA assigned to it.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp => 1,
            Self::Icmpv6 => 58,
        }
    }

    /// Whether its packets have ports.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortRange {
    /// At least 1.
    pub first: u16,
    /// At least `first`.
    pub last: u16,
}

/// The addresses that have the first `prefix` bits in common with `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// All bits behind the prefix are 0.
    pub address: IpAddr,
    /// Up to 32 for IPv4, up to 128 for IPv6.
    pub prefix: u8,
}

/// An instruction of classic BPF, `struct sock_filter` of include/uapi/linux/filter.h.
///
/// Written as a list of four numbers: an order has thousands of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(u16, u8, u8, u32)", into = "(u16, u8, u8, u32)")]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// Instructions to skip if a jump's condition holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl From<(u16, u8, u8, u32)> for Instruction {
    fn from((code, jt, jf, k): (u16, u8, u8, u32)) -> Self {
        Self { code, jt, jf, k }
    }
}

impl From<Instruction> for (u16, u8, u8, u32) {
    fn from(Instruction { code, jt, jf, k }: Instruction) -> Self {
        (code, jt, jf, k)
    }
}

/// How much of each frame is copied. The lengths in its headers stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Truncate {
    /// The first so many bytes, at least [`MIN_TRUNCATED`].
    Bytes(u32),
    /// All headers up to that of TCP, UDP, SCTP or ICMP, with TCP's options.
    Headers,
}

/// How much is copied per pod interface, both directions together. What is beyond is not copied; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// Bits of copied frames per second, up to [`MAX_RATE`].
    #[serde(default)]
    pub bits_per_second: u64,
    /// Copied frames per second, up to [`MAX_RATE`].
    #[serde(default)]
    pub packets_per_second: u64,
}

impl Limit {
    /// Whether it limits nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of a copy that does not fit the path, and that cannot be divided into frames that do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Oversize {
    /// Sent in IP fragments.
    #[default]
    Fragment,
    /// Cut to what fits.
    Truncate,
}

/// Copies a flow between two tapped pods only at the end that accepted it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deduplicate {
    /// Where the other tapped pods are.
    #[serde(default)]
    pub pod_networks: Vec<Network>,
    /// Service addresses, behind which pods are. Up to [`MAX_NETWORKS`] with those of the pods.
    #[serde(default)]
    pub service_networks: Vec<Network>,
}
