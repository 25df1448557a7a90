//! Joining both views of a connection whose addresses are translated on the way.

use std::time::Duration;

use super::Table;
use crate::{arena::Index, time::Timestamp};

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
        let Some(flow) = self.flows.get(index).filter(|flow| !flow.is_joined()) else { return };
        let Some(key) = flow.handshake_key() else { return };
        let here = Handshake { flow: index, serial: flow.serial, at };
        let known = self.handshakes.get(&key).copied();
        let other = known.and_then(|known| {
            let other = self.flows.get(known.flow).filter(|other| other.serial == known.serial)?;
            let is_same = at.since(known.at) <= SAME_HANDSHAKE && !other.is_joined();
            // The same tuple met at two sources: nothing was translated.
            (is_same && other.ends() != flow.ends()).then_some((known.flow, other))
        });
        let Some((other_index, other)) = other else {
            self.handshakes.insert(key, here);
            return;
        };
        // Routers lower the TTL on the way. Without any, the client's view comes first.
        let order = flow.client_ttl().cmp(&other.client_ttl()).then(other.start.cmp(&flow.start));
        let is_before = order.is_gt();
        // The one that was met first has seen as much as this one, or more.
        let Some(flow) = self.flows.remove(index) else { return };
        self.beginnings -= flow.beginning.kept();
        self.names_of_flows -= flow.names();
        self.remove_key(&flow.key, index);
        if let Some(other) = self.flows.get_mut(other_index) {
            let before = other.names();
            other.join(&flow, is_before);
            self.names_of_flows = self.names_of_flows + other.names() - before;
        }
        self.insert_key(&flow.key, other_index);
        self.counters.joined += 1;
        self.counters.duplicates += flow.frames();
    }
}
