//! The views of a connection before and after its addresses are translated: both are one flow.

use super::Flow;
use crate::{
    key::{Key, Side},
    named::TranslatedBy,
    packet::{Flags, Transport},
    record::{Endpoint, Opener},
    stream::LostBy,
};

/// Both views of a connection whose addresses are translated on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joined {
    pub by: TranslatedBy,
    /// The key of the view that is not the flow's own one.
    pub other: Key,
    /// Whether its lower end is the upper one of the flow's key.
    pub is_swapped: bool,
    /// Client and server before and after the translation.
    pub before: (Endpoint, Endpoint),
    pub after: (Endpoint, Endpoint),
    /// The conntrack zone, if conntrack told.
    pub zone: Option<u16>,
}

impl Joined {
    /// Whether what conntrack tells is not what the sequence numbers say, in whichever order their views are. One of the nodes on the
    /// way may only have translated the client's address, which is no contradiction.
    fn contradicts(&self, known: &Self) -> bool {
        let servers = |joined: &Self| (joined.before.1, joined.after.1);
        let (before, after) = servers(self);
        before != after && servers(known) != (before, after) && servers(known) != (after, before)
    }
}

/// What conntrack tells of a flow, beside what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    News,
    Known,
    Contradiction,
}

impl Flow {
    /// Whether this is a key of the flow.
    pub fn has_key(&self, key: &Key) -> bool {
        self.key == *key || self.joined.as_ref().is_some_and(|joined| joined.other == *key)
    }

    /// The other key, if there is one.
    pub fn other_key(&self) -> Option<Key> {
        self.joined.as_ref().map(|joined| joined.other)
    }

    /// A side of one of the flow's keys, as a side of its own one.
    pub fn side(&self, key: &Key, side: Side) -> Side {
        match &self.joined {
            Some(joined) if joined.is_swapped && self.key != *key => 1 - side,
            _ => side,
        }
    }

    /// The conntrack zone in which its addresses are translated, if conntrack told.
    pub fn zone(&self) -> Option<u16> {
        self.joined.as_ref()?.zone
    }

    pub fn is_joined_by(&self, by: TranslatedBy) -> bool {
        self.joined.as_ref().is_some_and(|joined| joined.by == by)
    }

    /// Whether what conntrack told is not what the sequence numbers say.
    pub fn was_mistold(&self, known: &Joined) -> bool {
        self.joined.as_ref().is_some_and(|told| told.by == TranslatedBy::Conntrack && told.contradicts(known))
    }

    /// Remembers both views, and who the client is. Returns the key that is none of the flow any more.
    pub fn set_joined(&mut self, joined: Joined, client: Side) -> Option<Key> {
        self.opener.get_or_insert((client, Opener::Conntrack));
        let former = self.joined.replace(Box::new(joined));
        former.map(|former| former.other).filter(|former| *former != joined.other)
    }

    /// What this tells, of which conntrack says that `client` is the client.
    pub fn told(&self, joined: &Joined, client: Side) -> Told {
        if self.opener.is_some_and(|(side, how)| how != Opener::Conntrack && side != client) {
            return Told::Contradiction;
        }
        let Some(known) = &self.joined else { return Told::News };
        let is_same = (known.before, known.after) == (joined.before, joined.after);
        match known.by {
            TranslatedBy::Conntrack if !is_same => Told::News,
            TranslatedBy::Join if joined.contradicts(known) => Told::Contradiction,
            _ => Told::Known,
        }
    }

    /// Takes over the order of the views and the zone, if these are the views. Sequence numbers tell which views are of one connection, and
    /// TTLs only suggest which one comes first.
    pub fn order_views(&mut self, joined: &Joined) {
        let Some(known) = &mut self.joined else { return };
        if (known.before, known.after) == (joined.after, joined.before) {
            (known.before, known.after) = (joined.before, joined.after);
        }
        if (known.before, known.after) == (joined.before, joined.after) {
            known.zone = joined.zone;
        }
    }

    /// Whether nothing says that two views are of two connections. `is_swapped`: the lower end of one is the upper one of the other.
    pub fn may_be_view_of(&self, other: &Self, is_swapped: bool) -> bool {
        let of_other = |side: Side| if is_swapped { 1 - side } else { side };
        let same_initials = [0, 1].into_iter().all(|side| {
            let (mine, theirs) = (self.of(side).stream.initial, other.of(of_other(side)).stream.initial);
            mine.zip(theirs).is_none_or(|(mine, theirs)| mine == theirs)
        });
        let certain = |flow: &Self| flow.opener.filter(|(_, how)| matches!(how, Opener::Syn | Opener::SynAck));
        let same_client =
            certain(self).zip(certain(other)).is_none_or(|((mine, _), (theirs, _))| mine == of_other(theirs));
        same_initials && same_client
    }

    /// Whether both views have an initial sequence number in common.
    pub fn shares_initial(&self, other: &Self, is_swapped: bool) -> bool {
        let of_other = |side: Side| if is_swapped { 1 - side } else { side };
        [0, 1].into_iter().any(|side| {
            let initial = self.of(side).stream.initial;
            initial.is_some() && initial == other.of(of_other(side)).stream.initial
        })
    }

    /// Takes notice of the sequence number that is the same in the other view, by which that needs no conntrack.
    pub fn confirm(&mut self, key: &Key, side: Side, transport: &Transport<'_>) {
        let Some(joined) = &mut self.joined else { return };
        if let Transport::Tcp(segment) = transport
            && segment.flags.has(Flags::SYN)
            && joined.other == *key
            && self.directions[usize::from(side)].stream.initial == Some(segment.sequence)
        {
            joined.by = TranslatedBy::Join;
        }
    }

    /// Takes over what another view of the same connection has seen. Of each direction, the view that has seen more counts. Returns how
    /// many frames do not count.
    pub fn absorb(&mut self, mut other: Self, is_swapped: bool) -> u64 {
        self.start = self.start.min(other.start);
        self.from = self.from.into_iter().chain(other.from).min();
        self.end = self.end.or(other.end);
        // After its end, it is the time of that.
        self.last = if self.end.is_some() { self.last } else { self.last.max(other.last) };
        self.answered |= other.answered;
        self.lost_by = if other.lost_by == LostBy::Collector { other.lost_by } else { self.lost_by };
        self.announced |= other.announced;
        self.failure_reported |= other.failure_reported;
        self.handshake = self.handshake.or(other.handshake);
        self.icmp = self.icmp.or(other.icmp);
        self.set_dns_name(other.dns_name());
        if self.dns.as_ref().is_none_or(|dns| dns.query.is_none()) && other.dns.is_some() {
            std::mem::swap(&mut self.dns, &mut other.dns);
            self.set_dns_name(other.dns_name());
        }
        if is_swapped {
            other.directions.swap(0, 1);
        }
        let opener = other.opener.map(|(side, how)| (if is_swapped { 1 - side } else { side }, how));
        self.opener = self.opener.or(opener);
        let mut repeated = 0;
        for (mine, theirs) in self.directions.iter_mut().zip(&mut other.directions) {
            if !mine.has_frames || mine.reported == 0 && theirs.frames > mine.frames {
                std::mem::swap(mine, theirs);
            }
            repeated += theirs.frames;
        }
        let is_answered = self.answered || !self.is_one_way();
        self.failure = if is_answered { None } else { self.failure.or(other.failure) };
        if self.beginning.name().is_none() {
            std::mem::swap(&mut self.beginning, &mut other.beginning);
        }
        repeated
    }
}
