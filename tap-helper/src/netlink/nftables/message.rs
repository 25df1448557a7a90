//! The messages that read, create and delete the table.

use std::collections::BTreeSet;

use podtap_model::Count;
use rtnetlink::packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NlaBuffer};

use super::{
    SourceFilter, SourceFilterTable,
    expression::{self, Family},
    intervals::{Bound, intervals},
    socket::{self, Sent},
};
use crate::netlink::{
    generic::GenericMessage,
    nla::{child, children, nested, string, text},
};

/// The name of the table, of the family inet.
const TABLE: &str = "podtap";
const CHAIN: &str = "input";
/// The rules of a complete table.
pub(super) const RULES: usize = 4;

const NFPROTO_INET: u8 = 1;
const NF_INET_LOCAL_IN: u32 = 1;
pub(super) const NF_ACCEPT: u32 = 1;

const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_GETTABLE: u8 = 1;
const NFT_MSG_DELTABLE: u8 = 2;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_NEWRULE: u8 = 6;
const NFT_MSG_GETRULE: u8 = 7;
const NFT_MSG_NEWSET: u8 = 9;
const NFT_MSG_NEWSETELEM: u8 = 12;
const NFT_MSG_GETSETELEM: u8 = 13;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFT_SET_CONSTANT: u32 = 2;
const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
pub(super) const NFTA_LIST_ELEM: u16 = 1;
/// The comment in a table's user data (`include/libnftnl/udata.h` of libnftnl).
const NFTNL_UDATA_TABLE_COMMENT: u8 = 0;

/// The sets: UDP ports with VNIs, UDP ports.
pub(super) const RECEIVERS: &str = "receivers";
pub(super) const PORTS: &str = "ports";
/// Elements of one message: an attribute has at most 64 KiB.
const ELEMENTS: usize = 500;

impl SourceFilter {
    pub(super) fn messages(&self, before: Option<&SourceFilterTable>) -> Vec<Sent> {
        let name = string(NFTA_TABLE_NAME, TABLE);
        let hook = [number(NFTA_HOOK_HOOKNUM, NF_INET_LOCAL_IN), number(NFTA_HOOK_PRIORITY, 0)];
        let chain = [
            string(NFTA_CHAIN_TABLE, TABLE),
            string(NFTA_CHAIN_NAME, CHAIN),
            nested(NFTA_CHAIN_HOOK, &hook),
            number(NFTA_CHAIN_POLICY, NF_ACCEPT),
            string(NFTA_CHAIN_TYPE, "filter"),
        ];
        // Deleting a table that does not exist would fail, so it is created first.
        let mut messages = vec![
            (message(NFT_MSG_NEWTABLE, std::slice::from_ref(&name)), NLM_F_CREATE),
            (message(NFT_MSG_DELTABLE, &[name]), 0),
            (self.table(), NLM_F_CREATE),
            (message(NFT_MSG_NEWCHAIN, &chain), NLM_F_CREATE),
        ];
        messages.extend(self.receivers().messages());
        messages.extend(self.ports().messages());
        messages.extend([Family::V4, Family::V6].into_iter().flat_map(|family| self.sources(family).messages()));
        let counted = |rule: usize| before.and_then(|table| table.dropped.get(rule).copied()).unwrap_or_default();
        messages.extend([
            rule(&expression::rejected(Family::V4, counted(0))),
            rule(&expression::rejected(Family::V6, counted(1))),
            rule(&expression::accepted_fragment()),
            rule(&expression::rejected_fragment(counted(3))),
        ]);
        messages
    }

    /// The table itself.
    pub(super) fn table(&self) -> GenericMessage {
        let comment = DefaultNla::new(NFTA_TABLE_USERDATA, comment_data(&self.comment()));
        message(NFT_MSG_NEWTABLE, &[string(NFTA_TABLE_NAME, TABLE), comment])
    }

    /// UDP ports, and the second half of the VXLAN header: the VNI and a zero.
    fn receivers(&self) -> Set {
        let key = |(port, vni): &(u16, u32)| {
            // The fields of a concatenation are padded to 4 bytes.
            let port = [port.to_be_bytes(), [0; 2]].concat();
            ([&port[..], &(vni << 8).to_be_bytes()].concat(), 0)
        };
        Set { name: RECEIVERS, key: PORT_AND_VNI_TYPE, flags: 0, elements: self.receivers.iter().map(key).collect() }
    }

    fn ports(&self) -> Set {
        let ports: BTreeSet<u16> = self.receivers.iter().map(|(port, _)| *port).collect();
        let elements = ports.into_iter().map(|port| (port.to_be_bytes().to_vec(), 0)).collect();
        Set { name: PORTS, key: PORT_TYPE, flags: 0, elements }
    }

    fn sources(&self, family: Family) -> Set {
        let element = |bound| match bound {
            Bound::Start(address) => (address, 0),
            Bound::End(address) => (address, NFT_SET_ELEM_INTERVAL_END),
        };
        let elements = intervals(&self.sources, family).into_iter().map(element).collect();
        Set { name: family.sources(), key: family.address_type(), flags: NFT_SET_INTERVAL, elements }
    }
}

/// A constant set.
struct Set {
    name: &'static str,
    key: KeyType,
    flags: u32,
    elements: Vec<Element>,
}

