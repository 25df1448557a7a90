//! A flow while it is in the table.

mod lookups;
mod views;

use std::{num::NonZeroU64, time::Duration};

use self::lookups::Dns;
pub(crate) use self::views::{Joined, Told};
use crate::{
    direction::Direction,
    hello::Beginning,
    key::{Key, Side},
    packet::{Flags, Packet, Segment, TCP, Transport, UDP},
    record::{End, Endpoint, Failure, Opener, Record},
    stream::LostBy,
    time::Timestamp,
};

#[derive(Debug)]
pub(crate) struct Flow {
    pub key: Key,
    /// Tells it from flows that were at the same place before.
    pub serial: u32,
    pub start: Timestamp,
    pub last: Timestamp,
    /// The first frame that is in no record yet.
    from: Option<Timestamp>,
    directions: [Direction; 2],
    first_side: Side,
    opener: Option<(Side, Opener)>,
    answered: bool,
    /// The last SYN of the opener.
    syn_at: Timestamp,
    /// Nanoseconds.
    handshake: Option<NonZeroU64>,
    icmp: Option<(u8, u8)>,
    failure: Option<Failure>,
    failure_reported: bool,
    pub end: Option<End>,
    /// Who lost frames since the last record, if any are missing.
    lost_by: LostBy,
    /// Whether it was announced, by an event or a record.
    pub announced: bool,
    joined: Option<Box<Joined>>,
    pub beginning: Beginning,
    dns: Option<Box<Dns>>,
}

/// What the views of a connection have in common, before and after its addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandshakeKey {
    /// The client, whose address is rarely translated, and its initial sequence number.
    Syn(Endpoint, u32),
    /// The initial sequence numbers of client and server.
    Complete(u32, u32),
}

/// What a packet did to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Another view of a frame that was counted.
    Duplicate,
    Counted,
    /// An initial sequence number that was not known is known now.
    HandshakeSeen,
    /// The flow is at its end now.
    Ended,
    /// It was before.
    Late,
}

impl Flow {
    pub fn new(key: Key, side: Side, at: Timestamp, serial: u32) -> Self {
        Self {
            key,
            serial,
            start: at,
            last: at,
            from: None,
            directions: <[Direction; 2]>::default(),
            first_side: side,
            opener: None,
            answered: false,
            syn_at: at,
            handshake: None,
            icmp: None,
            failure: None,
            failure_reported: false,
            end: None,
            lost_by: LostBy::Mirror,
            announced: false,
            joined: None,
            beginning: Beginning::default(),
            dns: None,
        }
    }

    /// Reads of each cache line what a packet needs.
    pub fn touch(&self) -> u64 {
        let counted = |direction: &Direction| direction.frames.wrapping_add(direction.stream.bytes());
        let both = self.directions.iter().map(counted).fold(self.last.0, u64::wrapping_add);
        both.wrapping_add(u64::from(self.serial)).wrapping_add(u64::from(self.key.source))
    }

    fn of(&self, side: Side) -> &Direction {
        &self.directions[usize::from(side)]
    }

    fn of_mut(&mut self, side: Side) -> &mut Direction {
        &mut self.directions[usize::from(side)]
    }

    fn end_of(&self, side: Side) -> Endpoint {
        self.key.ends[usize::from(side)]
    }

    /// Whether a segment opens another connection between the same ports.
    pub fn is_replaced_by(&self, segment: &Segment<'_>, side: Side) -> bool {
        if !segment.flags.has(Flags::SYN) {
            return false;
        }
        let (mine, theirs) = (&self.of(side).stream, &self.of(1 - side).stream);
        if let Some(initial) = mine.initial {
            return initial != segment.sequence;
        }
        // Without its SYN, what was seen of this side is older, unless frames were only mirrored in another order.
        let is_older = mine.starts().is_some_and(|start| start != segment.sequence.wrapping_add(1));
        let is_answered = segment.flags.has(Flags::ACK) || theirs.initial.is_some();
        is_older || !is_answered && theirs.starts().is_some()
    }

