//! Receivers segment only while somebody reads them, since that costs as much as mirroring does.
//!
//! When the kernel reports a reader, the receiver segments at once, without observing or planning first. After a reader was found by
//! polling, the receiver segments always, so that the next such reader sees all frames as on the wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Mutex,
    time::{Duration, Instant},
};

use tracing::{debug, info};

use super::{FULL_RECONCILE, Node, netns::Netns};
use crate::{
    marks::{Mark, Part, ReceiverMark},
    namespace::{NamespaceId, within_each},
    netlink::{Event, Link, link, turn},
    observe::Observed,
    readers::{Polled, is_read},
};

/// How often to poll for readers that the kernel does not report.
const POLL: Duration = Duration::from_millis(500);
/// How long a receiver goes on segmenting after its last reader, so that the next one finds it ready.
const IDLE_AFTER: Duration = FULL_RECONCILE;

/// What is known about the readers of a namespace's receivers.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// Interfaces that somebody read when they were last observed, by their ifindex.
    read: BTreeSet<u32>,
    /// When somebody was last known to read an interface.
    last: BTreeMap<u32, Instant>,
    /// The receivers that do not segment, by the ifindex of the interface.
    idle: BTreeMap<u32, Idle>,
    /// Interfaces with readers that the kernel does not report.
    polled: BTreeSet<u32>,
    /// What the last poll has found.
    last_poll: Polled,
}

/// A receiver that does not segment.
#[derive(Clone, Debug)]
struct Idle {
    interface: String,
    peer: u32,
    /// Offloads of the peer that have to be off for it to segment.
    offloads: Vec<String>,
}

impl Readers {
    /// Takes what was observed, for the first time in this namespace or again. To be called before a plan.
    pub(super) fn observed(&mut self, observed: &Observed, is_first: bool, now: Instant) {
        let exists = |interface: &u32| observed.link(*interface).is_some();
        self.last.retain(|interface, _| exists(interface));
        self.polled.retain(exists);
        self.idle.clear();
        let mut read = BTreeSet::new();
        for (peer, interface) in pairs(observed) {
            if is_read(interface, observed) || self.polled.contains(&interface.index) {
                read.insert(interface.index);
            }
            let offloads = observed.offloads(peer.index).map(|offloads| offloads.on.clone()).unwrap_or_default();
            if !offloads.is_empty() {
                let idle = Idle { interface: interface.name.clone(), peer: peer.index, offloads };
                self.idle.insert(interface.index, idle);
            } else if is_first {
                // The helper before let it segment, for a reader or because it ended.
                read.insert(interface.index);
            }
        }
        // Those that stopped did so since the last observation.
        self.last
            .extend(self.read.union(&read).filter(|interface| exists(interface)).map(|interface| (*interface, now)));
        self.read = read;
    }

    /// The interfaces that somebody reads or has read a short time ago.
    pub(super) fn recent(&self, now: Instant) -> BTreeSet<u32> {
        let recent = self.last.iter().filter(|(_, last)| now.saturating_duration_since(**last) < IDLE_AFTER);
        recent.map(|(interface, _)| *interface).collect()
    }

    /// The interfaces with readers that the kernel does not report.
    pub(super) fn polled(&self) -> BTreeSet<u32> {
        self.polled.clone()
    }

    pub(super) fn any_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// The receivers that have to segment after events.
    fn started(&mut self, events: &[Event]) -> Vec<Idle> {
        let interface = |event: &Event| match event {
            Event::Link { index, promiscuous: true, .. } => Some(*index),
            _ => None,
        };
        events.iter().filter_map(interface).filter_map(|interface| self.idle.remove(&interface)).collect()
    }
}

/// Peer and interface of each receiver that shows frames as on the wire.
fn pairs(observed: &Observed) -> impl Iterator<Item = (&Link, &Link)> {
    observed.ours().filter_map(|peer| match Mark::of(peer)? {
        Mark::Receiver(ReceiverMark { part: Part::Peer, raw: false, .. }) => Some((peer, observed.link(peer.peer?)?)),
        _ => None,
    })
}

impl Netns {
    /// Makes receivers segment whose readers have just started.
    pub(super) async fn segment_for_readers(&mut self, events: &[Event]) {
        let started = self.readers.started(events);
        self.segment(started).await;
    }

    async fn segment(&self, receivers: Vec<Idle>) {
        for Idle { interface, peer, offloads } in receivers {
            match turn(&self.netlink, peer, &offloads, false).await {
                Ok(()) => info!(interface, "segments for a reader"),
                // The next reconciliation turns them off as well.
                Err(error) => debug!(interface, %error, "cannot segment yet"),
            }
        }
    }

    /// Compares a poll with the one before. Records the interfaces with readers that the kernel does not report.
    async fn take_poll(&mut self, poll: Polled) {
        let is_new = |interface: &u32| {
            !self.readers.polled.contains(interface) && poll.reads(*interface, &self.readers.last_poll)
        };
        let read: Vec<u32> = self.readers.idle.keys().copied().filter(is_new).collect();
        self.readers.last_poll = poll;
        for interface in read {
            // After the poll: a socket that is older than it has made the interface promiscuous by now, if it ever does.
            let is_reported =
                link(&self.netlink, interface).await.is_ok_and(|link| link.is_none_or(|link| link.promiscuous));
            if !is_reported {
                self.readers.polled.insert(interface);
            }
            self.dirty = true;
        }
    }
}

