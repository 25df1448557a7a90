//! How nodes translate connections, as their conntrack tells: the views of a connection before and after it.

use std::{net::IpAddr, time::Duration};

use podtap_model::metadata::{Translation, Tuple};

use super::Table;
use crate::{
    arena::Index,
    flow::{Flow, Joined, Told},
    key::{Key, Side},
    named::TranslatedBy,
    packet::{Flags, Packet, SCTP, TCP, Transport, UDP},
    recent::Recent,
    record::{Endpoint, Source},
    time::Timestamp,
};

/// What conntrack tells of a connection comes at most so long before its first frame.
const EARLY: Duration = Duration::from_secs(1);
/// Without frames, conntrack forgets a flow of UDP after this time (`nf_conntrack_udp_timeout_stream`,
/// `Documentation/networking/nf_conntrack-sysctl.rst`). The same tuple may be translated to something else then.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// Nodes that translate one connection: the client's, and the one whose port it used.
const MOST_STEPS: usize = 4;

/// A tuple that a connection has on its way, and which of its ends is the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    key: Key,
    client: Side,
}

impl View {
    fn new(source: Source, protocol: u8, client: Endpoint, server: Endpoint) -> Self {
        let (key, client) = Key::new(source, protocol, client, server);
        Self { key, client }
    }

    /// Client and server.
    fn ends(&self) -> (Endpoint, Endpoint) {
        let end = |side: Side| self.key.ends[usize::from(side)];
        (end(self.client), end(1 - self.client))
    }
}

/// What a node makes of a view.
#[derive(Clone, Copy, Debug)]
struct Step {
    before: View,
    after: View,
    /// The conntrack zone.
    zone: u16,
    /// When it was told, or used last.
    at: Timestamp,
}

/// What nodes translate, by the tuples before and after.
#[derive(Debug)]
pub(super) struct Translations {
    forward: Recent<Key, Step>,
    backward: Recent<Key, Step>,
}

impl Translations {
    pub fn new(capacity: usize) -> Self {
        Self { forward: Recent::new(capacity), backward: Recent::new(capacity) }
    }

    pub fn evicted(&self) -> u64 {
        self.forward.evicted
    }

    fn insert(&mut self, step: Step) {
        self.forward.insert(step.before.key, step);
        self.backward.insert(step.after.key, step);
    }

    /// Remembers that a tuple was in use.
    fn touch(&mut self, key: &Key, at: Timestamp) {
        for steps in [&mut self.forward, &mut self.backward] {
            if let Some(step) = steps.get(key) {
                step.at = step.at.max(at);
            }
        }
    }

    /// The first and the last view of the connection that has this tuple on its way, and the conntrack zone of the last step.
    fn resolve(&mut self, key: &Key, is_valid: impl Fn(Timestamp) -> bool) -> Option<(View, View, u16)> {
        let mut ends: Option<(View, View)> = None;
        let mut zone = 0;
        for _ in 0..MOST_STEPS {
            let next = self.forward.get(&ends.map_or(*key, |(_, last)| last.key)).filter(|step| is_valid(step.at));
            let Some(step) = next.filter(|step| ends.is_none_or(|(_, last)| last == step.before)) else { break };
            zone = step.zone;
            ends = Some((ends.map_or(step.before, |(first, _)| first), step.after));
        }
        for _ in 0..MOST_STEPS {
            let next = self.backward.get(&ends.map_or(*key, |(first, _)| first.key)).filter(|step| is_valid(step.at));
            let Some(step) = next.filter(|step| ends.is_none_or(|(first, _)| first == step.after)) else { break };
            zone = if ends.is_none() { step.zone } else { zone };
            ends = Some((step.before, ends.map_or(step.after, |(_, last)| last)));
        }
        ends.filter(|(first, last)| first.key != last.key).map(|(first, last)| (first, last, zone))
    }
}

/// The client's packets before and after the translation, if anything is translated.
fn views(source: Source, translation: &Translation) -> Option<(View, View)> {
    let Translation { protocol, original, reply, .. } = *translation;
    let ends = |tuple: Tuple| {
        let end = |address: IpAddr, port| Endpoint { address, port };
        (end(tuple.source, tuple.source_port), end(tuple.destination, tuple.destination_port))
    };
    let (client, server) = ends(original);
    // Its source and destination are those of the server's packets.
    let (server_after, client_after) = ends(reply);
    let is_of_family = |end: &Endpoint| end.address.is_ipv4() == client.address.is_ipv4();
    let is_sound =
        matches!(protocol, TCP | UDP | SCTP) && [server, client_after, server_after].iter().all(is_of_family);
    let before = View::new(source, protocol, client, server);
    let after = View::new(source, protocol, client_after, server_after);
    (is_sound && before.key != after.key).then_some((before, after))
}