impl Set {
    /// The messages that create it.
    fn messages(&self) -> Vec<Sent> {
        let set = [
            string(NFTA_SET_TABLE, TABLE),
            string(NFTA_SET_NAME, self.name),
            number(NFTA_SET_FLAGS, NFT_SET_CONSTANT | self.flags),
            number(NFTA_SET_KEY_TYPE, self.key.number),
            number(NFTA_SET_KEY_LEN, self.key.length),
            // A number is required, although the name identifies it.
            number(NFTA_SET_ID, 0),
        ];
        let element = |(bytes, flags): &Element| {
            let key = expression::data(NFTA_SET_ELEM_KEY, bytes);
            nested(NFTA_LIST_ELEM, &[key, number(NFTA_SET_ELEM_FLAGS, *flags)])
        };
        let list = |elements: &[Element]| {
            let elements: Vec<DefaultNla> = elements.iter().map(element).collect();
            let list = [
                string(NFTA_SET_ELEM_LIST_TABLE, TABLE),
                string(NFTA_SET_ELEM_LIST_SET, self.name),
                nested(NFTA_SET_ELEM_LIST_ELEMENTS, &elements),
            ];
            (message(NFT_MSG_NEWSETELEM, &list), NLM_F_CREATE)
        };
        let create = (message(NFT_MSG_NEWSET, &set), NLM_F_CREATE);
        std::iter::once(create).chain(self.elements.chunks(ELEMENTS).map(list)).collect()
    }
}

/// The receivers in an answer to [`element_query`].
pub(super) fn receivers(answer: &GenericMessage) -> Vec<(u16, u32)> {
    let Some(list) = child(&answer.attributes, NFTA_SET_ELEM_LIST_ELEMENTS) else { return Vec::new() };
    let receiver = |element: NlaBuffer<&[u8]>| {
        let key = child(element.value(), NFTA_SET_ELEM_KEY)?;
        let key = child(key.value(), expression::NFTA_DATA_VALUE)?;
        let (port, rest) = key.value().split_first_chunk()?;
        let header = rest.get(2..)?.try_into().ok()?;
        Some((u16::from_be_bytes(*port), u32::from_be_bytes(header) >> 8))
    };
    children(list.value()).filter_map(receiver).collect()
}

/// The message that lists the receivers.
pub(super) fn element_query() -> GenericMessage {
    message(NFT_MSG_GETSETELEM, &[string(NFTA_SET_ELEM_LIST_TABLE, TABLE), string(NFTA_SET_ELEM_LIST_SET, RECEIVERS)])
}

pub(super) fn table_query() -> GenericMessage {
    message(NFT_MSG_GETTABLE, &[string(NFTA_TABLE_NAME, TABLE)])
}

pub(super) fn rule_query() -> GenericMessage {
    message(NFT_MSG_GETRULE, &[string(NFTA_RULE_TABLE, TABLE)])
}

/// The message that deletes the table.
pub(super) fn deletion() -> Sent {
    (message(NFT_MSG_DELTABLE, &[string(NFTA_TABLE_NAME, TABLE)]), 0)
}

/// The message that appends a rule.
pub(super) fn rule(expressions: &[DefaultNla]) -> Sent {
    let rule =
        [string(NFTA_RULE_TABLE, TABLE), string(NFTA_RULE_CHAIN, CHAIN), nested(NFTA_RULE_EXPRESSIONS, expressions)];
    (message(NFT_MSG_NEWRULE, &rule), NLM_F_CREATE | NLM_F_APPEND)
}

fn message(kind: u8, attributes: &[DefaultNla]) -> GenericMessage {
    socket::message(kind, NFPROTO_INET, attributes)
}

/// Types and their lengths by which `nft` shows elements (`include/datatype.h` of nftables).
#[derive(Clone, Copy)]
struct KeyType {
    number: u32,
    length: u32,
}

/// The key of an element, and its flags.
type Element = (Vec<u8>, u32);

const PORT_TYPE: KeyType = KeyType { number: 13, length: 2 };
/// A port and a 32-bit mark: numbers of concatenated types are shifted by 6 bits (`TYPE_BITS`).
const PORT_AND_VNI_TYPE: KeyType = KeyType { number: (13 << 6) + 19, length: 8 };

impl Family {
    /// The set of the networks of a family that may send.
    pub(super) fn sources(self) -> &'static str {
        match self {
            Self::V4 => "sources",
            Self::V6 => "sources6",
        }
    }

    fn address_type(self) -> KeyType {
        match self {
            Self::V4 => KeyType { number: 7, length: 4 },
            Self::V6 => KeyType { number: 8, length: 16 },
        }
    }

    pub(super) fn bits(self) -> usize {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// An attribute with a number, which nftables has in network byte order.
pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// User data with a comment: type, length, text and a terminating zero.
fn comment_data(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[NFTNL_UDATA_TABLE_COMMENT, length], text.as_bytes(), &[0]].concat()
}

pub(super) fn comment(table: &GenericMessage) -> String {
    let data = child(&table.attributes, NFTA_TABLE_USERDATA).map(|data| data.value().to_vec()).unwrap_or_default();
    match data.split_first_chunk() {
        Some(([NFTNL_UDATA_TABLE_COMMENT, _], rest)) => text(rest),
        _ => String::new(),
    }
}

/// What a rule has dropped.
pub(super) fn dropped(rule: &GenericMessage) -> Count {
    let Some(list) = child(&rule.attributes, NFTA_RULE_EXPRESSIONS) else { return Count::default() };
    children(list.value()).find_map(|entry| expression::counter(entry.value())).unwrap_or_default()
}
