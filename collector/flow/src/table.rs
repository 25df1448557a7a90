//! The flow table.

mod join;
mod lookups;
mod reports;
mod translations;

use std::{
    hash::{BuildHasher as _, RandomState},
    hint,
    net::IpAddr,
    time::Duration,
};

use hashbrown::HashTable;

use self::{
    join::Handshake,
    lookups::Name,
    reports::{emit, queue},
    translations::Translations,
};
use crate::{
    Limits,
    arena::{Arena, Index},
    dns,
    flow::{Effect, Flow, HandshakeKey},
    key::{Key, Side},
    packet::{Fragment, Packet, Transport, parse_quoted},
    recent::Recent,
    record::{End, Endpoint, Event, Failure, Source},
    time::Timestamp,
};

/// The fragments of a datagram come within this time.
const SAME_DATAGRAM: Duration = Duration::from_secs(30);

/// Packets that [`Table::prepare`] reads.
pub const AHEAD: usize = 16;

/// What the table did. Frames that carry no IP packet are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// IP packets that were passed on.
    pub packets: u64,
    /// Frames that were another view of one that was counted.
    pub duplicates: u64,
    /// Flows, also those that were forgotten.
    pub flows: u64,
    /// Flows that were forgotten because there were too many.
    pub evicted: u64,
    /// Connections whose views before and after translation were joined.
    pub joined: u64,
    /// Names of flows that found no room.
    pub names_dropped: u64,
    /// Later fragments whose first one was not seen. They count as a flow without ports.
    pub orphaned_fragments: u64,
    /// Translations that conntrack told: see [`Table::translate`].
    pub translations: u64,
    /// Translations that were forgotten because there were too many.
    pub translations_evicted: u64,
    /// Translations that contradict what the frames of their connection say. The frames are believed.
    pub contradictions: u64,
}

/// All flows.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    flows: Arena<Flow, { queue::COUNT }>,
    index: HashTable<Entry>,
    hasher: RandomState,
    handshakes: Recent<HandshakeKey, Handshake>,
    fragments: Recent<DatagramKey, (u16, u16, Timestamp)>,
    names: Recent<(IpAddr, IpAddr), Name>,
    translations: Translations,
    /// Bytes of the beginnings of streams.
    beginnings: usize,
    /// Bytes of the names of flows.
    names_of_flows: usize,
    serial: u32,
    /// See [`Table::lost_until`].
    lost: Timestamp,
    counters: Counters,
}

/// A key of a flow. The keys are in the flow.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    flow: Index,
}

impl Entry {
    /// Of all bits, as the table needs them.
    fn spread(self) -> u64 {
        spread(self.hash)
    }
}

fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct DatagramKey {
    source: Source,
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    id: u32,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            flows: Arena::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            handshakes: Recent::new(limits.handshakes),
            fragments: Recent::new(limits.fragments),
            names: Recent::new(limits.names),
            translations: Translations::new(limits.translations),
            beginnings: 0,
            names_of_flows: 0,
            serial: 0,
            lost: Timestamp::default(),
            counters: Counters::default(),
        }
    }

    /// What the table did so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Flows that are in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether no flow is in the table.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has the flows of the first [`AHEAD`] packets in the CPU's cache when they are observed next. What is done for one of them does not
    /// depend on what was read for another one, so the CPU waits for the memory of all of them at once, and not for each in turn.
    pub fn prepare<'a>(&self, source: Source, packets: impl Iterator<Item = Packet<'a>>) {
        let mut hashes = [0; AHEAD];
        let mut count = 0;
        for (hash, packet) in hashes.iter_mut().zip(packets) {
            let (from, to) = ports_of(&packet.transport);
            let end = |address, port| Endpoint { address, port };
            let ends = (end(packet.source, from), end(packet.destination, to));
            *hash = self.hash(&Key::new(source, packet.protocol, ends.0, ends.1).0);
            count += 1;
        }
        let hashes = &hashes[..count];
        let found = |hash: &u32| self.index.find(spread(*hash), |entry| entry.hash == *hash).map(|entry| entry.flow);
        let mut flows = [None; AHEAD];
        flows.iter_mut().zip(hashes).for_each(|(flow, hash)| *flow = found(hash));
        let touch = |flow: &Option<Index>| flow.and_then(|flow| self.flows.get(flow)).map_or(0, Flow::touch);
        hint::black_box(flows.iter().map(touch).fold(0, u64::wrapping_add));
    }

    /// Counts a packet.
    pub fn observe(&mut self, source: Source, at: Timestamp, packet: &Packet<'_>, report: &mut impl FnMut(Event)) {
        self.counters.packets += 1;
        let (from, to) = self.ports(source, at, packet);
        let end = |address, port| Endpoint { address, port };
        let (from, to) = (end(packet.source, from), end(packet.destination, to));
        let (key, side) = Key::new(source, packet.protocol, from, to);
        let index = self.flow(key, side, at, packet, report);
        let Some(flow) = self.flows.get_mut(index) else { return };
        let side = flow.side(&key, side);
        flow.confirm(&key, side, &packet.transport);
        let last = flow.last;
        let effect = flow.count(packet, side, at, self.lost);
        if effect == Effect::Duplicate {
            self.counters.duplicates += 1;
            return;
        }
        match &packet.transport {
            Transport::Tcp(segment) if flow.is_client(side) => {
                let (before, had_name) = (flow.beginning.kept(), flow.beginning.name_length() > 0);
                flow.beginning.read(segment, self.beginnings < self.limits.beginnings);
                self.beginnings = self.beginnings + flow.beginning.kept() - before;
                let length = if had_name { 0 } else { flow.beginning.name_length() };
                if length > 0 && self.names_of_flows + length > self.limits.names_of_flows {
                    flow.beginning.forget_name();
                    self.counters.names_dropped += 1;
                } else {
                    self.names_of_flows += length;
                }
            }
            Transport::Udp(datagram) if datagram.source_port == dns::PORT || datagram.destination_port == dns::PORT => {
                self.read_dns(index, at, packet, datagram);
            }
            Transport::Icmp(icmp) if !icmp.quoted.is_empty() => self.read_error(source, icmp.quoted),
            _ => {}
        }
        if effect == Effect::HandshakeSeen {
            self.join(index, at);
        }
        self.advance(index, effect, (last, at), report);
    }

    /// The flow of a packet, which may be a new one.
    fn flow(
        &mut self,
        key: Key,
        side: Side,
        at: Timestamp,
        packet: &Packet<'_>,
        report: &mut impl FnMut(Event),
    ) -> Index {
        if let Some(index) = self.find(&key) {
            let replaced = match (&packet.transport, self.flows.get(index)) {
                (Transport::Tcp(segment), Some(flow)) => flow.is_replaced_by(segment, flow.side(&key, side)),
                _ => false,
            };
            if !replaced {
                return index;
            }
            if let Some(flow) = self.flows.get_mut(index) {
                flow.give_up();
                let end = flow.end.unwrap_or(End::Finished);
                emit(flow, end, self.lost, report);
            }
            self.remove(index);
        }
        if self.flows.len() >= self.limits.flows {
            self.evict(report);
        }
        self.counters.flows += 1;
        self.serial = self.serial.wrapping_add(1);
        let mut flow = Flow::new(key, side, at, self.serial);
        match self.name(packet.source, packet.destination, at) {
            Some(name) if self.has_room_for(&name) => flow.set_dns_name(Some(name)),
            Some(_) => self.counters.names_dropped += 1,
            None => {}
        }
        self.names_of_flows += flow.names();
        let index = self.flows.insert(flow, queue::YOUNG);
        self.insert_key(&key, index);
        self.translate_new(index, at, packet)
    }

    fn has_room_for(&self, name: &str) -> bool {
        self.names_of_flows + name.len() <= self.limits.names_of_flows
    }

    fn find(&self, key: &Key) -> Option<Index> {
        let hash = self.hash(key);
        let is_it =
            |entry: &Entry| entry.hash == hash && self.flows.get(entry.flow).is_some_and(|flow| flow.has_key(key));
        self.index.find(spread(hash), is_it).map(|entry| entry.flow)
    }

    fn hash(&self, key: &Key) -> u32 {
        // The lower half.
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits do")]
        let hash = self.hasher.hash_one(key) as u32;
        hash
    }

    fn insert_key(&mut self, key: &Key, flow: Index) {
        let entry = Entry { hash: self.hash(key), flow };
        self.index.insert_unique(entry.spread(), entry, |entry| entry.spread());
    }

    fn remove_key(&mut self, key: &Key, flow: Index) {
        let hash = self.hash(key);
        if let Ok(entry) = self.index.find_entry(spread(hash), |entry| entry.hash == hash && entry.flow == flow) {
            entry.remove();
        }
    }

    fn remove(&mut self, index: Index) -> Option<Flow> {
        let flow = self.flows.remove(index)?;
        self.beginnings -= flow.beginning.kept();
        self.names_of_flows -= flow.names();
        self.remove_key(&flow.key, index);
        if let Some(other) = flow.other_key() {
            self.remove_key(&other, index);
        }
        self.keep_translation(&flow);
        Some(flow)
    }

    /// Source and destination port. Of later fragments: those of the first one.
    fn ports(&mut self, source: Source, at: Timestamp, packet: &Packet<'_>) -> (u16, u16) {
        let ports = ports_of(&packet.transport);
        let Packet { source: from, destination: to, protocol, id, .. } = *packet;
        let key = DatagramKey { source, from, to, protocol, id };
        match packet.fragment {
            Fragment::No => ports,
            Fragment::First => {
                self.fragments.insert(key, (ports.0, ports.1, at));
                ports
            }
            Fragment::Later => match self.fragments.get(&key) {
                Some(&mut (from, to, first)) if at.since(first) <= SAME_DATAGRAM => (from, to),
                _ => {
                    self.counters.orphaned_fragments += 1;
                    (0, 0)
                }
            },
        }
    }

    /// An ICMP error is about a packet that it quotes.
    fn read_error(&mut self, source: Source, quoted: &[u8]) {
        let Some((protocol, from, to)) = parse_quoted(quoted) else { return };
        let (key, _) = Key::new(source, protocol, from, to);
        if let Some(flow) = self.find(&key).and_then(|index| self.flows.get_mut(index)) {
            flow.fail(Failure::Unreachable);
        }
    }
}

const fn ports_of(transport: &Transport<'_>) -> (u16, u16) {
    match transport {
        Transport::Tcp(segment) => (segment.source_port, segment.destination_port),
        Transport::Udp(datagram) => (datagram.source_port, datagram.destination_port),
        Transport::Sctp(from, to) => (*from, *to),
        Transport::Icmp(_) | Transport::Other => (0, 0),
    }
}

#[cfg(test)]
mod tests;
