//! The table `podtap` of nftables (`include/uapi/linux/netfilter/nf_tables.h`): it drops VXLAN to the node's receivers, except from the
//! nodes that send to them. It never drops a packet that no receiver would take: a rule matches the UDP port and the whole VXLAN header, so
//! other traffic to a receiver's port passes, whatever the port.
//!
//! The kernel looks up sockets for broadcasts and multicasts in another way (`__udp4_lib_mcast_deliver`, `net/ipv4/udp.c`), which a
//! program of the type `sk_lookup` does not see, and any pod can send them to its node. netfilter sees every packet to the node. The table
//! stays when the helper ends.
//!
//! A change replaces the rules and their sets, in two transactions: the kernel may apply new rules a moment before it finds the elements of
//! sets of the same transaction (measured on Linux 6.18: for about 10 µs), and would drop frames of the receivers that stay. The sets are
//! constant, and their names identify the filter, so that a table with all of its rules is complete.

mod expression;
mod intervals;
mod message;
mod sets;
mod socket;

use std::collections::BTreeSet;

use podtap_model::{Count, IpNet};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};

use super::error::NetnsError;
use crate::{names::Hash, namespace::Namespace};
use message::{RULES, comment, deletion, dropped, rule_query, table_query, used_sets};
use sets::{SetNames, element_query, is_of_receivers, receivers, set_deletion, set_name, set_query};
use socket::Nftables;

/// The comment of the table: identifies the form of its rules and sets.
const VERSION: &str = "podtap.dev/v3";

/// Who may send to the node's receivers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFilter {
    /// The UDP port and the VNI of each receiver.
    pub receivers: BTreeSet<(u16, u32)>,
    /// The networks from which they accept frames.
    pub sources: BTreeSet<IpNet>,
}

/// The table in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFilterTable {
    /// [`VERSION`] of the helper that made it.
    comment: String,
    /// Packets that each rule has dropped.
    dropped: Vec<Count>,
    /// The sets that the rules refer to.
    used_sets: BTreeSet<String>,
    /// The other sets: those of a change that was not completed.
    unused_sets: BTreeSet<String>,
    /// The UDP port and the VNI of each receiver.
    pub receivers: BTreeSet<(u16, u32)>,
}

impl SourceFilter {
    fn hash(&self) -> u64 {
        let receiver = |hash: Hash, (port, vni): &(u16, u32)| hash.text(&format!("{port} {vni}"));
        let hash = self.receivers.iter().fold(Hash::new(), receiver);
        self.sources.iter().fold(hash, |hash, network| hash.text(&network.to_string())).value()
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
        let tables = nftables.send(table_query(), NLM_F_ACK, "read the table podtap of nftables")?;
        let rules = nftables.send(rule_query(), NLM_F_DUMP, "read the rules of the table podtap of nftables")?;
        let sets = nftables.send(set_query(), NLM_F_DUMP, "read the sets of the table podtap of nftables")?;
        let used_sets: BTreeSet<String> = rules.iter().flat_map(used_sets).collect();
        let mut table = SourceFilterTable {
            comment: tables.first().map(comment).unwrap_or_default(),
            dropped: rules.iter().map(dropped).collect(),
            unused_sets: sets.iter().filter_map(set_name).filter(|name| !used_sets.contains(name)).collect(),
            used_sets,
            receivers: BTreeSet::new(),
        };
        for set in table.used_sets.iter().filter(|name| is_of_receivers(name)) {
            let elements = element_query(set);
            let elements = nftables.send(elements, NLM_F_DUMP, "read the receivers of the table podtap of nftables")?;
            table.receivers.extend(elements.iter().flat_map(receivers));
        }
        Ok(table)
    }

    /// Creates the table in a network namespace, or changes it, and continues its counters.
    pub fn install(&self, namespace: &Namespace, before: Option<&SourceFilterTable>) -> Result<(), NetnsError> {
        let nftables = Nftables::open(namespace)?;
        let replaceable =
            |table: &&SourceFilterTable| table.is_complete() && table.used_sets.is_disjoint(&SetNames::of(self).all());
        let Some(before) = before.filter(replaceable) else {
            return Ok(nftables.transaction(self.creation(before), "create the table podtap of nftables")?);
        };
        let deletions = before.unused_sets.iter().map(|set| set_deletion(set));
        let sets = deletions.chain(self.sets()).collect();
        nftables.transaction(sets, "add sets to the table podtap of nftables")?;
        Ok(nftables.transaction(self.replacement(before), "replace the rules of the table podtap of nftables")?)
    }

    /// Removes the table from a network namespace.
    pub fn remove(namespace: &Namespace) -> Result<(), NetnsError> {
        let nftables = Nftables::open(namespace)?;
        match nftables.transaction(vec![deletion()], "remove the table podtap of nftables") {
            Err(error) if error.is_gone() => Ok(()),
            result => Ok(result?),
        }
    }
}

impl SourceFilterTable {
    /// Whether the table is complete, and made from `filter`.
    #[must_use]
    pub fn is(&self, filter: &SourceFilter) -> bool {
        self.is_complete() && self.used_sets == SetNames::of(filter).all()
    }

    fn is_complete(&self) -> bool {
        self.comment == VERSION && self.dropped.len() == RULES
    }

    /// What it has dropped.
    #[must_use]
    pub fn dropped(&self) -> Count {
        let add = |sum: Count, one: &Count| Count { frames: sum.frames + one.frames, bytes: sum.bytes + one.bytes };
        self.dropped.iter().fold(Count::default(), add)
    }
}

#[cfg(test)]
mod tests;
