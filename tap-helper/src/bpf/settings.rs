//! What a tap wants of its programs, and the form in which they read it.

use std::{fmt, net::IpAddr};

use tap_wire::{Instruction, Limit, Network, Oversize, Protocol, Truncate};

/// All that the programs of one tap on one pod are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which frames are copied.
    pub filter: Filter,
    /// How much of each; all if none.
    pub truncate: Option<Truncate>,
    /// One flow of as many is copied; 0 and 1 are all.
    pub one_in_flows: u32,
    /// How many copies at most.
    pub limit: Limit,
    /// What happens to a copy that is too long and cannot be cut into shorter frames.
    pub oversize: Oversize,
    /// Networks whose pods are tapped at the other end, if flows between them are to be copied once.
    pub deduplicate: Option<Vec<Network>>,
    /// Longest inner frame, Ethernet header included, that the underlay carries in one piece; see [`frame_limit`].
    pub frame_limit: Option<u32>,
    /// Whether superframes are copied into one piece before their segments are made shorter; see [`Features`](super::Features).
    pub linearize: bool,
}

/// Longest inner frame for an underlay: its MTU less IP, UDP and VXLAN headers.
#[must_use]
pub fn frame_limit(underlay_mtu: u32, ipv6: bool) -> u32 {
    underlay_mtu.saturating_sub(if ipv6 { 56 } else { 36 })
}

/// A frame is copied if it matches any of `include` (or there is none), none of `exclude`, and the expression.
#[derive(Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the line above")]
pub struct Filter {
    pub include: Vec<Match>,
    pub exclude: Vec<Match>,
    pub expression: Vec<Instruction>,
}

/// Without the expression's instructions, of which there may be hundreds: this is what a log shows.
impl fmt::Debug for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { include, exclude, expression } = self;
        let mut shown = formatter.debug_struct("Filter");
        shown.field("include", include).field("exclude", exclude).field("instructions", &expression.len()).finish()
    }
}

/// All parts that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Transport protocol.
    pub protocol: Option<Protocol>,
    /// Port of either side, first and last of a range. Only TCP, UDP and SCTP have any.
    pub ports: Vec<(u16, u16)>,
    /// Address of the remote side.
    pub networks: Vec<Network>,
}

/// `struct rule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    protocol: u32,
    ports: (u32, u32),
    network: RawNetwork,
}

/// `struct network`: family, address, mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RawNetwork {
    family: u32,
    address: [u8; 16],
    mask: [u8; 16],
}

/// `NO_PORT`.
const NO_PORT: u32 = 0x1_0000;

impl Match {
    /// One rule for each combination of a range of ports and a network.
    pub(super) fn rules(&self) -> impl Iterator<Item = Rule> {
        let any_port = [(0, NO_PORT)].into_iter().filter(|_| self.ports.is_empty());
        let given = self.ports.iter().map(|(first, last)| (u32::from(*first), u32::from(*last)));
        let family = self.protocol.and_then(family);
        let any_network = RawNetwork { family: family.unwrap_or(0), ..RawNetwork::default() };
        let mut networks: Vec<_> = self.networks.iter().map(raw).collect();
        // A combination that nothing matches, as ICMP from an IPv6 network, needs no rule.
        networks.retain(|network| family.is_none_or(|family| family == network.family));
        if self.networks.is_empty() {
            networks.push(any_network);
        }
        let protocol = self.protocol.map_or(0, |protocol| u32::from(protocol.number()));
        any_port
            .chain(given)
            .flat_map(move |ports| networks.clone().into_iter().map(move |network| Rule { protocol, ports, network }))
    }
}

/// The only family that a protocol is of, if it is of one.
fn family(protocol: Protocol) -> Option<u32> {
    match protocol {
        Protocol::Icmp => Some(4),
        Protocol::Icmpv6 => Some(6),
        _ => None,
    }
}

pub(super) fn raw(network: &Network) -> RawNetwork {
    let (family, octets) = match network.address {
        IpAddr::V4(address) => (4, address.octets().to_vec()),
        IpAddr::V6(address) => (6, address.octets().to_vec()),
    };
    let mut raw = RawNetwork { family, ..RawNetwork::default() };
    for (position, octet) in octets.iter().enumerate() {
        let bits = usize::from(network.prefix).saturating_sub(position * 8).min(8);
        raw.mask[position] = !u8::try_from(0xff_u32 >> bits).unwrap_or_default();
        raw.address[position] = octet & raw.mask[position];
    }
    raw
}

impl Rule {
    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        for word in [self.protocol, self.ports.0, self.ports.1] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        self.network.put(bytes);
    }

    pub(super) fn needs_ports(&self) -> bool {
        self.ports != (0, NO_PORT)
    }
}

impl RawNetwork {
    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.family.to_ne_bytes());
        bytes.extend_from_slice(&self.address);
        bytes.extend_from_slice(&self.mask);
    }
}
