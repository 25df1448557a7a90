//! The table `podtap` of nftables (`include/uapi/linux/netfilter/nf_tables.h`): it drops VXLAN to the node's receivers, except from the
//! nodes that send to them. It never drops a packet that no receiver would take: a rule matches the UDP port and the whole VXLAN header, so
//! other traffic to a receiver's port passes, whatever the port.
//!
//! The kernel looks up sockets for broadcasts and multicasts in another way (`__udp4_lib_mcast_deliver`, `net/ipv4/udp.c`), which a
//! program of the type `sk_lookup` does not see, and any pod can send them to its node. netfilter sees every packet to the node. The table
//! stays when the helper ends.
//!
//! The table is replaced as a whole, in one transaction. Its sets are constant, so that a table with all of its rules is complete.

mod expression;
mod intervals;
mod message;
mod socket;

use std::collections::BTreeSet;

use podtap_model::{Count, IpNet};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};

use super::error::NetnsError;
use crate::{names::Hash, namespace::Namespace};
use message::{RULES, comment, deletion, dropped, element_query, receivers, rule_query, table_query};
use socket::Nftables;

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
    /// [`SourceFilter::comment`] of what it was made from.
    comment: String,
    /// Packets that each rule has dropped.
    dropped: Vec<Count>,
    /// The UDP port and the VNI of each receiver.
    pub receivers: BTreeSet<(u16, u32)>,
}

impl SourceFilter {
    /// Identifies it and the version of its rules.
    fn comment(&self) -> String {
        let receiver = |hash: Hash, (port, vni): &(u16, u32)| hash.text(&format!("{port} {vni}"));
        let hash = self.receivers.iter().fold(Hash::new(), receiver);
        let hash = self.sources.iter().fold(hash, |hash, network| hash.text(&network.to_string()));
        format!("podtap.dev/v2 {:016x}", hash.value())
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
        let sets = nftables.send(element_query(), NLM_F_DUMP, "read the receivers of the table podtap of nftables");
        Ok(SourceFilterTable {
            comment: tables.first().map(comment).unwrap_or_default(),
            dropped: rules.iter().map(dropped).collect(),
            // A table of another version has no such set.
            receivers: sets.iter().flatten().flat_map(receivers).collect(),
        })
    }

    /// Creates the table in a network namespace, or replaces it, and continues its counters.
    pub fn install(&self, namespace: &Namespace, before: Option<&SourceFilterTable>) -> Result<(), NetnsError> {
        let nftables = Nftables::open(namespace)?;
        Ok(nftables.transaction(self.messages(before), "create the table podtap of nftables")?)
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
        self.comment == filter.comment() && self.dropped.len() == RULES
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
