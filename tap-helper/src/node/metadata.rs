//! Sending metadata besides mirrored frames, for taps that have receivers for it: which pod the frames are of, at first and then once a
//! minute, and how the node translates the pod's connections, as soon as conntrack reports them, and those that there are already, at first and
//! then every five minutes.
//!
//! A translation that finds no room is lost, and the flow keeps the addresses that its frames have: connections cost the pod nothing.

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

use super::{Node, probes::ProbeSource};
use crate::{
    bpf::Prober,
    namespace::{Namespace, within_each},
    netlink::{ExistingTranslations, Mac, Translations},
    resource::SenderKey,
    settings::frame_limit,
};

/// How often a receiver is told of a pod.
const INTERVAL: Duration = Duration::from_secs(60);
/// When it is tried again to tell of a pod whose device or program does not exist yet.
const RETRY: Duration = Duration::from_secs(1);
/// How long translations are collected before they are sent together: each time, a thread enters the pods' namespaces. The collector
/// waits longer for the end of a connection.
const COLLECTED: Duration = Duration::from_millis(20);
/// When it is tried again to subscribe to translations.
const RESUBSCRIBE: Duration = Duration::from_secs(30);
/// Most translations that are sent per [`COLLECTED`]: 10,000 connections per second.
const MOST: usize = 200;
/// How often the node's connections are read, for collectors that were started meanwhile. Of 100,000 connections, it takes a quarter of a
/// second of CPU time.
const REREAD: Duration = Duration::from_secs(300);
/// Reads per [`COLLECTED`]: some hundred connections, which take a millisecond or two.
const READS: usize = 5;

