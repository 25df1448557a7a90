//! The values of the maps `configs` and `counters` and the keys of `peers`, as bpf/maps.h declares them.

use std::{
    hash::{Hash as _, Hasher as _},
    net::IpAddr,
};

use podtap_model::{
    IpNet, Match, Oversize, Protocol, Quantity, Truncate, Uid,
    bounds::{MAX_BITS_PER_SECOND, MAX_EXEMPT_BYTES, MAX_PACKETS_PER_SECOND, MAX_PEERS, MAX_RULES, TRUNCATE_BYTES},
};

use super::{
    BpfError, Reach, Settings,
    constants::{
        ANY, BOTH_HANDSHAKES, DEDUPLICATE, HAS_EXPRESSION, HAS_INCLUDE, LINEARIZE, LOCAL, LOWER_PORT_MIRRORS,
        NEEDS_PORTS, NO_PORT, PEERS, REMOTE, RULES, TRACK_FLOWS, TRUNCATE_HEADERS, TRUNCATE_OVERSIZE, UID_SIZE,
    },
};
use crate::names;

const _: () = assert!(MAX_RULES == RULES as usize && MAX_PEERS == PEERS as usize);

/// `struct config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Config {
    /// [`program_hash`](super::object::program_hash) of the programs that this is for.
    pub(super) program_hash: u64,
    /// Of the keys of the map `peers`.
    pub(super) peers_hash: u64,
    bits_per_second: u64,
    packets_per_second: u64,
    sample_seed: u64,
    flags: u32,
    include_count: u16,
    rule_count: u16,
    one_in_flows: u32,
    truncate: u32,
    frame_limit: u32,
    probe_ethertype: u32,
    bytes_per_flow: u32,
    exempt_bytes: u32,
    rules: [Rule; MAX_RULES],
}

/// `struct peer`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Peer {
    family: u32,
    address: [[u8; 4]; 4],
}

/// `struct rule`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Rule {
    protocol: u32,
    first_port: u32,
    last_port: u32,
    remote: Network,
}

/// `struct network`. The C side reads the bytes as words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Network {
    family: u32,
    address: [[u8; 4]; 4],
    mask: [[u8; 4]; 4],
}

/// `struct counter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

/// `struct receiver` of bpf/receiver.bpf.c.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Receiver {
    /// [`ReceiveSettings::fingerprint`](super::ReceiveSettings::fingerprint).
    pub(super) program_hash: u64,
    /// In network byte order.
    pub(super) ethertype: u32,
    pub(super) metadata: u32,
    pub(super) forgotten: u64,
    pub(super) tap: [u8; UID_SIZE as usize],
}

/// `struct pod`, likewise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PodKey {
    pub(super) uid: [u8; UID_SIZE as usize],
}

impl PodKey {
    /// The UID of the pod; none if it is not one, padded with zeroes.
    pub(super) fn pod(&self) -> Option<String> {
        let end = self.uid.iter().position(|byte| *byte == 0).unwrap_or(self.uid.len());
        let (text, padding) = self.uid.split_at(end);
        let uid = Uid::try_from(String::from_utf8(text.to_vec()).ok()?).ok()?;
        padding.iter().all(|byte| *byte == 0).then(|| uid.to_string())
    }
}

/// `struct pod_probes`, likewise.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct PodProbes {
    pub(super) last: u64,
    pub(super) last_full_size: u64,
    pub(super) sent: u64,
    pub(super) correction: i64,
}

impl PodProbes {
    /// The frames that the receiver should have got from the pod.
    pub(super) fn expected(&self) -> u64 {
        self.sent.saturating_add_signed(self.correction)
    }
}

#[expect(unsafe_code, reason = "aya copies map values as bytes")]
// SAFETY: integers only, repr(C), without padding: the test of the layout adds up the fields.
unsafe impl aya::Pod for Receiver {}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for PodKey {}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for PodProbes {}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Config {}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Counter {}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Peer {}

