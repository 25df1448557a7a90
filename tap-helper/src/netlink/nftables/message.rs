//! The messages that read, create and delete the table.

use podtap_model::Count;
use rtnetlink::packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NlaBuffer};

use super::{
    SourceFilter, SourceFilterTable, VERSION,
    expression::{self, Family},
    sets::{SetNames, set_deletion},
    socket::{self, Sent},
};
use crate::netlink::{
    generic::GenericMessage,
    nla::{child, children, nested, string, text},
};

/// The name of the table, of the family inet.
pub(super) const TABLE: &str = "podtap";
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
const NFT_MSG_DELRULE: u8 = 8;

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
pub(super) const NFTA_LIST_ELEM: u16 = 1;
/// The comment in a table's user data (`include/libnftnl/udata.h` of libnftnl).
const NFTNL_UDATA_TABLE_COMMENT: u8 = 0;

impl SourceFilter {
    /// The messages that create the table, in place of one that may exist.
    pub(super) fn creation(&self, before: Option<&SourceFilterTable>) -> Vec<Sent> {
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
            (table(), NLM_F_CREATE),
            (message(NFT_MSG_NEWCHAIN, &chain), NLM_F_CREATE),
        ];
        messages.extend(self.sets());
        messages.extend(self.rules(before));
        messages
    }

    /// The messages that replace the rules, and delete the sets of those before.
    pub(super) fn replacement(&self, before: &SourceFilterTable) -> Vec<Sent> {
        let chain = [string(NFTA_RULE_TABLE, TABLE), string(NFTA_RULE_CHAIN, CHAIN)];
        let mut messages = vec![(message(NFT_MSG_DELRULE, &chain), 0)];
        messages.extend(self.rules(Some(before)));
        messages.extend(before.used_sets.iter().map(|set| set_deletion(set)));
        messages
    }

    fn rules(&self, before: Option<&SourceFilterTable>) -> [Sent; RULES] {
        let names = SetNames::of(self);
        let counted = |rule: usize| before.and_then(|table| table.dropped.get(rule).copied()).unwrap_or_default();
        [
            rule(&expression::rejected(Family::V4, &names, counted(0))),
            rule(&expression::rejected(Family::V6, &names, counted(1))),
            rule(&expression::accepted_fragment()),
            rule(&expression::rejected_fragment(&names, counted(3))),
        ]
    }
}

/// The message that creates the table itself.
pub(super) fn table() -> GenericMessage {
    let comment = DefaultNla::new(NFTA_TABLE_USERDATA, comment_data(VERSION));
    message(NFT_MSG_NEWTABLE, &[string(NFTA_TABLE_NAME, TABLE), comment])
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

pub(super) fn message(kind: u8, attributes: &[DefaultNla]) -> GenericMessage {
    socket::message(kind, NFPROTO_INET, attributes)
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

/// The sets that a rule refers to.
pub(super) fn used_sets(rule: &GenericMessage) -> Vec<String> {
    let list = child(&rule.attributes, NFTA_RULE_EXPRESSIONS);
    let list = list.as_ref().map(NlaBuffer::value).unwrap_or_default();
    children(list).filter_map(|entry| expression::set(entry.value())).collect()
}

/// What a rule has dropped.
pub(super) fn dropped(rule: &GenericMessage) -> Count {
    let Some(list) = child(&rule.attributes, NFTA_RULE_EXPRESSIONS) else { return Count::default() };
    children(list.value()).find_map(|entry| expression::counter(entry.value())).unwrap_or_default()
}
