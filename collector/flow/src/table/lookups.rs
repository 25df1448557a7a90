//! What clients look up by DNS: the names of the servers that they connect to.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::Table;
use crate::{
    arena::Index,
    dns,
    packet::{Datagram, Packet},
    time::Timestamp,
};

/// Clients use an address for longer than its record's time to live.
const GRACE: Duration = Duration::from_secs(300);

/// The name that a client looked up to get an address, and until when it may use that.
#[derive(Debug)]
pub(super) struct Name {
    /// The addresses of an answer share it.
    name: Arc<str>,
    expires: Timestamp,
}

impl Table {
    /// The name that a client looked up to get an address.
    pub(super) fn name(&mut self, client: IpAddr, server: IpAddr, at: Timestamp) -> Option<Box<str>> {
        self.names.get(&(client, server)).filter(|name| at <= name.expires).map(|name| (*name.name).into())
    }

    pub(super) fn read_dns(&mut self, index: Index, at: Timestamp, packet: &Packet<'_>, datagram: &Datagram<'_>) {
        let Some(message) = dns::parse(datagram.payload) else { return };
        let may_keep = self.has_room_for(&message.name);
        let Some(flow) = self.flows.get_mut(index) else { return };
        if !message.is_response {
            if datagram.destination_port == dns::PORT {
                let before = flow.names();
                let has_room = flow.ask(message.id, &message.name, at, may_keep);
                self.names_of_flows = self.names_of_flows + flow.names() - before;
                self.counters.names_dropped += u64::from(!has_room);
            }
            return;
        }
        let is_answer = datagram.source_port == dns::PORT && flow.answer(message.id, &message.name, message.code, at);
        if !is_answer {
            return;
        }
        let shared: Arc<str> = message.name.into();
        for (address, ttl) in message.addresses {
            let expires = at.plus(Duration::from_secs(ttl.into()) + GRACE);
            let name = Name { name: Arc::clone(&shared), expires };
            self.names.insert((packet.destination, address), name);
        }
    }
}
