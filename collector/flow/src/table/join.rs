//! Joining both views of a connection whose addresses are translated on the way.

use std::time::Duration;

use super::{Table, queue};
use crate::{
    arena::Index,
    flow::{Flow, Joined},
    key::Side,
    named::TranslatedBy,
    time::Timestamp,
};

/// The views of a handshake come within this time.
const SAME_HANDSHAKE: Duration = Duration::from_secs(10);

/// A flow whose initial sequence numbers are known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handshake {
    flow: Index,
    serial: u32,
    at: Timestamp,
}

impl Table {
    /// Joins a connection with another view of it, before or after its addresses were translated: both have the client's initial
    /// sequence number, and the server's, if it answers.
    pub(super) fn join(&mut self, index: Index, at: Timestamp) {
        let is_free = |flow: &&Flow| !flow.is_joined_by(TranslatedBy::Join);
        let Some(flow) = self.flows.get(index).filter(is_free) else { return };
        let Some(key) = flow.handshake_key() else { return };
        let here = Handshake { flow: index, serial: flow.serial, at };
        let known = self.handshakes.get(&key).copied();
        let other = known.and_then(|known| {
            let other = self.flows.get(known.flow).filter(|other| other.serial == known.serial)?;
            let is_same = at.since(known.at) <= SAME_HANDSHAKE && is_free(&other);
            // The same tuple met at two sources: nothing was translated.
            (is_same && other.ends() != flow.ends()).then_some((known.flow, other))
        });
        let Some((other_index, other)) = other else {
            self.handshakes.insert(key, here);
            return;
        };
        // Routers lower the TTL on the way. Without any, the client's view comes first.
        let order = flow.client_ttl().cmp(&other.client_ttl()).then(other.start.cmp(&flow.start));
        let (mine, theirs) = (flow.ends(), other.ends());
        let (before, after) = if order.is_gt() { (mine, theirs) } else { (theirs, mine) };
        let (client, _) = other.client();
        let is_swapped = client != flow.client().0;
        let mut joined = Joined { by: TranslatedBy::Join, other: flow.key, is_swapped, before, after, zone: None };
        for flow in [flow, other] {
            if flow.was_mistold(&joined) {
                self.counters.contradictions += 1;
            } else {
                // Conntrack may have told the same.
                joined.zone = joined.zone.or(flow.zone());
            }
        }
        // The one that was met first may be announced.
        self.merge(other_index, index, is_swapped);
        self.set_joined(other_index, joined, client);
    }

    /// Makes one flow of two views of a connection. `is_swapped`: the lower end of one is the upper one of the other.
    pub(super) fn merge(&mut self, kept: Index, dropped: Index, is_swapped: bool) {
        let Some(other) = self.remove(dropped) else { return };
        let Some(flow) = self.flows.get_mut(kept) else { return };
        let (kept_bytes, names, last) = (flow.beginning.kept(), flow.names(), flow.last);
        self.counters.joined += 1;
        self.counters.duplicates += flow.absorb(other, is_swapped);
        self.beginnings = self.beginnings + flow.beginning.kept() - kept_bytes;
        self.names_of_flows = self.names_of_flows + flow.names() - names;
        let queue = self.flows.queue(kept);
        let (has_ended, has_news) =
            self.flows.get(kept).map_or((false, false), |flow| (flow.end.is_some(), flow.last > last));
        if has_ended && queue != Some(queue::ENDED) {
            self.flows.move_to(kept, queue::ENDED);
        } else if has_news && !matches!(queue, Some(queue::YOUNG | queue::ENDED)) {
            self.flows.move_to(kept, queue::ACTIVE);
        }
    }

    /// Remembers both views of a flow, and who the client is.
    pub(super) fn set_joined(&mut self, index: Index, joined: Joined, client: Side) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let is_known = flow.other_key() == Some(joined.other);
        let former = flow.set_joined(joined, client);
        if let Some(former) = former {
            self.remove_key(&former, index);
        }
        if !is_known {
            self.insert_key(&joined.other, index);
        }
    }
}
