//! Receivers segment only while they have readers, since that costs as much as mirroring does.
//!
//! When a reader starts, the receiver segments at once, without observing or planning first. After a reader that the kernel does not report,
//! the receiver segments always, so that the next such reader sees all frames as on the wire.

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
    readers::{Poll, is_read},
};

/// The pause between polls for readers.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a receiver goes on segmenting after its last reader, so that the next one finds it ready.
const IDLE_AFTER: Duration = FULL_RECONCILE;

/// The readers of a namespace's receivers.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// Whether anything was observed yet.
    observed: bool,
    /// Interfaces that had a reader when they were last observed, by their ifindex.
    read: BTreeSet<u32>,
    /// When an interface was last known to have a reader.
    last: BTreeMap<u32, Instant>,
    /// The receivers that do not segment always, by the ifindex of the interface.
    watched: BTreeMap<u32, Watched>,
    /// Interfaces with readers that the kernel does not report.
    unreported: BTreeSet<u32>,
    last_poll: Poll,
}

/// A receiver that segments only for readers.
#[derive(Clone, Debug)]
struct Watched {
    interface: String,
    peer: u32,
    /// Offloads of the peer that have to be off for it to segment; none while it does.
    offloads: Vec<String>,
}

impl Readers {
    /// Takes what was observed. To be called before a plan.
    pub(super) fn observed(&mut self, observed: &Observed, now: Instant) {
        let exists = |interface: &u32| observed.link(*interface).is_some();
        self.last.retain(|interface, _| exists(interface));
        self.unreported.retain(exists);
        self.watched.clear();
        let mut read = BTreeSet::new();
        for (peer, interface, always) in pairs(observed) {
            let offloads = observed.offloads(peer.index).map(|offloads| offloads.on.clone()).unwrap_or_default();
            // A previous helper may have made it segment, for a reader or because it ended.
            let was_ready = !self.observed && offloads.is_empty();
            if was_ready || is_read(interface, observed) {
                read.insert(interface.index);
            }
            if !always && !self.unreported.contains(&interface.index) {
                let watched = Watched { interface: interface.name.clone(), peer: peer.index, offloads };
                self.watched.insert(interface.index, watched);
            }
        }
        // Those that have stopped did so since the last observation.
        let read_since = self.read.union(&read).filter(|interface| exists(interface));
        self.last.extend(read_since.map(|interface| (*interface, now)));
        (self.read, self.observed) = (read, true);
    }

    /// The interfaces that have a reader or recently had one.
    pub(super) fn recent(&self, now: Instant) -> BTreeSet<u32> {
        let recent = self.last.iter().filter(|(_, last)| now.saturating_duration_since(**last) < IDLE_AFTER);
        recent.map(|(interface, _)| *interface).collect()
    }

    /// The interfaces with readers that the kernel does not report.
    pub(super) fn unreported(&self) -> BTreeSet<u32> {
        self.unreported.clone()
    }

    /// Whether a reader would have to wait for an observation if its event were not taken.
    pub(super) fn any_idle(&self) -> bool {
        self.watched.values().any(|watched| !watched.offloads.is_empty())
    }

    /// The receiver of an interface, if it has to segment and does not.
    fn start(&mut self, interface: u32) -> Option<Watched> {
        let watched = self.watched.get_mut(&interface).filter(|watched| !watched.offloads.is_empty())?;
        let offloads = mem::take(&mut watched.offloads);
        Some(Watched { offloads, ..watched.clone() })
    }

    /// The receivers that have to segment after events.
    fn started(&mut self, events: &[Event]) -> Vec<Watched> {
        let interface = |event: &Event| match event {
            Event::Link { index, promiscuous: true, .. } => Some(*index),
            _ => None,
        };
        events.iter().filter_map(interface).filter_map(|interface| self.start(interface)).collect()
    }
}

/// Peer and interface of each receiver that shows frames as on the wire, and whether it segments always.
fn pairs(observed: &Observed) -> impl Iterator<Item = (&Link, &Link, bool)> {
    observed.ours().filter_map(|peer| match Mark::of(peer)? {
        Mark::Receiver(ReceiverMark { part: Part::Peer, raw: false, unreported_reader, .. }) => {
            Some((peer, observed.link(peer.peer?)?, unreported_reader))
        }
        _ => None,
    })
}

