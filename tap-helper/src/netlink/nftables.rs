//! The table `podtap` of nftables (`include/uapi/linux/netfilter/nf_tables.h`): it drops packets to the UDP ports of the node's
//! receivers, except those from the nodes that send to them.
//!
//! The kernel looks up sockets for broadcasts and multicasts in another way (`__udp4_lib_mcast_deliver`, `net/ipv4/udp.c`), which a
//! program of the type `sk_lookup` does not see, and any pod can send them to its node. netfilter sees every packet to the node. The table stays when the helper ends.
//!
//! The table is replaced as a whole, in one transaction. Its sets are constant, so that a table with both of its rules is complete.

mod expression;
mod socket;

use std::{collections::BTreeSet, net::IpAddr};

use podtap_model::{Count, IpNet};
use rtnetlink::packet_core::{DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP};

use super::{
    error::NetnsError,
    generic::GenericMessage,
    nla::{child, children, nested, string, text},
};
use crate::{names::Hash, namespace::Namespace};
use expression::{Family, rule};
use socket::{Nftables, Sent};

/// The name of the table, of the family inet.
pub const TABLE: &str = "podtap";
const CHAIN: &str = "input";

const NFPROTO_INET: u8 = 1;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_ACCEPT: u32 = 1;

const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_GETTABLE: u8 = 1;
const NFT_MSG_DELTABLE: u8 = 2;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_NEWRULE: u8 = 6;
const NFT_MSG_GETRULE: u8 = 7;
const NFT_MSG_NEWSET: u8 = 9;
const NFT_MSG_NEWSETELEM: u8 = 12;

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
const NFTA_SET_ELEM_LIST_SET_ID: u16 = 4;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFT_SET_ANONYMOUS: u32 = 1;
const NFT_SET_CONSTANT: u32 = 2;
const NFT_SET_INTERVAL: u32 = 4;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NFTA_LIST_ELEM: u16 = 1;
/// The comment in a table's user data (`include/libnftnl/udata.h` of libnftnl).
const NFTNL_UDATA_TABLE_COMMENT: u8 = 0;

/// What an anonymous set is called: the kernel replaces `%d`.
const ANONYMOUS_SET: &str = "__set%d";
/// Elements of one message: an attribute has at most 64 KiB.
const ELEMENTS: usize = 500;

/// Who may send to which UDP ports of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFilter {
    /// The ports of the receivers.
    pub ports: BTreeSet<u16>,
    /// The networks from which they accept packets.
    pub sources: BTreeSet<IpNet>,
}

/// The table in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFilterTable {
    /// [`SourceFilter::comment`] of what it was made from.
    comment: String,
    /// Packets that each rule has dropped: of IPv4, of IPv6.
    dropped: Vec<Count>,
}

impl SourceFilter {
    /// Identifies it and the version of its rules.
    fn comment(&self) -> String {
        let hash = self.ports.iter().fold(Hash::new(), |hash, port| hash.text(&port.to_string()));
        let hash = self.sources.iter().fold(hash, |hash, network| hash.text(&network.to_string()));
        format!("podtap.dev/v1 {:016x}", hash.value())
    }

    /// Reads the table of a network namespace, if there is one.
    pub fn read(namespace: &Namespace) -> Result<Option<SourceFilterTable>, NetnsError> {
        match Self::read_table(namespace) {
            // The kernel has no such table, or no nftables.
            Err(NetnsError::Netlink(error)) if error.is_gone() || error.is_unsupported() => Ok(None),
            result => result.map(Some),
        }
    }

    fn read_table(namespace: &Namespace) -> Result<SourceFilterTable, NetnsError> {
        let nftables = Nftables::open(namespace)?;
        let table = message(NFT_MSG_GETTABLE, &[string(NFTA_TABLE_NAME, TABLE)]);
        let tables = nftables.send(table, NLM_F_ACK, "read the table podtap of nftables")?;
        let rules = message(NFT_MSG_GETRULE, &[string(NFTA_RULE_TABLE, TABLE)]);
        let rules = nftables.send(rules, NLM_F_DUMP, "read the rules of the table podtap of nftables")?;
        let comment = tables.first().map(comment).unwrap_or_default();
        Ok(SourceFilterTable { comment, dropped: rules.iter().map(dropped).collect() })
    }

    /// Creates the table in a network namespace, or replaces it, and continues its counters.
    pub fn install(&self, namespace: &Namespace, before: Option<&SourceFilterTable>) -> Result<(), NetnsError> {
        let nftables = Nftables::open(namespace)?;
        Ok(nftables.transaction(self.messages(before), "create the table podtap of nftables")?)
    }

    /// Removes the table from a network namespace.
    pub fn remove(namespace: &Namespace) -> Result<(), NetnsError> {
        let nftables = Nftables::open(namespace)?;
        let delete = vec![(message(NFT_MSG_DELTABLE, &[string(NFTA_TABLE_NAME, TABLE)]), 0)];
        match nftables.transaction(delete, "remove the table podtap of nftables") {
            Err(error) if error.is_gone() => Ok(()),
            result => Ok(result?),
        }
    }

