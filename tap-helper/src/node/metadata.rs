//! Sending metadata besides mirrored frames, for taps that have receivers for it: which pod the frames are of, more and more seldom until
//! it is once a minute, and how the node translates the pod's connections, as soon as conntrack reports them. Existing ones are sent at first and then
//! every five minutes.
//!
//! A translation that finds no room is lost, and the flow keeps the addresses that its frames have: connections cost the pod nothing.

mod conntrack;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    net::IpAddr,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use podtap_model::{
    DesiredSender, PodDetails,
    metadata::{Metadata, MetadataFrame, PodMetadata, Translation},
};
use tracing::{debug, warn};

use self::conntrack::Conntrack;
use super::{Node, probes::ProbeSource};
use crate::{
    bpf::Prober,
    namespace::{Namespace, within_each},
    netlink::Mac,
    resource::SenderKey,
    settings::frame_limit,
};

/// The pause after a receiver was told of a pod for the first time, which doubles with each time: a program that captures from it may start
/// a little later than the tap.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);
/// How often a receiver is told of a pod at least.
const INTERVAL: Duration = Duration::from_secs(60);
/// When it is tried again to tell of a pod whose device or program does not exist yet.
const RETRY: Duration = Duration::from_secs(1);
/// How long translations are collected before they are sent together: each time, a thread enters the pods' namespaces. The collector
/// waits longer for the end of a connection.
const COLLECTED: Duration = Duration::from_millis(20);
/// When it is tried again to subscribe to translations.
const REOPEN: Duration = Duration::from_secs(30);
/// Most translations that are sent per [`COLLECTED`]: 10,000 connections per second.
const MOST: usize = 200;

/// What is to be sent.
#[derive(Default)]
pub(super) struct MetadataSource {
    /// Open while some tap of the node wants translations.
    conntrack: Option<Conntrack>,
    /// When it is to be opened again.
    reopen: Option<Instant>,
    /// The addresses of the pods of these taps.
    addresses: BTreeSet<IpAddr>,
    pending: VecDeque<Translation>,
    /// When the pending ones are sent. Until then, the others wait in the socket, and wake nothing.
    due: Option<Instant>,
    schedule: BTreeMap<SenderKey, Schedule>,
}

/// When receivers are told of a sender's pod.
struct Schedule {
    next: Instant,
    /// How often they were.
    told: u32,
}

impl MetadataSource {
    /// Subscribes to translations of the node if some tap wants them.
    pub(super) fn set<'a>(&mut self, senders: impl Iterator<Item = &'a DesiredSender>, node: &Namespace, now: Instant) {
        let senders: Vec<_> = senders.filter(|sender| sender.tap.metadata).collect();
        if senders.is_empty() {
            *self = Self::default();
            return;
        }
        let with_translations = senders.into_iter().filter(|sender| sends_translations(sender));
        let addresses = with_translations.flat_map(|sender| &sender.pod.addresses).copied().collect();
        let before = mem::replace(&mut self.addresses, addresses);
        if self.addresses.is_empty() {
            (self.conntrack, self.reopen, self.due) = (None, None, None);
            self.pending.clear();
        } else if self.conntrack.is_none() {
            self.open(node, now);
        } else if !self.addresses.is_subset(&before) {
            self.read_soon(now);
        }
    }

    fn open(&mut self, node: &Namespace, now: Instant) {
        match Conntrack::open(node, now) {
            Ok(conntrack) => (self.conntrack, self.reopen) = (Some(conntrack), None),
            Err(error) => {
                warn!(%error, "how the node translates connections is not sent");
                self.reopen = Some(now + REOPEN);
            }
        }
    }

    fn read_soon(&mut self, now: Instant) {
        self.conntrack.iter_mut().for_each(|conntrack| conntrack.read_soon(now));
    }

    pub(super) fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let conntrack = self.conntrack.as_mut().filter(|_| self.due.is_none());
        conntrack.map_or(Poll::Pending, |conntrack| conntrack.poll_changed(context))
    }

    /// Takes over those of the taps' pods.
    pub(super) fn take(&mut self, now: Instant) {
        let Some(conntrack) = &mut self.conntrack else { return };
        let Some(taken) = conntrack.take() else {
            warn!("the subscription to translations has failed");
            (self.conntrack, self.reopen) = (None, Some(now + REOPEN));
            return;
        };
        self.pending.extend(
            taken.into_iter().filter(|translation| is_of(translation, |address| self.addresses.contains(address))),
        );
        let too_many = self.pending.len().saturating_sub(MOST);
        if too_many > 0 {
            debug!(too_many, "translations are not sent");
            // The newest have the best chance to be of flows that have not been reported.
            self.pending.drain(..too_many);
        }
        self.due.get_or_insert(now + COLLECTED);
    }

    pub(super) fn due_at(&self) -> Option<Instant> {
        let reading = self.conntrack.as_ref().and_then(Conntrack::begins_at);
        let times = [self.due, self.reopen, reading];
        self.schedule.values().map(|schedule| schedule.next).chain(times.into_iter().flatten()).min()
    }

    /// Opens and reads what is due.
    fn read(&mut self, node: &Namespace, now: Instant) {
        if self.reopen.is_some_and(|moment| moment <= now) {
            self.reopen = None;
            self.open(node, now);
        }
        if let Some(conntrack) = &mut self.conntrack {
            conntrack.begin(node, now);
            if conntrack.is_reading() {
                self.due.get_or_insert(now);
            }
        }
    }

    /// The translations to send now.
    fn translations(&mut self, now: Instant) -> VecDeque<Translation> {
        if self.due.is_none_or(|due| due > now) {
            return VecDeque::new();
        }
        self.take(now);
        self.due = None;
        let mut translations = VecDeque::new();
        if let Some(conntrack) = &mut self.conntrack {
            let room = MOST.saturating_sub(self.pending.len());
            // They come first: a new connection may have the tuple of one that was read before.
            translations = conntrack
                .read(room, |translation| is_of(translation, |address| self.addresses.contains(address)), now)
                .into();
            self.due = conntrack.is_reading().then_some(now + COLLECTED);
        }
        translations.append(&mut self.pending);
        translations
    }

    /// Those of the senders of whose pods receivers are to be told now. They are due again soon, unless they are [told](Self::told).
    fn due_of<'a>(&mut self, senders: impl Iterator<Item = &'a SenderKey>, now: Instant) -> BTreeSet<SenderKey> {
        let mut before = mem::take(&mut self.schedule);
        let mut due = BTreeSet::new();
        for key in senders {
            let mut schedule = before.remove(key).unwrap_or(Schedule { next: now, told: 0 });
            if schedule.next <= now {
                due.insert(key.clone());
                schedule.next = now + RETRY;
            }
            self.schedule.insert(key.clone(), schedule);
        }
        due
    }

    /// Receivers were told of the pod.
    fn told(&mut self, key: &SenderKey, now: Instant) {
        let before = self.schedule.get(key).map_or(0, |schedule| schedule.told);
        let pause = FIRST_INTERVAL.saturating_mul(1 << before.min(16)).min(INTERVAL);
        self.schedule.insert(key.clone(), Schedule { next: now + pause, told: before + 1 });
        if before == 0 {
            self.read_soon(now);
        }
    }
}