/// What is to be sent.
#[derive(Default)]
pub(super) struct MetadataSource {
    /// Open while some tap of the node wants it.
    translations: Option<Translations>,
    /// When it is to be opened again.
    resubscribe: Option<Instant>,
    /// The addresses of the pods of these taps.
    addresses: BTreeSet<IpAddr>,
    pending: VecDeque<Translation>,
    /// While the connections that there are already are read.
    existing: Option<ExistingTranslations>,
    /// When they are to be read again.
    reread: Option<Instant>,
    /// When the pending ones are sent. Until then, the others wait in the socket, and wake nothing.
    due: Option<Instant>,
    /// For each sender, when its pod is told of next, and whether it was before.
    schedule: BTreeMap<SenderKey, (Instant, bool)>,
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
        if !self.addresses.is_subset(&before) {
            self.read_soon(now);
        }
        self.subscribe(node, now);
    }

    /// Has the connections read that there are already. Pods are often tapped in batches.
    fn read_soon(&mut self, now: Instant) {
        let soon = now + RETRY;
        self.reread = Some(self.reread.map_or(soon, |moment| moment.min(soon)));
    }

    /// Begins to read the connections that there are already, if that is due.
    fn read_existing(&mut self, node: &Namespace, now: Instant) {
        if self.reread.is_none_or(|moment| moment > now) {
            return;
        }
        self.reread = Some(now + REREAD);
        // Without conntrack, the subscription says so.
        if self.translations.is_some() {
            let existing = ExistingTranslations::open(node);
            self.existing = existing.inspect_err(|error| warn!(%error, "translations that last are not sent")).ok();
            self.due.get_or_insert(now);
        }
    }

    /// Reads on. Returns what is of the taps' pods, for as many as there is room.
    fn existing(&mut self, room: usize) -> Vec<Translation> {
        let mut found = Vec::new();
        for _ in 0..READS {
            let Some(existing) = self.existing.as_mut().filter(|_| found.len() < room) else { break };
            match existing.next() {
                Ok(Some(translations)) => found.extend(translations.into_iter().filter(|one| self.is_of_pods(one))),
                Ok(None) => self.existing = None,
                Err(error) => {
                    warn!(%error, "not all translations that last are sent");
                    self.existing = None;
                }
            }
        }
        found
    }

    /// Whether a pod is the client, or the server behind a translated address. The node may have many others.
    fn is_of_pods(&self, translation: &Translation) -> bool {
        [translation.original.source, translation.reply.source].iter().any(|end| self.addresses.contains(end))
    }

    fn subscribe(&mut self, node: &Namespace, now: Instant) {
        if self.translations.is_some() || self.addresses.is_empty() {
            return;
        }
        match Translations::open(node) {
            Ok(translations) => (self.translations, self.resubscribe) = (Some(translations), None),
            Err(error) => {
                warn!(%error, "how the node translates connections is not sent");
                self.resubscribe = Some(now + RESUBSCRIBE);
            }
        }
    }

    pub(super) fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let translations = self.translations.as_mut().filter(|_| self.due.is_none());
        translations.map_or(Poll::Pending, |translations| translations.poll_changed(context))
    }

    /// Takes over those of the taps' pods.
    pub(super) fn take(&mut self, now: Instant) {
        let Some(translations) = &mut self.translations else { return };
        let Some(taken) = translations.take() else {
            warn!("the subscription to translations has failed");
            (self.translations, self.resubscribe) = (None, Some(now + RESUBSCRIBE));
            return;
        };
        let of_pods: Vec<_> = taken.into_iter().filter(|translation| self.is_of_pods(translation)).collect();
        self.pending.extend(of_pods);
        let too_many = self.pending.len().saturating_sub(MOST);
        if too_many > 0 {
            debug!(too_many, "translations are not sent");
            // The newest have the best chance to be of flows that have not been reported.
            self.pending.drain(..too_many);
        }
        self.due.get_or_insert(now + COLLECTED);
    }

    pub(super) fn due_at(&self) -> Option<Instant> {
        let times = [self.due, self.resubscribe, self.reread];
        self.schedule.values().map(|(next, _)| *next).chain(times.into_iter().flatten()).min()
    }

    /// The translations to send now.
    fn translations(&mut self, now: Instant) -> VecDeque<Translation> {
        if self.due.is_none_or(|due| due > now) {
            return VecDeque::new();
        }
        self.take(now);
        // Before those of new connections, which may have their tuples.
        let mut translations: VecDeque<_> = self.existing(MOST.saturating_sub(self.pending.len())).into();
        translations.append(&mut self.pending);
        self.due = self.existing.is_some().then_some(now + COLLECTED);
        translations
    }

    /// Those of the senders of whose pods receivers are to be told now. They are due again soon, unless they are [told](Self::told).
    fn due_of<'a>(&mut self, senders: impl Iterator<Item = &'a SenderKey>, now: Instant) -> BTreeSet<SenderKey> {
        let mut before = mem::take(&mut self.schedule);
        let mut due = BTreeSet::new();
        for key in senders {
            let (mut next, is_told) = before.remove(key).unwrap_or((now, false));
            if next <= now {
                due.insert(key.clone());
                next = now + RETRY;
            }
            self.schedule.insert(key.clone(), (next, is_told));
        }
        due
    }

    /// Receivers were told of the pod.
    fn told(&mut self, key: &SenderKey, now: Instant) {
        let before = self.schedule.insert(key.clone(), (now + INTERVAL, true));
        if before.is_none_or(|(_, was_told)| !was_told) {
            self.read_soon(now);
        }
    }
}

/// A translation has no direction, and may be of a connection that a filter does not select: then, none is sent.
fn sends_translations(sender: &DesiredSender) -> bool {
    sender.tap.options.filter.is_none()
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
        if metadata.resubscribe.is_some_and(|moment| moment <= now) {
            metadata.resubscribe = None;
            metadata.subscribe(&self.namespace, now);
        }
        metadata.read_existing(&self.namespace, now);
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
    let is_of_pod = |translation: &&Translation| {
        let ends = [translation.original.source, translation.reply.source];
        sends_translations(sender) && ends.iter().any(|end| pod.addresses.contains(end))
    };
    let translations = translations.iter().filter(is_of_pod).copied().map(Metadata::Translation);
    identity.flatten().into_iter().chain(translations.filter_map(frame)).collect()
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