    /// Counts a packet that `side` sent. `lost`: until when this program lost frames.
    pub fn count(&mut self, packet: &Packet<'_>, side: Side, at: Timestamp, lost: Timestamp) -> Effect {
        let (known, had_ended) = (self.handshake_key(), self.end.is_some());
        if self.of_mut(side).is_duplicate(packet) {
            return Effect::Duplicate;
        }
        if lost > self.last {
            self.lost_by = LostBy::Collector;
            self.directions.iter_mut().for_each(|direction| direction.stream.lost_by = LostBy::Collector);
        }
        // The queues of the table are in the order of this time.
        if self.end.is_none() {
            self.last = self.last.max(at);
        }
        if !matches!(packet.transport, Transport::Tcp(_)) && self.of(1 - side).has_frames {
            self.failure = None;
        }
        self.from.get_or_insert(at);
        let direction = self.of_mut(side);
        direction.has_frames = true;
        direction.frames += 1;
        direction.octets += packet.octets;
        direction.ttl = direction.ttl.max(packet.ttl);
        match &packet.transport {
            Transport::Tcp(segment) => self.count_segment(segment, side, at),
            Transport::Udp(datagram) => direction.payload += u64::from(datagram.length),
            Transport::Icmp(icmp) => self.icmp = self.icmp.or(Some((icmp.kind, icmp.code))),
            Transport::Sctp(..) | Transport::Other => {}
        }
        match (had_ended, self.end.is_some()) {
            (false, true) => Effect::Ended,
            (true, true) => Effect::Late,
            _ if known != self.handshake_key() => Effect::HandshakeSeen,
            _ => Effect::Counted,
        }
    }

    fn count_segment(&mut self, segment: &Segment<'_>, side: Side, at: Timestamp) {
        let (flags, other) = (segment.flags, 1 - side);
        self.of_mut(side).flags |= flags.0;
        let is_opener = self.opener == Some((side, Opener::Syn));
        match (flags.has(Flags::SYN), flags.has(Flags::ACK)) {
            (true, false) => {
                self.opener = Some((side, Opener::Syn));
                self.syn_at = at;
            }
            (true, true) => {
                self.opener.get_or_insert((other, Opener::SynAck));
                self.answered = true;
            }
            (false, true) if is_opener => {
                // A later one, if that frame is missing, would tell how long the connection lasts.
                let answer = self.of(other).stream.initial.map(|initial| initial.wrapping_add(1));
                let completes =
                    answer == Some(segment.acknowledgment) && !flags.has(Flags::FIN) && !flags.has(Flags::RST);
                let nanoseconds = NonZeroU64::new(at.0.saturating_sub(self.syn_at.0)).filter(|_| completes);
                self.handshake = self.handshake.or(nanoseconds);
                // Also if the answer was not mirrored.
                self.answered = true;
            }
            _ => {}
        }
        if self.answered {
            self.failure = None;
        }
        if flags.has(Flags::RST) {
            // Others are ignored by the peer (RFC 5961).
            if self.of(side).stream.is_near(segment) {
                self.end.get_or_insert(End::Reset);
            }
            if !self.answered && self.opener == Some((other, Opener::Syn)) {
                self.failure.get_or_insert(Failure::Refused);
            }
            return;
        }
        // An old connection may answer a SYN (RFC 9293, 3.5.2): that is not of this one.
        if !self.answered && self.opener == Some((other, Opener::Syn)) {
            return;
        }
        let is_ahead = self.of(side).stream.is_ahead(segment);
        self.of_mut(side).stream.count(segment);
        if flags.has(Flags::ACK) {
            self.of_mut(other).stream.acknowledge(segment.acknowledgment);
        }
        if self.end == Some(End::Reset) && is_ahead {
            // The RST was none.
            self.end = None;
        }
        if self.directions.iter().all(|direction| direction.stream.is_finished()) {
            self.end.get_or_insert(End::Finished);
        }
    }

    /// The initial sequence numbers of client and server.
    fn initials(&self) -> Option<(u32, u32)> {
        let (client, _) = self.opener?;
        Some((self.of(client).stream.initial?, self.of(1 - client).stream.initial?))
    }

    /// What both views of a connection have in common, as far as it is known now.
    pub fn handshake_key(&self) -> Option<HandshakeKey> {
        let (client, how) = self.opener?;
        match self.initials() {
            Some((client, server)) => Some(HandshakeKey::Complete(client, server)),
            None if how == Opener::Syn => Some(HandshakeKey::Syn(self.end_of(client), self.of(client).stream.initial?)),
            None => None,
        }
    }

    /// Whether its first frames were seen, and say who the client is.
    pub fn has_handshake(&self) -> bool {
        self.opener.is_some_and(|(_, how)| matches!(how, Opener::Syn | Opener::SynAck))
    }

    /// The higher of the TTLs of the client's frames: routers lower it, so the view before translation has the higher one.
    pub fn client_ttl(&self) -> u8 {
        self.of(self.client().0).ttl
    }

    /// The end that opened the flow, and how that is known.
    pub fn client(&self) -> (Side, Opener) {
        self.opener.unwrap_or_else(|| {
            let [lower, upper] = self.key.ends.map(|end| end.port);
            if self.key.protocol == TCP {
                (u8::from(lower < upper), Opener::Port)
            } else if lower == crate::dns::PORT && upper != lower {
                (1, Opener::Port)
            } else if upper == crate::dns::PORT && upper != lower {
                (0, Opener::Port)
            } else {
                (self.first_side, Opener::FirstFrame)
            }
        })
    }