impl Node {
    /// Makes all receivers segment: while no helper runs, nobody notices a reader.
    pub async fn segment(&mut self) {
        for netns in self.netns.values_mut() {
            let idle = mem::take(&mut netns.readers.idle);
            netns.segment(idle.into_values().collect()).await;
        }
    }

    /// When to poll for readers next.
    pub(super) fn poll_due_at(&self) -> Option<Instant> {
        let any_idle = self.netns.values().any(|netns| netns.readers.any_idle());
        any_idle.then_some(self.next_poll).flatten()
    }

    /// Polls for readers that the kernel does not report, if it is time.
    pub(super) async fn poll_readers(&mut self, now: Instant) {
        if self.next_poll.is_some_and(|next| next > now) {
            return;
        }
        self.next_poll = Some(now + POLL);
        let polls = Mutex::new(Vec::new());
        let jobs = self.netns.iter().filter(|(_, netns)| netns.readers.any_idle()).map(|(id, netns)| {
            let idle = netns.readers.idle.iter();
            let interfaces: Vec<(u32, &str)> = idle.map(|(index, idle)| (*index, idle.interface.as_str())).collect();
            (&*netns.namespace, (*id, interfaces))
        });
        let jobs: Vec<_> = jobs.collect();
        if jobs.is_empty() {
            return;
        }
        let polled =
            within_each(jobs, |(id, interfaces): (NamespaceId, Vec<(u32, &str)>)| match Polled::read(&interfaces) {
                Ok(poll) => polls.lock().expect("no thread panics while it holds the lock").push((id, poll)),
                Err(error) => debug!(%error, "cannot read packet sockets"),
            });
        if let Err(error) = polled {
            debug!(%error, "cannot poll for readers");
        }
        for (id, poll) in polls.into_inner().expect("no thread has panicked") {
            if let Some(netns) = self.netns.get_mut(&id) {
                netns.take_poll(poll).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Offloads;

    const INTERFACE: u32 = 5;
    const PEER: u32 = 6;

    /// A receiver whose peer has these offloads on.
    fn receiver(promiscuous: bool, on: &[&str]) -> Observed {
        let device = |index, part, peer| {
            let mark = ReceiverMark { part, tap: "tap".to_owned(), vni: 7, ipv6: false, raw: false, polled: false };
            Link {
                index,
                name: format!("device{index}"),
                group: crate::marks::GROUP,
                alias: Mark::Receiver(mark).alias(),
                kind: "veth".to_owned(),
                peer: Some(peer),
                ..Link::default()
            }
        };
        let interface = Link { promiscuous, ..device(INTERFACE, Part::Interface, PEER) };
        let on = on.iter().map(|name| (*name).to_owned()).collect();
        Observed {
            links: vec![interface, device(PEER, Part::Peer, INTERFACE)],
            offloads: vec![(PEER, Offloads { on, off: vec![] })],
            ..Observed::default()
        }
    }

    /// Observed at some seconds. Returns whether somebody reads it or has read it recently.
    fn is_recent(readers: &mut Readers, start: Instant, seconds: u64, observed: &Observed) -> bool {
        let now = start + Duration::from_secs(seconds);
        readers.observed(observed, seconds == 0, now);
        readers.recent(now).contains(&INTERFACE)
    }

    #[test]
    fn a_receiver_becomes_idle_a_minute_after_its_reader_was_gone() {
        let (mut readers, start) = (Readers::default(), Instant::now());
        assert!(!is_recent(&mut readers, start, 0, &receiver(false, &["tx-gso"])), "nobody has read it yet");
        assert!(is_recent(&mut readers, start, 10, &receiver(true, &[])));
        // Its reader stops. The next full reconciliation comes at once.
        assert!(is_recent(&mut readers, start, 69, &receiver(false, &[])));
        assert!(is_recent(&mut readers, start, 70, &receiver(false, &[])));
        assert!(is_recent(&mut readers, start, 128, &receiver(false, &[])));
        assert!(!is_recent(&mut readers, start, 130, &receiver(false, &[])));
    }

    #[test]
    fn a_receiver_that_an_earlier_helper_let_segment_stays_ready() {
        let (mut readers, start) = (Readers::default(), Instant::now());
        assert!(is_recent(&mut readers, start, 0, &receiver(false, &[])));
        assert!(is_recent(&mut readers, start, 1, &receiver(false, &[])));
        assert!(!is_recent(&mut readers, start, 61, &receiver(false, &[])));
    }

    #[test]
    fn only_a_promiscuous_interface_starts_to_segment_by_an_event() {
        let mut readers = Readers::default();
        readers.observed(&receiver(false, &["tx-gso"]), true, Instant::now());
        let event = |index, promiscuous| Event::Link { index, name: String::new(), promiscuous };
        assert!(readers.started(&[event(INTERFACE, false), event(PEER, true), Event::Action]).is_empty());
        let started = readers.started(&[event(INTERFACE, true), event(INTERFACE, true)]);
        assert_eq!(started.iter().map(|idle| idle.peer).collect::<Vec<_>>(), [PEER]);
        assert!(!readers.any_idle());
    }
}