/// A translation has no direction, and may be of a connection that a filter does not select: then, none is sent.
fn sends_translations(sender: &DesiredSender) -> bool {
    sender.tap.options.filter.is_none()
}

/// Whether a known address is the client's, or the server's behind a translated one. The node has connections of many others.
fn is_of(translation: &Translation, is_known: impl Fn(&IpAddr) -> bool) -> bool {
    [translation.original.source, translation.reply.source].iter().any(is_known)
}

/// Frames to send through a device.
struct Job<'a> {
    frames: Vec<Vec<u8>>,
    prober: &'a Prober,
    classid: u32,
    device: u32,
}

impl Node {
    /// Sends what is due. With `is_outdated`, other senders than before may send some.
    pub(super) fn send_metadata(&mut self, now: Instant, is_outdated: bool) {
        if self.metadata.due_at().is_none_or(|due| due > now) && !is_outdated {
            return;
        }
        self.load_probers(now);
        let active = self.resources.active_senders(self.desired.as_ref(), |tap| tap.metadata);
        let mut metadata = mem::take(&mut self.metadata);
        metadata.read(&self.namespace, now);
        let due = metadata.due_of(active.keys(), now);
        let translations = metadata.translations(now);
        let jobs = self.jobs(&active, |source, sender, running| {
            let prober = self.probes.prober(running)?;
            let is_due = due.contains(&source.key);
            if is_due {
                metadata.told(&source.key, now);
            }
            let limit = frame_limit(sender, self.paths.of(sender));
            let frames = frames(source, sender, is_due, &translations, limit);
            (!frames.is_empty()).then_some(Job { frames, prober, classid: running.classid, device: source.device })
        });
        if !jobs.is_empty() {
            let sent = within_each(jobs, |jobs| {
                for Job { frames, prober, classid, device } in jobs {
                    for frame in frames {
                        match prober.send_metadata(&frame, classid, device) {
                            Ok(true) => {}
                            Ok(false) => debug!(device, "the device took no metadata"),
                            Err(error) => debug!(%error, device, "no metadata"),
                        }
                    }
                }
            });
            if let Err(error) = sent {
                warn!(%error, "cannot send metadata");
            }
        }
        self.metadata = metadata;
    }
}

/// `limit`: bytes of a frame.
fn frames(
    source: &ProbeSource,
    sender: &DesiredSender,
    is_due: bool,
    translations: &VecDeque<Translation>,
    limit: Option<u32>,
) -> Vec<Vec<u8>> {
    let pod = &sender.pod;
    let frame = |metadata| {
        let frame = MetadataFrame { tap: sender.tap.uid.clone(), pod: pod.uid.clone(), metadata };
        let frame = frame.encode(source.mac, sender.probe_ether_type.get())?;
        // As with probes, the path has to carry it.
        limit.is_none_or(|limit| frame.len() <= limit as usize).then_some(frame)
    };
    let identity = |details: PodDetails| {
        frame(Metadata::Pod(PodMetadata {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            addresses: pod.addresses.iter().copied().collect(),
            mac: text(source.mac),
            tap: sender.tap.reference().to_string(),
            details,
        }))
    };
    let identity = is_due.then(|| {
        let details = PodDetails::clone(&sender.details);
        // With the longest names, not everything fits.
        let without_labels = PodDetails { labels: BTreeMap::new(), ..details.clone() };
        [details, without_labels, PodDetails::default()].into_iter().find_map(identity)
    });
    let of_pod =
        translations.iter().filter(|translation| is_of(translation, |address| pod.addresses.contains(address)));
    let translations = of_pod.filter(|_| sends_translations(sender)).copied().map(Metadata::Translation);
    identity.flatten().into_iter().chain(translations.filter_map(frame)).collect()
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
