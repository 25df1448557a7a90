//! The sets of the table: the receivers, their UDP ports, and the networks that may send to them.

use std::collections::BTreeSet;

use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NlaBuffer};

use super::{
    SourceFilter,
    expression::{self, Family},
    intervals::{Bound, intervals},
    message::{NFTA_LIST_ELEM, TABLE, message, number},
    socket::Sent,
};
use crate::netlink::{
    generic::GenericMessage,
    nla::{child, children, nested, string, text},
};

const NFT_MSG_NEWSET: u8 = 9;
const NFT_MSG_GETSET: u8 = 10;
const NFT_MSG_DELSET: u8 = 11;
const NFT_MSG_NEWSETELEM: u8 = 12;
const NFT_MSG_GETSETELEM: u8 = 13;

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

const RECEIVERS: &str = "receivers";

/// Elements of one message: an attribute has at most 64 KiB.
const ELEMENTS: usize = 500;

/// The names of the sets of one filter. Those of another filter have other names, so that both exist while one replaces the other.
pub(super) struct SetNames {
    /// UDP ports with VNIs.
    pub(super) receivers: String,
    /// UDP ports.
    pub(super) ports: String,
    sources: String,
    sources6: String,
}

impl SetNames {
    pub(super) fn of(filter: &SourceFilter) -> Self {
        let hash = filter.hash();
        let [receivers, ports, sources, sources6] =
            [RECEIVERS, "ports", "sources", "sources6"].map(|name| format!("{name}_{hash:016x}"));
        Self { receivers, ports, sources, sources6 }
    }

    /// The set of the networks of a family that may send.
    pub(super) fn sources(&self, family: Family) -> &str {
        match family {
            Family::V4 => &self.sources,
            Family::V6 => &self.sources6,
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> BTreeSet<String> {
        [&self.receivers, &self.ports, &self.sources, &self.sources6].map(Clone::clone).into()
    }
}

impl SourceFilter {
    /// The messages that create the sets.
    pub(super) fn sets(&self) -> Vec<Sent> {
        let names = SetNames::of(self);
        let sources = [Family::V4, Family::V6].map(|family| self.sources(family, &names));
        let sets = [self.receivers(&names), self.ports(&names)].into_iter().chain(sources);
        sets.flat_map(|set| set.messages()).collect()
    }

    /// UDP ports, and the second half of the VXLAN header: the VNI and a zero.
    fn receivers<'a>(&self, names: &'a SetNames) -> Set<'a> {
        let key = |(port, vni): &(u16, u32)| {
            // The fields of a concatenation are padded to 4 bytes.
            let port = [port.to_be_bytes(), [0; 2]].concat();
            ([&port[..], &(vni << 8).to_be_bytes()].concat(), 0)
        };
        let elements = self.receivers.iter().map(key).collect();
        Set { name: &names.receivers, key: PORT_AND_VNI_TYPE, flags: 0, elements }
    }

    fn ports<'a>(&self, names: &'a SetNames) -> Set<'a> {
        let ports: BTreeSet<u16> = self.receivers.iter().map(|(port, _)| *port).collect();
        let elements = ports.into_iter().map(|port| (port.to_be_bytes().to_vec(), 0)).collect();
        Set { name: &names.ports, key: PORT_TYPE, flags: 0, elements }
    }

    fn sources<'a>(&self, family: Family, names: &'a SetNames) -> Set<'a> {
        let element = |bound| match bound {
            Bound::Start(address) => (address, 0),
            Bound::End(address) => (address, NFT_SET_ELEM_INTERVAL_END),
        };
        let elements = intervals(&self.sources, family).into_iter().map(element).collect();
        Set { name: names.sources(family), key: family.address_type(), flags: NFT_SET_INTERVAL, elements }
    }
}

/// A constant set.
struct Set<'a> {
    name: &'a str,
    key: KeyType,
    flags: u32,
    elements: Vec<Element>,
}

impl Set<'_> {
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

/// The message that lists the elements of a set.
pub(super) fn element_query(set: &str) -> GenericMessage {
    message(NFT_MSG_GETSETELEM, &[string(NFTA_SET_ELEM_LIST_TABLE, TABLE), string(NFTA_SET_ELEM_LIST_SET, set)])
}

/// The message that lists the sets.
pub(super) fn set_query() -> GenericMessage {
    message(NFT_MSG_GETSET, &[string(NFTA_SET_TABLE, TABLE)])
}

/// The name of the set in an answer to [`set_query`].
pub(super) fn set_name(answer: &GenericMessage) -> Option<String> {
    child(&answer.attributes, NFTA_SET_NAME).map(|name| text(name.value()))
}

/// Whether the set of that name has the receivers.
pub(super) fn is_of_receivers(name: &str) -> bool {
    name.starts_with(RECEIVERS)
}

/// The message that deletes a set.
pub(super) fn set_deletion(name: &str) -> Sent {
    (message(NFT_MSG_DELSET, &[string(NFTA_SET_TABLE, TABLE), string(NFTA_SET_NAME, name)]), 0)
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
    fn address_type(self) -> KeyType {
        match self {
            Self::V4 => KeyType { number: 7, length: 4 },
            Self::V6 => KeyType { number: 8, length: 16 },
        }
    }
}