impl Config {
    /// The settings, for the programs with a hash.
    pub(super) fn new(settings: &Settings, program_hash: u64) -> Result<Self, BpfError> {
        let Settings { options, sample_seed, program, frame_limit, reach, linearize, peers, probe_ether_type } =
            settings;
        let flatten = |matches: &[Match]| matches.iter().flat_map(rules).collect::<Vec<_>>();
        let filter = options.filter.clone().unwrap_or_default();
        let (include, exclude) = (flatten(&filter.include), flatten(&filter.exclude));
        let all = [include.as_slice(), &exclude].concat();
        let is_deduplicated = !peers.is_empty();
        let has_ports = all.iter().any(|rule| (rule.first_port, rule.last_port) != ANY_PORT);
        let has_addresses = all.iter().any(|rule| rule.remote.mask != [[0; 4]; 4]);
        let has_both_handshakes = options.deduplicate.is_some_and(|deduplicate| !deduplicate.handshakes.is_once());
        let limit = options.limit.unwrap_or_default();
        let rate = |rate: Option<Quantity>| rate.unwrap_or_default().get();
        let flags = [
            (HAS_EXPRESSION, program.is_some()),
            (HAS_INCLUDE, !filter.include.is_empty()),
            (NEEDS_PORTS, options.one_in_flows() > 1 || options.track_flows() || is_deduplicated || has_ports),
            (DEDUPLICATE, is_deduplicated),
            // An expression may look at both.
            (LOWER_PORT_MIRRORS, is_deduplicated && (has_ports || has_addresses || program.is_some())),
            (TRUNCATE_OVERSIZE, options.oversize == Oversize::Truncate),
            (LINEARIZE, *linearize),
            (LOCAL, *reach != Reach::Remote),
            (REMOTE, *reach != Reach::Local),
            (TRACK_FLOWS, options.track_flows()),
            (BOTH_HANDSHAKES, is_deduplicated && has_both_handshakes),
        ];
        Ok(Self {
            program_hash,
            peers_hash: hash_peers(peers),
            bits_per_second: rate(limit.bits_per_second).min(MAX_BITS_PER_SECOND),
            packets_per_second: rate(limit.packets_per_second).min(MAX_PACKETS_PER_SECOND),
            sample_seed: *sample_seed,
            flags: flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag).sum(),
            include_count: count(&include),
            rule_count: count(&all),
            one_in_flows: options.one_in_flows(),
            truncate: match options.truncate {
                None => 0,
                Some(Truncate { headers_only: true, .. }) => TRUNCATE_HEADERS,
                Some(Truncate { bytes, .. }) => {
                    let (min, max) = TRUNCATE_BYTES.into_inner();
                    bytes.unwrap_or(max).clamp(min, max)
                }
            },
            frame_limit: frame_limit.unwrap_or_default(),
            probe_ethertype: probe_ether_type.get().to_be().into(),
            bytes_per_flow: options.bytes_per_flow(),
            exempt_bytes: options.exempt_bytes().min(MAX_EXEMPT_BYTES),
            rules: array(&all).ok_or(BpfError::TooManyRules(all.len()))?,
        })
    }
}

fn count<T>(items: &[T]) -> u16 {
    u16::try_from(items.len()).unwrap_or(u16::MAX)
}

/// The items, followed by zeroes; none if there are too many.
fn array<T: Copy + Default, const N: usize>(items: &[T]) -> Option<[T; N]> {
    let mut array = [T::default(); N];
    array.get_mut(..items.len())?.copy_from_slice(items);
    Some(array)
}

const ANY_PORT: (u32, u32) = (0, NO_PORT);

/// A match as rules: one for each combination of a port range and a network.
fn rules(one: &Match) -> Vec<Rule> {
    let protocol = one.protocol.map_or(ANY, |protocol| protocol.number().into());
    // ICMP exists in one family only.
    let family = match one.protocol {
        Some(Protocol::Icmp) => 4,
        Some(Protocol::Icmpv6) => 6,
        _ => ANY,
    };
    let mut ports: Vec<_> = one.ports.iter().map(|range| (range.port.into(), range.last().into())).collect();
    if ports.is_empty() {
        ports.push(ANY_PORT);
    }
    let mut networks: Vec<_> = one.cidrs.iter().map(Network::from).collect();
    // A combination that matches nothing, such as ICMP from an IPv6 network, needs no rule.
    networks.retain(|network| family == ANY || family == network.family);
    if one.cidrs.is_empty() {
        networks.push(Network { family, ..Network::default() });
    }
    let rule = |(first_port, last_port), remote| Rule { protocol, first_port, last_port, remote };
    ports.iter().flat_map(|range| networks.iter().map(|network| rule(*range, *network))).collect()
}

/// Equal for equal sets of peers, and 0 for none.
fn hash_peers(peers: &[IpAddr]) -> u64 {
    if peers.is_empty() {
        return 0;
    }
    let mut hash = names::Hash::new();
    peers.hash(&mut hash);
    hash.finish()
}

/// The family, and the address in the most significant bits.
fn bits(address: IpAddr) -> (u32, u128) {
    match address {
        IpAddr::V4(address) => (4, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (6, address.to_bits()),
    }
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        let (family, address) = bits(address);
        Self { family, address: words(address) }
    }
}

impl From<&IpNet> for Network {
    fn from(cidr: &IpNet) -> Self {
        let (family, address) = bits(cidr.addr());
        let mask = u128::MAX.checked_shl(128 - u32::from(cidr.prefix_len())).unwrap_or_default();
        Self { family, address: words(address & mask), mask: words(mask) }
    }
}

/// In network byte order.
fn words(value: u128) -> [[u8; 4]; 4] {
    let bytes = value.to_be_bytes();
    std::array::from_fn(|word| std::array::from_fn(|byte| bytes[word * 4 + byte]))
}

#[cfg(test)]
mod tests;
