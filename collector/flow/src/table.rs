//! The flow table.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    time::Duration,
};

use hashbrown::HashTable;

use crate::{
    arena::{Arena, Index},
    dns,
    flow::{Effect, Flow, Key, Side, View},
    packet::{Datagram, Fragment, Packet, Transport, parse_quoted},
    recent::Recent,
    record::{Answer, End, Endpoint, Event, Failure, Query, Source},
    time::Timestamp,
};

/// Bounds of the table, and its times.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows at once. Beyond it, those that are idle for longest are reported and forgotten.
    pub flows: usize,
    /// Bytes of the beginnings of streams, until they tell a server's name.
    pub beginnings: usize,
    /// Answers of DNS servers: client and address.
    pub names: usize,
    /// Handshakes whose other view may still come.
    pub handshakes: usize,
    /// Fragmented datagrams whose ports are known.
    pub fragments: usize,
    /// A flow that goes on is reported this often,
    pub active: Duration,
    /// and after so long without a frame.
    pub idle: Duration,
    /// TCP connections without frames are remembered this long.
    pub open: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 200_000,
            beginnings: 16 << 20,
            names: 65_536,
            handshakes: 65_536,
            fragments: 4096,
            active: Duration::from_secs(60),
            idle: Duration::from_secs(15),
            open: Duration::from_secs(2 * 60 * 60),
        }
    }
}

/// A flow that goes on is announced after this time: until then, another view of it may have come.
const ANNOUNCED_AFTER: Duration = Duration::from_secs(1);
/// Frames of a connection may come after its end.
const LATE: Duration = Duration::from_secs(1);
/// The views of a handshake come within this time.
const SAME_HANDSHAKE: Duration = Duration::from_secs(10);
/// The fragments of a datagram come within this time.
const SAME_DATAGRAM: Duration = Duration::from_secs(30);
/// Clients use an address for longer than its record's time to live.
const GRACE: Duration = Duration::from_secs(300);

/// Flows by their state. Each queue begins with the one that is in it for longest.
mod queue {
    /// Not announced.
    pub const YOUNG: usize = 0;
    /// Moved to the end with each frame.
    pub const ACTIVE: usize = 1;
    /// Open connections without anything new.
    pub const QUIET: usize = 2;
    /// At their end.
    pub const ENDED: usize = 3;
    pub const COUNT: usize = 4;
}

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
    /// Later fragments whose first one was not seen. They count as a flow without ports.
    pub orphaned_fragments: u64,
}

/// All flows.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    flows: Arena<Flow, { queue::COUNT }>,
    index: HashTable<Index>,
    hasher: RandomState,
    handshakes: Recent<(u32, u32), Handshake>,
    fragments: Recent<DatagramKey, (u16, u16, Timestamp)>,
    names: Recent<(IpAddr, IpAddr), Name>,
    /// Bytes of the beginnings of streams.
    beginnings: usize,
    serial: u32,
    counters: Counters,
}