impl Netns {
    /// Makes receivers segment whose readers have just started.
    pub(super) async fn segment_for_readers(&mut self, events: &[Event]) {
        let started = self.readers.started(events);
        self.segment(started).await;
    }

    async fn segment(&self, receivers: Vec<Watched>) {
        for Watched { interface, peer, offloads } in receivers {
            match turn(&self.netlink, peer, &offloads, false).await {
                Ok(()) => info!(interface, "segments for a reader"),
                // The next reconciliation turns them off as well.
                Err(error) => debug!(interface, %error, "cannot segment yet"),
            }
        }
    }

    /// Makes the receivers segment for which a poll has found readers.
    async fn take_poll(&mut self, poll: Poll) {
        let interfaces: Vec<u32> = self.readers.watched.keys().copied().collect();
        for interface in interfaces {
            // After the poll: a packet socket that is older is promiscuous by now, if it ever will be.
            let Ok(Some(link)) = link(&self.netlink, interface).await else { continue };
            let is_unreported = link.xdp || !link.promiscuous && poll.reads(interface, &self.readers.last_poll);
            if is_unreported && self.readers.unreported.insert(interface) {
                self.dirty = true;
            }
            if is_unreported || link.promiscuous {
                let started = self.readers.start(interface);
                self.segment(started.into_iter().collect()).await;
            }
        }
        self.readers.last_poll = poll;
    }
}

impl Node {
    /// Makes all receivers segment: while no helper runs, nothing reacts to a reader.
    pub async fn segment_all(&mut self) {
        for netns in self.netns.values_mut() {
            let mut watched = mem::take(&mut netns.readers.watched);
            watched.retain(|_, watched| !watched.offloads.is_empty());
            netns.segment(watched.into_values().collect()).await;
        }
    }

    /// When to poll for readers next.
    pub(super) fn poll_due_at(&self) -> Option<Instant> {
        let any = self.netns.values().any(|netns| !netns.readers.watched.is_empty());
        any.then_some(self.next_poll).flatten()
    }

    /// Polls for readers, if it is time.
    pub(super) async fn poll_readers(&mut self, now: Instant) {
        if self.next_poll.is_some_and(|next| next > now) {
            return;
        }
        let polls = Mutex::new(Vec::new());
        let watched = self.netns.iter().filter(|(_, netns)| !netns.readers.watched.is_empty());
        let jobs = watched.map(|(id, netns)| {
            let watched = netns.readers.watched.iter();
            let interfaces: Vec<(u32, &str)> =
                watched.map(|(index, watched)| (*index, watched.interface.as_str())).collect();
            (&*netns.namespace, (*id, interfaces))
        });
        let jobs: Vec<_> = jobs.collect();
        if !jobs.is_empty() {
            let polled =
                within_each(jobs, |(id, interfaces): (NamespaceId, Vec<(u32, &str)>)| match Poll::read(&interfaces) {
                    Ok(poll) => polls.lock().expect("no thread panics while it holds the lock").push((id, poll)),
                    Err(error) => debug!(%error, "cannot read packet sockets"),
                });
            if let Err(error) = polled {
                debug!(%error, "cannot poll for readers");
            }
        }
        for (id, poll) in polls.into_inner().expect("no thread has panicked") {
            if let Some(netns) = self.netns.get_mut(&id) {
                netns.take_poll(poll).await;
            }
        }
        // A pause between two polls, however long they and what precedes them take.
        self.next_poll = Some(Instant::now() + PAUSE);
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
            let mark =
                ReceiverMark { part, tap: "tap".to_owned(), vni: 7, ipv6: false, raw: false, unreported_reader: false };
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

    /// Observes at a second. Returns whether the interface has a reader or recently had one.
    fn is_recent(readers: &mut Readers, start: Instant, seconds: u64, observed: &Observed) -> bool {
        let now = start + Duration::from_secs(seconds);
        readers.observed(observed, now);
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
        readers.observed(&receiver(false, &["tx-gso"]), Instant::now());
        let event = |index, promiscuous| Event::Link { index, name: String::new(), promiscuous };
        assert!(readers.started(&[event(INTERFACE, false), event(PEER, true), Event::Action]).is_empty());
        let started = readers.started(&[event(INTERFACE, true), event(INTERFACE, true)]);
        assert_eq!(started.iter().map(|idle| idle.peer).collect::<Vec<_>>(), [PEER]);
        assert!(!readers.any_idle());
    }
}
