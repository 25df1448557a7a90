//! The expressions of the table's rules.

use podtap_model::Count;
use rtnetlink::packet_core::DefaultNla;

use super::{ANONYMOUS_SET, NFTA_LIST_ELEM, number};
use crate::netlink::nla::{child, nested, string, text};

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
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
const NFTA_LOOKUP_SET_ID: u16 = 4;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;

const UDP: u8 = 17;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// `meta nfproto FAMILY udp dport @PORTS ip saddr != @ADDRESSES counter drop`, with sets by their IDs.
pub(super) fn rule(family: Family, ports: u32, addresses: u32, counted: Count) -> Vec<DefaultNla> {
    // NFPROTO_IPV4 and NFPROTO_IPV6; offset and length of the source address.
    let (protocol, offset, length) = match family {
        Family::V4 => (2, 12, 4),
        Family::V6 => (10, 8, 16),
    };
    vec![
        meta(NFT_META_NFPROTO),
        equals(&[protocol]),
        meta(NFT_META_L4PROTO),
        equals(&[UDP]),
        payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2),
        lookup(ports, 0),
        payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length),
        lookup(addresses, NFT_LOOKUP_F_INV),
        count_from(counted),
        drop_packet(),
    ]
}

/// What the expression has counted, if it is a counter.
pub(super) fn counter(expression: &[u8]) -> Option<Count> {
    let is_counter = child(expression, NFTA_EXPR_NAME).is_some_and(|name| text(name.value()) == "counter");
    let attributes = child(expression, NFTA_EXPR_DATA).filter(|_| is_counter)?;
    let count = |kind| Some(u64::from_be_bytes(child(attributes.value(), kind)?.value().try_into().ok()?));
    Some(Count { frames: count(NFTA_COUNTER_PACKETS)?, bytes: count(NFTA_COUNTER_BYTES)? })
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

fn payload(base: u32, offset: u32, length: u32) -> DefaultNla {
    let attributes = [
        number(NFTA_PAYLOAD_DREG, NFT_REG_1),
        number(NFTA_PAYLOAD_BASE, base),
        number(NFTA_PAYLOAD_OFFSET, offset),
        number(NFTA_PAYLOAD_LEN, length),
    ];
    expression("payload", &attributes)
}

fn lookup(set: u32, flags: u32) -> DefaultNla {
    let attributes = [
        string(NFTA_LOOKUP_SET, ANONYMOUS_SET),
        number(NFTA_LOOKUP_SREG, NFT_REG_1),
        number(NFTA_LOOKUP_SET_ID, set),
        number(NFTA_LOOKUP_FLAGS, flags),
    ];
    expression("lookup", &attributes)
}

fn count_from(Count { frames, bytes }: Count) -> DefaultNla {
    let number = |kind, value: u64| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    expression("counter", &[number(NFTA_COUNTER_BYTES, bytes), number(NFTA_COUNTER_PACKETS, frames)])
}

fn drop_packet() -> DefaultNla {
    let verdict = nested(NFTA_DATA_VERDICT, &[number(NFTA_VERDICT_CODE, NF_DROP)]);
    let attributes = [number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT), nested(NFTA_IMMEDIATE_DATA, &[verdict])];
    expression("immediate", &attributes)
}
