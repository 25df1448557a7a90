//! Sending probes: one per second through each sender device, a small one and one of the longest that the pod sends and the path
//! carries, in turn. They prove to the receivers that mirrored frames arrive.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use podtap_model::DesiredSender;
use tracing::{debug, warn};

use super::{Node, resources::Running};
use crate::{
    bpf::{ETHERNET_HEADER, Probe, Prober},
    marks::Mark,
    namespace::{Namespace, within_each},
    netlink::Mac,
    observe::Observed,
    resource::SenderKey,
    settings::frame_limit,
};

/// The interval of probes.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest probe: programs do not lengthen frames to more than 16 KiB (`BPF_SKB_MAX_LEN`, net/core/filter.c).
const LONGEST: u32 = 16_000;
/// The pause after the program could not be loaded.
const RETRY: Duration = Duration::from_secs(30);

/// What probes have to know of a sender's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProbeSource {
    pub(super) key: SenderKey,
    /// The sender device.
    pub(super) device: u32,
    /// The address of the tapped interface.
    pub(super) mac: Mac,
    /// The longest frame of the tapped interface, with its Ethernet header.
    pub(super) longest: u32,
}

impl ProbeSource {
    /// The senders with a device in a namespace.
    pub(super) fn all(observed: &Observed) -> Vec<Self> {
        let sender = |link| match Mark::of(link) {
            Some(Mark::Sender(mark)) => {
                let interface = observed.link(mark.interface_index)?;
                let (mac, longest) = (interface.mac, interface.mtu + ETHERNET_HEADER);
                let key = SenderKey { tap: mark.tap, pod: mark.pod };
                Some(Self { key, device: link.index, mac, longest })
            }
            _ => None,
        };
        observed.ours().filter_map(sender).collect()
    }
}

/// The programs that send probes, and when the next ones are due.
#[derive(Default)]
pub(super) struct Probes {
    /// For each set, by the ID of its map with the configuration; or when to try again to load one.
    probers: BTreeMap<u32, Result<Prober, Instant>>,
    /// For each sender that sends some, when the next one is due.
    schedule: BTreeMap<SenderKey, Instant>,
    /// Whether other senders may send some than in the schedule.
    pub(super) outdated: bool,
}

/// A probe to send.
struct Job<'a> {
    probe: Probe<'a>,
    prober: &'a Prober,
    classid: u32,
    device: u32,
}

impl Probes {
    /// The program of a sender's set, if it is loaded.
    pub(super) fn prober(&self, running: &Running) -> Option<&Prober> {
        self.probers.get(&running.configs)?.as_ref().ok()
    }

    /// Loads the programs of these senders, and forgets those of other ones.
    pub(super) fn load(&mut self, running: &[Running], now: Instant) {
        self.probers.retain(|configs, _| running.iter().any(|running| running.configs == *configs));
        for running in running {
            load(&mut self.probers, running, now);
        }
    }

    /// The senders whose probe is due.
    fn due<'a>(
        &mut self,
        active: BTreeMap<SenderKey, (&'a DesiredSender, Running)>,
        now: Instant,
    ) -> BTreeMap<SenderKey, (&'a DesiredSender, Running)> {
        self.outdated = false;
        self.schedule.retain(|key, _| active.contains_key(key));
        let mut due = BTreeMap::new();
        for (key, (sender, running)) in active {
            let next = self.schedule.entry(key.clone()).or_insert(now);
            if *next <= now {
                due.insert(key, (sender, running));
                *next = now + INTERVAL;
            }
        }
        due
    }
}

/// Loads the program for a set, unless it is loaded, or could not be just now.
fn load(probers: &mut BTreeMap<u32, Result<Prober, Instant>>, running: &Running, now: Instant) {
    let known = probers.get(&running.configs);
    if known.is_some_and(|known| known.as_ref().err().is_none_or(|retry| *retry > now)) {
        return;
    }
    let loaded = Prober::load(running.id).map_err(|error| {
        warn!(%error, "cannot load the program that sends probes");
        now + RETRY
    });
    probers.insert(running.configs, loaded);
}

impl Node {
    /// When the next probe is due; none without senders that send some.
    pub(super) fn probes_due_at(&self) -> Option<Instant> {
        self.probes.schedule.values().min().copied()
    }

    /// Sends the probes that are due. A sender that is new here sends its first one at once.
    pub(super) fn send_probes(&mut self, now: Instant) {
        let is_due = self.probes_due_at().is_some_and(|moment| moment <= now);
        if !is_due && !self.probes.outdated {
            return;
        }
        self.load_probers(now);
        let due = self.probes.due(self.resources.active_senders(self.desired.as_ref(), |tap| tap.probe), now);
        let jobs = self.jobs(&due, |source, sender, running| self.probe(source, sender, running));
        let sent = within_each(jobs, |jobs| {
            for Job { probe, prober, classid, device } in jobs {
                match prober.send(&probe, classid, device) {
                    Ok(true) => {}
                    Ok(false) => debug!(pod = probe.pod, full_size = probe.full_size, "the device took no probe"),
                    Err(error) => debug!(%error, pod = probe.pod, "no probe"),
                }
            }
        });
        if let Err(error) = sent {
            warn!(%error, "cannot send probes");
        }
    }

    /// What there is to send through the devices of these senders, by the namespaces in which they are.
    pub(super) fn jobs<'a, Job>(
        &'a self,
        senders: &BTreeMap<SenderKey, (&DesiredSender, Running)>,
        mut job: impl FnMut(&'a ProbeSource, &DesiredSender, &Running) -> Option<Job>,
    ) -> Vec<(&'a Namespace, Vec<Job>)> {
        let of_netns = self.netns.values().map(|netns| {
            let jobs = netns.probe_sources.iter().filter_map(|source| {
                let (sender, running) = senders.get(&source.key)?;
                job(source, sender, running)
            });
            (&*netns.namespace, jobs.collect::<Vec<_>>())
        });
        of_netns.filter(|(_, jobs)| !jobs.is_empty()).collect()
    }

    /// Loads the programs that send probes and metadata.
    pub(super) fn load_probers(&mut self, now: Instant) {
        let active = self.resources.active_senders(self.desired.as_ref(), |tap| tap.probe || tap.metadata);
        let running: Vec<Running> = active.into_values().map(|(_, running)| running).collect();
        self.probes.load(&running, now);
    }

    fn probe<'a>(&'a self, source: &'a ProbeSource, sender: &DesiredSender, running: &Running) -> Option<Job<'a>> {
        let prober = self.probes.prober(running)?;
        let counters = prober.counters(running.classid).ok()?;
        let sequence = counters.probes.frames;
        // The first one is small.
        let is_full_size = !sequence.is_multiple_of(2);
        let limit = frame_limit(sender, self.paths.of(sender));
        let probe = Probe {
            tap: &source.key.tap,
            pod: &source.key.pod,
            source: source.mac,
            ether_type: sender.probe_ether_type,
            full_size: is_full_size.then(|| limit.unwrap_or(LONGEST).min(source.longest).min(LONGEST)),
            sequence,
            sent: counters.sent,
        };
        Some(Job { probe, prober, classid: running.classid, device: source.device })
    }
}