impl Table {
    /// Applies what conntrack tells of a connection, to frames of this source that were seen or are still to come. It affects flows
    /// that have one of its two tuples, and no others. Returns whether it tells something.
    pub fn translate(&mut self, source: Source, at: Timestamp, translation: &Translation) -> bool {
        let Some((before, after)) = views(source, translation) else { return false };
        self.counters.translations += 1;
        self.translations.insert(Step { before, after, zone: translation.zone, at });
        self.counters.translations_evicted = self.translations.evicted();
        for view in [before, after] {
            let Some(index) = self.find(&view.key) else { continue };
            let Some(flow) = self.flows.get(index) else { continue };
            let since = if flow.has_handshake() { flow.start.minus(EARLY) } else { Timestamp(0) };
            self.apply_translation(index, at, since);
        }
        true
    }

    /// Applies what is known to a new flow, which this packet begins. Returns the flow that has it, as one of its views.
    pub(super) fn translate_new(&mut self, index: Index, at: Timestamp, packet: &Packet<'_>) -> Index {
        if self.translations.forward.is_empty() {
            return index;
        }
        // The client may have used the same port before.
        let is_connection = matches!(&packet.transport, Transport::Tcp(segment) if segment.flags.has(Flags::SYN));
        let since = if is_connection { at.minus(EARLY) } else { Timestamp(0) };
        self.apply_translation(index, at, since)
    }

    /// Remembers when a translated flow had its last frame.
    pub(super) fn keep_translation(&mut self, flow: &Flow) {
        if flow.is_joined_by(TranslatedBy::Conntrack) {
            self.translations.touch(&flow.key, flow.last);
        }
    }

    /// Joins a flow with the other view of it that conntrack tells, by what was told since then. Returns the flow that has both.
    fn apply_translation(&mut self, index: Index, at: Timestamp, since: Timestamp) -> Index {
        let Some(flow) = self.flows.get(index) else { return index };
        // A TCP connection begins with a SYN, so that what is older than it is not taken for its own.
        let lifetime = if flow.key.protocol == TCP { self.limits.open } else { FORGOTTEN };
        let is_valid = |told: Timestamp| told >= since && at.since(told) <= lifetime;
        let Some((first, last, zone)) = self.translations.resolve(&flow.key, is_valid) else { return index };
        let (own, other) = if flow.key == first.key {
            (first, last)
        } else if flow.key == last.key {
            (last, first)
        } else {
            // Of a view between two translations, which no pod has.
            return index;
        };
        let joined = Joined {
            by: TranslatedBy::Conntrack,
            other: other.key,
            is_swapped: own.client != other.client,
            before: first.ends(),
            after: last.ends(),
            zone: Some(zone),
        };
        match flow.told(&joined, own.client) {
            Told::News => {}
            Told::Known => {
                if let Some(flow) = self.flows.get_mut(index) {
                    flow.order_views(&joined);
                }
                return index;
            }
            Told::Contradiction => return self.contradicted(index),
        }
        let second = self.find(&other.key).filter(|second| *second != index);
        let Some((second, other_flow)) = second.and_then(|second| Some((second, self.flows.get(second)?))) else {
            self.set_joined(index, joined, own.client);
            return index;
        };
        if other_flow.is_joined_by(TranslatedBy::Join) && other_flow.end.is_none() {
            return self.contradicted(index);
        }
        if other_flow.key != other.key {
            // The port was used again: that flow is of the connection before.
            self.remove_key(&other.key, second);
            self.set_joined(index, joined, own.client);
            return index;
        }
        let is_swapped = joined.is_swapped;
        if !flow.may_be_view_of(other_flow, is_swapped) {
            return self.contradicted(index);
        }
        let by = if flow.shares_initial(other_flow, is_swapped) { TranslatedBy::Join } else { TranslatedBy::Conntrack };
        // The one that was met first may be announced.
        let (kept, client, dropped, key) = if (other_flow.start, other_flow.serial) < (flow.start, flow.serial) {
            (second, other.client, index, own.key)
        } else {
            (index, own.client, second, other.key)
        };
        self.merge(kept, dropped, is_swapped);
        self.set_joined(kept, Joined { by, other: key, ..joined }, client);
        kept
    }

    const fn contradicted(&mut self, index: Index) -> Index {
        self.counters.contradictions += 1;
        index
    }
}

#[cfg(test)]
mod tests;