    /// Client and server.
    pub fn ends(&self) -> (Endpoint, Endpoint) {
        let (client, _) = self.client();
        (self.end_of(client), self.end_of(1 - client))
    }

    pub fn is_client(&self, side: Side) -> bool {
        self.client().0 == side
    }

    /// Whether it is too early to say who called whom: a SYN that is not answered.
    pub fn is_opening(&self) -> bool {
        !self.answered && self.end.is_none() && self.opener.is_some_and(|(_, how)| how == Opener::Syn)
    }

    /// Nothing was seen for so long that there will be no answer.
    pub fn give_up(&mut self) {
        if self.is_opening() {
            self.failure.get_or_insert(Failure::NoAnswer);
        }
    }

    /// An ICMP error is about it.
    pub fn fail(&mut self, failure: Failure) {
        if self.is_one_way() && !self.answered {
            self.failure.get_or_insert(failure);
        }
    }

    /// Whether what is new is so old at this time.
    pub fn is_due(&self, at: Timestamp, age: Duration) -> bool {
        self.from.is_some_and(|from| at.since(from) >= age)
    }

    /// Whether frames that would say that it is not idle may have been lost by this program. `lost`: until when it lost some.
    pub fn may_be_active(&self, now: Timestamp, lost: Timestamp, idle: Duration) -> bool {
        // Frames of DNS and answers to SYNs are never left out.
        let is_dns = self.key.protocol == UDP && self.key.ends.iter().any(|end| end.port == crate::dns::PORT);
        !is_dns && !self.is_opening() && lost > self.last && now.since(lost) < idle
    }

    /// Whether there is something that is in no record.
    pub fn has_news(&self) -> bool {
        self.from.is_some()
    }

    /// Whether it is a connection that may go on.
    pub fn is_open(&self) -> bool {
        self.key.protocol == TCP && self.end.is_none()
    }

    /// Whether only one end sent frames.
    pub fn is_one_way(&self) -> bool {
        self.directions.iter().any(|direction| !direction.has_frames)
    }

    /// A record so far. What it counts is also in the next one. `lost`: until when this program lost frames.
    pub fn summary(&self, lost: Timestamp) -> Record {
        self.record(End::ActiveTimeout, self.from.unwrap_or(self.last), true, lost)
    }

    /// What happened since the last record.
    pub fn report(&mut self, end: End, lost: Timestamp) -> Record {
        let from = self.from.take().unwrap_or(self.last);
        let is_first = !std::mem::replace(&mut self.announced, true);
        let record = self.record(end, from, is_first, lost);
        self.lost_by = LostBy::Mirror;
        self.failure_reported |= self.failure.is_some();
        if let Some(dns) = &mut self.dns {
            dns.responses.clear();
        }
        for direction in &mut self.directions {
            direction.earlier_flags |= direction.flags;
            (direction.frames, direction.octets, direction.payload, direction.flags) = (0, 0, 0, 0);
            // Less by one, if a FIN that was not seen at first was taken for a byte.
            direction.reported = direction.reported.max(direction.stream.bytes());
        }
        record
    }

    fn record(&self, end: End, from: Timestamp, is_first: bool, lost: Timestamp) -> Record {
        let (client, opener) = self.client();
        let [sent, received] = [client, 1 - client].map(|side| self.of(side));
        let ends = self.joined.as_ref().map_or_else(|| self.ends(), |joined| joined.after);
        Record {
            source: self.key.source,
            protocol: self.key.protocol,
            client: ends.0,
            server: ends.1,
            opener,
            start: self.start,
            from,
            to: self.last,
            sent: sent.news(),
            received: received.news(),
            totals: [sent, received].map(Direction::totals),
            icmp: self.icmp,
            handshake: self.handshake.map(|nanoseconds| Duration::from_nanos(nanoseconds.get())),
            failure: self.failure.filter(|_| !self.failure_reported),
            end,
            is_first,
            preexisting: self.key.protocol == TCP && [sent, received].iter().all(|one| one.stream.initial.is_none()),
            degraded: self.lost_by == LostBy::Collector || lost > self.last,
            translated: self.joined.as_ref().map(|joined| joined.before),
            translated_by: self.joined.as_ref().map(|joined| joined.by),
            zone: self.zone(),
            dns_name: self.dns_name(),
            query: self.dns.as_ref().and_then(|dns| dns.query.clone()),
            responses: self.dns.as_ref().map(|dns| dns.responses.clone()).unwrap_or_default(),
            sni: self.beginning.name(),
            connection: self.initials().map(|(client, server)| u64::from(client) << 32 | u64::from(server)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_flows_take_forty_megabytes() {
        // With its place in the arena and in the index, a third of which is free.
        assert!(size_of::<Flow>() + 16 + 8 <= 400, "{}", size_of::<Flow>());
    }
}
