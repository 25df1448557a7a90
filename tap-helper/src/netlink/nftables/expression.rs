//! The expressions of the table's rules.

use podtap_model::Count;
use rtnetlink::packet_core::{DefaultNla, NlaBuffer};

use super::{
    message::{NF_ACCEPT, NFTA_LIST_ELEM, number},
    sets::SetNames,
};
use crate::netlink::nla::{child, nested, string, text};

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NF_DROP: u32 = 0;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
/// The second 4 bytes of [`NFT_REG_1`].
const NFT_REG32_01: u32 = 9;
const NFTA_EXTHDR_DREG: u16 = 1;
const NFTA_EXTHDR_TYPE: u16 = 2;
const NFTA_EXTHDR_OFFSET: u16 = 3;
const NFTA_EXTHDR_LEN: u16 = 4;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;

const UDP: u8 = 17;
const UDP_PORT_OFFSET: u32 = 2;
/// The header extension of fragments (RFC 8200).
const FRAGMENT_HEADER: u8 = 44;
/// The VXLAN header follows the UDP header: flags, VNI, and reserved bits (RFC 7348).
const VXLAN_OFFSET: u32 = 8;
const VXLAN_FLAGS: [u8; 4] = [8, 0, 0, 0];

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn bits(self) -> usize {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// `meta nfproto FAMILY meta l4proto udp @th,64,32 0x08000000 udp dport . @th,96,32 @receivers ip saddr != @sources counter drop`: a VXLAN header with the VNI of a receiver, at its port. A receiver drops every other header itself (`vxlan_rcv`,
/// `drivers/net/vxlan/vxlan_core.c`): reserved bits must be zero.
pub(super) fn rejected(family: Family, sets: &SetNames, counted: Count) -> Vec<DefaultNla> {
    let header = [
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, VXLAN_OFFSET, 4, NFT_REG_1),
        equals(&VXLAN_FLAGS),
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, UDP_PORT_OFFSET, 2, NFT_REG_1),
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, VXLAN_OFFSET + 4, 4, NFT_REG32_01),
        lookup(&sets.receivers, 0),
    ];
    udp(family).into_iter().chain(header).chain(dropped_unless_from(family, sets, counted)).collect()
}

/// `meta nfproto ipv6 meta l4proto udp frag more-fragments 1 @th,96,32 accept`: a first fragment that contains the VXLAN header, if there is
/// one, so that it has passed [`rejected`].
///
/// The kernel reassembles packets of IPv4 before the hook (`ip_local_deliver`, `net/ipv4/ip_input.c`), but those of IPv6 after it
/// (`ip6_protocol_deliver_rcu`, `net/ipv6/ip6_input.c`).
pub(super) fn accepted_fragment() -> Vec<DefaultNla> {
    let header = payload(NFT_PAYLOAD_TRANSPORT_HEADER, VXLAN_OFFSET + 4, 4, NFT_REG_1);
    let accept = verdict(NF_ACCEPT);
    udp(Family::V6).into_iter().chain(more_fragments()).chain([header, accept]).collect()
}

/// `meta nfproto ipv6 meta l4proto udp frag more-fragments 1 udp dport @ports ip6 saddr != @sources6 counter drop`, after
/// [`accepted_fragment`]: a first fragment that ends before the VNI, which could hide a header from [`rejected`]. Such a
/// fragment has less than 16 bytes of the datagram; none but an attacker sends one.
pub(super) fn rejected_fragment(sets: &SetNames, counted: Count) -> Vec<DefaultNla> {
    let port = [payload(NFT_PAYLOAD_TRANSPORT_HEADER, UDP_PORT_OFFSET, 2, NFT_REG_1), lookup(&sets.ports, 0)];
    let start = udp(Family::V6).into_iter().chain(more_fragments()).chain(port);
    start.chain(dropped_unless_from(Family::V6, sets, counted)).collect()
}

/// Packets of UDP, of which later fragments have no transport header for nftables (`nft_payload_eval`, `net/netfilter/nft_payload.c`).
fn udp(family: Family) -> [DefaultNla; 4] {
    // NFPROTO_IPV4 and NFPROTO_IPV6.
    let protocol = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    [meta(NFT_META_NFPROTO), equals(&[protocol]), meta(NFT_META_L4PROTO), equals(&[UDP])]
}