#[derive(Debug)]
struct Name {
    name: Box<str>,
    expires: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Handshake {
    flow: Index,
    serial: u32,
    at: Timestamp,
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
            beginnings: 0,
            serial: 0,
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

    /// Counts a packet.
    pub fn observe(&mut self, source: Source, at: Timestamp, packet: &Packet<'_>, report: &mut impl FnMut(Event)) {
        self.counters.packets += 1;
        let (from, to) = self.ports(source, at, packet);
        let end = |address, port| Endpoint { address, port };
        let (from, to) = (end(packet.source, from), end(packet.destination, to));
        let (key, side) = Key::new(source, packet.protocol, from, to);
        let index = self.flow(key, side, at, packet, report);
        let Some(flow) = self.flows.get_mut(index) else { return };
        let effect = flow.count(packet, side, at);
        if effect == Effect::Duplicate {
            self.counters.duplicates += 1;
            return;
        }
        match &packet.transport {
            Transport::Tcp(segment) if flow.is_client(side) => {
                let before = flow.beginning.kept();
                flow.beginning.read(segment, self.beginnings < self.limits.beginnings);
                self.beginnings = self.beginnings + flow.beginning.kept() - before;
            }
            Transport::Udp(datagram) if datagram.source_port == dns::PORT || datagram.destination_port == dns::PORT => {
                self.read_dns(index, at, packet, datagram);
            }
            Transport::Icmp(icmp) if !icmp.quoted.is_empty() => self.read_error(source, icmp.quoted),
            _ => {}
        }
        match effect {
            Effect::Ended => self.flows.move_to(index, queue::ENDED),
            Effect::HandshakeSeen => self.join(index, at),
            Effect::Counted | Effect::Duplicate => {}
        }
        let Some(flow) = self.flows.get_mut(index) else { return };
        if flow.announced && effect != Effect::Ended {
            if flow.is_due(at, self.limits.active) {
                emit(flow, End::ActiveTimeout, report);
            }
            self.flows.move_to(index, queue::ACTIVE);
        }
    }

    /// Reports and forgets what is over at this time. To be called at least every second of the frames' time.
    pub fn expire(&mut self, now: Timestamp, report: &mut impl FnMut(Event)) {
        let is_due = |flow: &Flow, since: Timestamp, wait: Duration| now.since(since) >= wait && now > flow.start;
        while let Some((index, flow)) = self.first(queue::YOUNG) {
            if !is_due(flow, flow.start, ANNOUNCED_AFTER) {
                break;
            }
            flow.announced = true;
            if flow.view != View::Front {
                report(Event::Opened(flow.summary()));
            }
            self.flows.move_to(index, queue::ACTIVE);
        }
        while let Some((index, flow)) = self.first(queue::ENDED) {
            if !is_due(flow, flow.last, LATE) {
                break;
            }
            let end = flow.end.unwrap_or(End::Finished);
            emit(flow, end, report);
            self.remove(index);
        }
        let idle = self.limits.idle;
        while let Some((index, flow)) = self.first(queue::ACTIVE) {
            if !is_due(flow, flow.last, idle) {
                break;
            }
            if flow.is_unanswered() {
                flow.failure.get_or_insert(Failure::NoAnswer);
            }
            emit(flow, End::IdleTimeout, report);
            if flow.is_open() {
                self.flows.move_to(index, queue::QUIET);
            } else {
                self.remove(index);
            }
        }
        let open = self.limits.open;
        while let Some((index, flow)) = self.first(queue::QUIET) {
            if !is_due(flow, flow.last, open) {
                break;
            }
            self.remove(index);
        }
    }

    /// Reports all flows, and forgets them.
    pub fn flush(&mut self, report: &mut impl FnMut(Event)) {
        for queue in [queue::YOUNG, queue::ENDED, queue::ACTIVE, queue::QUIET] {
            while let Some((index, flow)) = self.first(queue) {
                let end = flow.end.unwrap_or(End::Forced);
                emit(flow, end, report);
                self.remove(index);
            }
        }
    }

    fn first(&mut self, queue: usize) -> Option<(Index, &mut Flow)> {
        let index = self.flows.first(queue)?;
        self.flows.get_mut(index).map(|flow| (index, flow))
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
        let hash = self.hasher.hash_one(key);
        let flows = &self.flows;
        if let Some(&index) = self.index.find(hash, |index| flows.get(*index).is_some_and(|flow| flow.key == key)) {
            let replaced = match (&packet.transport, self.flows.get(index)) {
                (Transport::Tcp(segment), Some(flow)) => flow.is_replaced_by(segment, side),
                _ => false,
            };
            if !replaced {
                return index;
            }
            if let Some(flow) = self.flows.get_mut(index) {
                let end = flow.end.unwrap_or(End::Finished);
                emit(flow, end, report);
            }
            self.remove(index);
        }
        if self.flows.len() >= self.limits.flows {
            self.evict(report);
        }
        self.counters.flows += 1;
        self.serial = self.serial.wrapping_add(1);
        let mut flow = Flow::new(key, side, at, self.serial);
        flow.set_dns_name(self.name(packet.source, packet.destination, at));
        let index = self.flows.insert(flow, queue::YOUNG);
        let (flows, hasher) = (&self.flows, &self.hasher);
        let rehash = |index: &Index| flows.get(*index).map_or(0, |flow| hasher.hash_one(flow.key));
        self.index.insert_unique(hash, index, rehash);
        index
    }

    /// Makes room: for what is at its end, then for what is quiet, then for what is idle for longest.
    fn evict(&mut self, report: &mut impl FnMut(Event)) {
        for queue in [queue::ENDED, queue::QUIET, queue::ACTIVE, queue::YOUNG] {
            if let Some((index, flow)) = self.first(queue) {
                let end = flow.end.unwrap_or(End::LackOfResources);
                emit(flow, end, report);
                self.remove(index);
                self.counters.evicted += 1;
                return;
            }
        }
    }

    fn remove(&mut self, index: Index) {
        let Some(flow) = self.flows.remove(index) else { return };
        self.beginnings -= flow.beginning.kept();
        if let Ok(entry) = self.index.find_entry(self.hasher.hash_one(flow.key), |other| *other == index) {
            entry.remove();
        }
    }

    /// Source and destination port. Of later fragments: those of the first one.
    fn ports(&mut self, source: Source, at: Timestamp, packet: &Packet<'_>) -> (u16, u16) {
        let ports = match &packet.transport {
            Transport::Tcp(segment) => (segment.source_port, segment.destination_port),
            Transport::Udp(datagram) => (datagram.source_port, datagram.destination_port),
            Transport::Icmp(_) | Transport::Other => (0, 0),
        };
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

    /// The name that a client looked up to get an address.
    fn name(&mut self, client: IpAddr, server: IpAddr, at: Timestamp) -> Option<Box<str>> {
        self.names.get(&(client, server)).filter(|name| at <= name.expires).map(|name| name.name.clone())
    }

    fn read_dns(&mut self, index: Index, at: Timestamp, packet: &Packet<'_>, datagram: &Datagram<'_>) {
        let Some(message) = dns::parse(datagram.payload) else { return };
        let Some(flow) = self.flows.get_mut(index) else { return };
        if !message.is_response {
            let name = message.name.into();
            flow.query().get_or_insert_with(|| Box::new(Query { id: message.id, name, asked: at, answer: None }));
            return;
        }
        if let Some(query) =
            flow.query().as_deref_mut().filter(|query| query.id == message.id && query.answer.is_none())
        {
            query.answer = Some(Answer { code: message.code, after: at.since(query.asked) });
        }
        for (address, ttl) in message.addresses {
            let expires = at.plus(Duration::from_secs(ttl.into()) + GRACE);
            let name = Name { name: message.name.as_str().into(), expires };
            self.names.insert((packet.destination, address), name);
        }
    }

    /// An ICMP error is about a packet that it quotes.
    fn read_error(&mut self, source: Source, quoted: &[u8]) {
        let Some((protocol, from, to)) = parse_quoted(quoted) else { return };
        let (key, _) = Key::new(source, protocol, from, to);
        let flows = &self.flows;
        let found =
            self.index.find(self.hasher.hash_one(key), |index| flows.get(*index).is_some_and(|flow| flow.key == key));
        if let Some(flow) = found.copied().and_then(|index| self.flows.get_mut(index))
            && flow.is_one_way()
        {
            flow.failure.get_or_insert(Failure::Unreachable);
        }
    }

    /// Joins a connection with another view of it, before or after its addresses were translated: both have its initial sequence numbers.
    fn join(&mut self, index: Index, at: Timestamp) {
        let Some(flow) = self.flows.get(index) else { return };
        let (serial, ttl, ends) = (flow.serial, flow.client_ttl(), flow.ends());
        let Some(initials) = flow.initials() else { return };
        let here = Handshake { flow: index, serial, at };
        let Some(known) = self.handshakes.get(&initials).copied() else {
            self.handshakes.insert(initials, here);
            return;
        };
        let other = self.flows.get(known.flow).filter(|other| {
            other.serial == known.serial && at.since(known.at) <= SAME_HANDSHAKE && other.view == View::Alone
        });
        let Some(other) = other else {
            self.handshakes.insert(initials, here);
            return;
        };
        let other_ends = other.ends();
        // The same tuple met at two sources: nothing was translated.
        if other_ends == ends {
            return;
        }
        // Routers lower the TTL on the way. Without any, the view of the client comes first.
        let is_front = ttl > other.client_ttl();
        let (front, back, ends) = if is_front { (index, known.flow, ends) } else { (known.flow, index, other_ends) };
        if let Some(flow) = self.flows.get_mut(front) {
            flow.view = View::Front;
        }
        let name = self.flows.get(front).and_then(Flow::dns_name);
        if let Some(flow) = self.flows.get_mut(back) {
            flow.view = View::Back(Box::new(ends));
            flow.set_dns_name(name);
        }
        self.counters.joined += 1;
    }
}

/// Reports what is new about a flow, unless another view of it does.
fn emit(flow: &mut Flow, end: End, report: &mut impl FnMut(Event)) {
    if flow.view != View::Front && (flow.has_news() || !flow.announced) {
        report(Event::Record(flow.report(end)));
    }
}

#[cfg(test)]
mod tests;