    fn messages(&self, before: Option<&SourceFilterTable>) -> Vec<Sent> {
        let name = string(NFTA_TABLE_NAME, TABLE);
        let comment = DefaultNla::new(NFTA_TABLE_USERDATA, comment_data(&self.comment()));
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
            (message(NFT_MSG_DELTABLE, std::slice::from_ref(&name)), 0),
            (message(NFT_MSG_NEWTABLE, &[name, comment]), NLM_F_CREATE),
            (message(NFT_MSG_NEWCHAIN, &chain), NLM_F_CREATE),
        ];
        for (index, family) in [Family::V4, Family::V6].into_iter().enumerate() {
            let id = u32::try_from(index).unwrap_or_default() * 2 + 1;
            let (ports, addresses) = (id, id + 1);
            let single: Vec<_> = self.ports.iter().map(|port| (port.to_be_bytes().to_vec(), 0)).collect();
            messages.extend(set(ports, PORT_TYPE, 0, &single));
            messages.extend(set(addresses, family.address_type(), NFT_SET_INTERVAL, &self.intervals(family)));
            let counted = before.and_then(|table| table.dropped.get(index).copied()).unwrap_or_default();
            let rule = [
                string(NFTA_RULE_TABLE, TABLE),
                string(NFTA_RULE_CHAIN, CHAIN),
                nested(NFTA_RULE_EXPRESSIONS, &rule(family, ports, addresses, counted)),
            ];
            messages.push((message(NFT_MSG_NEWRULE, &rule), NLM_F_CREATE | NLM_F_APPEND));
        }
        messages
    }

    /// The sources of a family as elements of an interval set: the first address of each interval, and the one after its last.
    fn intervals(&self, family: Family) -> Vec<(Vec<u8>, u32)> {
        let bits = family.bits();
        let range = |network: &IpNet| {
            let number = |address| match address {
                IpAddr::V4(address) => u128::from(address.to_bits()),
                IpAddr::V6(address) => address.to_bits(),
            };
            (network.addr().is_ipv4() == (bits == 32)).then(|| (number(network.network()), number(network.broadcast())))
        };
        let mut ranges: Vec<(u128, u128)> = self.sources.iter().filter_map(range).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        let bytes = |number: u128| number.to_be_bytes()[16 - bits / 8..].to_vec();
        let highest = u128::MAX >> (128 - bits);
        let interval = |(first, last): (u128, u128)| {
            let end = (last < highest).then(|| (bytes(last + 1), NFT_SET_ELEM_INTERVAL_END));
            std::iter::once((bytes(first), 0)).chain(end)
        };
        merged.into_iter().flat_map(interval).collect()
    }
}

impl SourceFilterTable {
    /// Whether the table is complete, and made from `filter`.
    #[must_use]
    pub fn is(&self, filter: &SourceFilter) -> bool {
        self.comment == filter.comment() && self.dropped.len() == 2
    }

    /// What it has dropped.
    #[must_use]
    pub fn dropped(&self) -> Count {
        let add = |sum: Count, one: &Count| Count { frames: sum.frames + one.frames, bytes: sum.bytes + one.bytes };
        self.dropped.iter().fold(Count::default(), add)
    }
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

const PORT_TYPE: KeyType = KeyType { number: 13, length: 2 };

impl Family {
    fn address_type(self) -> KeyType {
        match self {
            Self::V4 => KeyType { number: 7, length: 4 },
            Self::V6 => KeyType { number: 8, length: 16 },
        }
    }

    fn bits(self) -> usize {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// The messages that create an anonymous set with these elements and their flags.
fn set(id: u32, key: KeyType, flags: u32, elements: &[(Vec<u8>, u32)]) -> Vec<Sent> {
    let set = [
        string(NFTA_SET_TABLE, TABLE),
        string(NFTA_SET_NAME, ANONYMOUS_SET),
        number(NFTA_SET_FLAGS, NFT_SET_ANONYMOUS | NFT_SET_CONSTANT | flags),
        number(NFTA_SET_KEY_TYPE, key.number),
        number(NFTA_SET_KEY_LEN, key.length),
        number(NFTA_SET_ID, id),
    ];
    let element = |(bytes, flags): &(Vec<u8>, u32)| {
        let key = expression::data(NFTA_SET_ELEM_KEY, bytes);
        nested(NFTA_LIST_ELEM, &[key, number(NFTA_SET_ELEM_FLAGS, *flags)])
    };
    let list = |elements: &[(Vec<u8>, u32)]| {
        let elements: Vec<DefaultNla> = elements.iter().map(element).collect();
        let list = [
            string(NFTA_SET_ELEM_LIST_TABLE, TABLE),
            string(NFTA_SET_ELEM_LIST_SET, ANONYMOUS_SET),
            number(NFTA_SET_ELEM_LIST_SET_ID, id),
            nested(NFTA_SET_ELEM_LIST_ELEMENTS, &elements),
        ];
        (message(NFT_MSG_NEWSETELEM, &list), NLM_F_CREATE)
    };
    let create = (message(NFT_MSG_NEWSET, &set), NLM_F_CREATE);
    std::iter::once(create).chain(elements.chunks(ELEMENTS).map(list)).collect()
}

/// An attribute with a number, which nftables has in network byte order.
fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// User data with a comment: type, length, text and a terminating zero.
fn comment_data(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[NFTNL_UDATA_TABLE_COMMENT, length], text.as_bytes(), &[0]].concat()
}

fn comment(table: &GenericMessage) -> String {
    let data = child(&table.attributes, NFTA_TABLE_USERDATA).map(|data| data.value().to_vec()).unwrap_or_default();
    match data.split_first_chunk() {
        Some(([NFTNL_UDATA_TABLE_COMMENT, _], rest)) => text(rest),
        _ => String::new(),
    }
}

/// What a rule has dropped.
fn dropped(rule: &GenericMessage) -> Count {
    let Some(list) = child(&rule.attributes, NFTA_RULE_EXPRESSIONS) else { return Count::default() };
    children(list.value()).find_map(|entry| expression::counter(entry.value())).unwrap_or_default()
}

#[cfg(test)]
mod tests;