fn more_fragments() -> [DefaultNla; 3] {
    let field = [
        number(NFTA_EXTHDR_DREG, NFT_REG_1),
        DefaultNla::new(NFTA_EXTHDR_TYPE, vec![FRAGMENT_HEADER]),
        number(NFTA_EXTHDR_OFFSET, 3),
        number(NFTA_EXTHDR_LEN, 1),
    ];
    let mask = [
        number(NFTA_BITWISE_SREG, NFT_REG_1),
        number(NFTA_BITWISE_DREG, NFT_REG_1),
        number(NFTA_BITWISE_LEN, 1),
        data(NFTA_BITWISE_MASK, &[1]),
        data(NFTA_BITWISE_XOR, &[0]),
    ];
    [expression("exthdr", &field), expression("bitwise", &mask), equals(&[1])]
}

fn dropped_unless_from(family: Family, sets: &SetNames, counted: Count) -> [DefaultNla; 4] {
    // Offset and length of the source address.
    let (offset, length) = match family {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    };
    [
        payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length, NFT_REG_1),
        lookup(sets.sources(family), NFT_LOOKUP_F_INV),
        count_from(counted),
        verdict(NF_DROP),
    ]
}

/// The set, if the expression looks something up.
pub(super) fn set(expression: &[u8]) -> Option<String> {
    Some(text(child(attributes(expression, "lookup")?.value(), NFTA_LOOKUP_SET)?.value()))
}

/// What the expression has counted, if it is a counter.
pub(super) fn counter(expression: &[u8]) -> Option<Count> {
    let attributes = attributes(expression, "counter")?;
    let count = |kind| Some(u64::from_be_bytes(child(attributes.value(), kind)?.value().try_into().ok()?));
    Some(Count { frames: count(NFTA_COUNTER_PACKETS)?, bytes: count(NFTA_COUNTER_BYTES)? })
}

/// The attributes of an expression of that name.
fn attributes<'a>(expression: &'a [u8], name: &str) -> Option<NlaBuffer<&'a [u8]>> {
    let is_it = child(expression, NFTA_EXPR_NAME).is_some_and(|found| text(found.value()) == name);
    child(expression, NFTA_EXPR_DATA).filter(|_| is_it)
}

/// An attribute with the value of a register.
pub(super) fn data(kind: u16, bytes: &[u8]) -> DefaultNla {
    nested(kind, &[DefaultNla::new(NFTA_DATA_VALUE, bytes.to_vec())])
}

fn expression(name: &str, attributes: &[DefaultNla]) -> DefaultNla {
    nested(NFTA_LIST_ELEM, &[string(NFTA_EXPR_NAME, name), nested(NFTA_EXPR_DATA, attributes)])
}

fn meta(key: u32) -> DefaultNla {
    expression("meta", &[number(NFTA_META_DREG, NFT_REG_1), number(NFTA_META_KEY, key)])
}

fn equals(bytes: &[u8]) -> DefaultNla {
    let operation = number(NFTA_CMP_OP, NFT_CMP_EQ);
    expression("cmp", &[number(NFTA_CMP_SREG, NFT_REG_1), operation, data(NFTA_CMP_DATA, bytes)])
}

fn payload(base: u32, offset: u32, length: u32, register: u32) -> DefaultNla {
    let attributes = [
        number(NFTA_PAYLOAD_DREG, register),
        number(NFTA_PAYLOAD_BASE, base),
        number(NFTA_PAYLOAD_OFFSET, offset),
        number(NFTA_PAYLOAD_LEN, length),
    ];
    expression("payload", &attributes)
}

fn lookup(set: &str, flags: u32) -> DefaultNla {
    let attributes =
        [string(NFTA_LOOKUP_SET, set), number(NFTA_LOOKUP_SREG, NFT_REG_1), number(NFTA_LOOKUP_FLAGS, flags)];
    expression("lookup", &attributes)
}

fn count_from(Count { frames, bytes }: Count) -> DefaultNla {
    let number = |kind, value: u64| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    expression("counter", &[number(NFTA_COUNTER_BYTES, bytes), number(NFTA_COUNTER_PACKETS, frames)])
}

fn verdict(code: u32) -> DefaultNla {
    let verdict = nested(NFTA_DATA_VERDICT, &[number(NFTA_VERDICT_CODE, code)]);
    let attributes = [number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT), nested(NFTA_IMMEDIATE_DATA, &[verdict])];
    expression("immediate", &attributes)
}
