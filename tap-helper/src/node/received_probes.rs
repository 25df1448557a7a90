//! Whose probes arrive at the receivers of this node.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use podtap_model::{Receiver, ReceiverCounters, bounds::MAX_PODS_WITH_PROBES};
use tracing::warn;

use super::{Node, pace::Pace};
use crate::{
    bpf::{LastProbes, Monotonic, ReceiveMaps},
    marks::Cookie,
    names::receiver_hash,
    observe::Observed,
};

/// How long the probes of a pod count as arriving after the last one. Two of them may be lost, or its helper killed and restarted.
const TIMEOUT: Duration = Duration::from_millis(3500);
/// Likewise, for its full-size probes, of which there is one in two seconds: one of them may be lost.
const FULL_SIZE_TIMEOUT: Duration = Duration::from_millis(4200);
/// After that, it is forgotten, and what is sent meanwhile is not known to be lost.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Likewise, while there are many.
const FORGOTTEN_OF_MANY: Duration = Duration::from_secs(10);
const MANY: usize = 1024;
/// The interval of readings, at least and at most.
const INTERVALS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];

/// The probes that the receivers get.
#[derive(Default)]
pub(super) struct ReceivedProbes {
    /// By the hash of the receiver.
    receivers: BTreeMap<u64, ReceiverProbes>,
    pace: Pace,
}

/// The probes that one receiver gets.
struct ReceiverProbes {
    /// The ID of its program.
    program: u32,
    maps: ReceiveMaps,
    /// The pods whose probes arrive.
    pods: BTreeMap<String, Arrivals>,
    /// The frames that should have arrived by the last reading.
    expected: u64,
    /// The frames of them that did not.
    lost: u64,
}

/// When probes of a pod arrived.
#[derive(Clone, Copy)]
struct Arrivals {
    first: Monotonic,
    last: Monotonic,
    last_full_size: Monotonic,
}

impl Arrivals {
    /// How long its probes, and its full-size probes, count as arriving without another one.
    fn left(self, now: Monotonic) -> [Duration; 2] {
        [self.last.after(TIMEOUT).left(now), self.last_full_size.after(FULL_SIZE_TIMEOUT).left(now)]
    }
}

/// The programs of the receivers in a namespace, by the hash of the receiver.
pub(super) fn receive_programs(observed: &Observed) -> BTreeMap<u64, u32> {
    let programs = observed.filters.iter().filter(|filter| observed.receive_program(filter).is_some());
    programs.filter_map(|filter| Some((Cookie::of(filter)?.owner, filter.program?))).collect()
}

impl ReceiverProbes {
    fn open(program: u32, pods: BTreeMap<String, Arrivals>) -> Option<Self> {
        match ReceiveMaps::adopt(program) {
            Ok(maps) => Some(Self { program, maps, pods, expected: 0, lost: 0 }),
            Err(error) => {
                warn!(%error, "cannot read whose probes arrive");
                None
            }
        }
    }

    /// Reads whose probes arrive. Returns how long that stays so without another one.
    fn read(&mut self, now: Monotonic) -> Option<Duration> {
        let probes = match self.maps.probes() {
            Ok(probes) => probes,
            Err(error) => {
                warn!(%error, "cannot read whose probes arrive");
                Vec::new()
            }
        };
        self.count_lost(&probes);
        let forgotten = if probes.len() > MANY { FORGOTTEN_OF_MANY } else { FORGOTTEN };
        for probes in probes {
            if probes.last.after(forgotten) <= now
                && let Err(error) = self.maps.forget(&probes)
            {
                warn!(%error, "cannot forget a pod");
            }
            let LastProbes { pod, last, last_full_size, .. } = probes;
            let known = self.pods.entry(pod).or_insert(Arrivals { first: now, last, last_full_size: now });
            known.last = known.last.max(last);
            known.last_full_size = known.last_full_size.max(last_full_size.unwrap_or(known.first));
        }
        self.pods.retain(|_, pod| !pod.left(now)[0].is_zero());
        let changes = self.pods.values().flat_map(|pod| pod.left(now));
        changes.filter(|left| !left.is_zero()).min()
    }

    /// Counts the frames that are missing. What a probe says is compared one reading later: it may overtake frames. The frames that were
    /// sent since make the number too low for a while, never too high.
    fn count_lost(&mut self, probes: &[LastProbes]) {
        match self.maps.received().and_then(|received| Ok((received, self.maps.forgotten()?))) {
            Ok((received, forgotten)) => {
                self.lost = self.lost.max(self.expected.saturating_sub(received));
                self.expected = forgotten + probes.iter().map(|pod| pod.expected).sum::<u64>();
            }
            Err(error) => warn!(%error, "cannot count the frames that were lost"),
        }
    }

    fn counters(&self) -> Option<(u64, u64)> {
        Some((self.maps.received().ok()?, self.lost))
    }
}

impl ReceivedProbes {
    /// Reads what the programs have recorded that are not known yet. The next ones, if these are replaced, start without it.
    pub(super) fn take_over(&mut self, programs: &BTreeMap<u64, u32>) {
        for (receiver, program) in programs {
            if !self.receivers.contains_key(receiver)
                && let Some(mut probes) = ReceiverProbes::open(*program, BTreeMap::new())
            {
                probes.read(Monotonic::now());
                self.receivers.insert(*receiver, probes);
            }
        }
    }
}

impl Node {
    /// When to read next whose probes arrive; none without receivers.
    pub(super) fn received_probes_due_at(&self) -> Option<Instant> {
        let has_receivers = self.netns.values().any(|netns| !netns.receive_programs.is_empty());
        has_receivers.then(|| self.received_probes.pace.due_at())
    }

    /// Reads whose probes arrive, if that is due.
    pub(super) fn read_probes(&mut self, now: Instant) {
        if self.received_probes_due_at().is_none() || !self.received_probes.pace.is_due(now) {
            return;
        }
        let programs = self.netns.values().flat_map(|netns| &netns.receive_programs);
        let programs: BTreeMap<u64, u32> = programs.map(|(receiver, program)| (*receiver, *program)).collect();
        self.received_probes.receivers.retain(|receiver, _| programs.contains_key(receiver));
        let mut next = INTERVALS[1];
        for (receiver, program) in programs {
            let known = self.received_probes.receivers.remove(&receiver);
            let probes = match known {
                Some(probes) if probes.program == program => Some(probes),
                // Its program was replaced: that does not lose probes.
                known => ReceiverProbes::open(program, known.map(|known| known.pods).unwrap_or_default()),
            };
            let Some(mut probes) = probes else { continue };
            next = probes.read(Monotonic::now()).unwrap_or(next).min(next);
            self.received_probes.receivers.insert(receiver, probes);
        }
        self.received_probes.pace.wait_until(now + next.max(INTERVALS[0]));
    }

    /// What the receivers have counted.
    pub(super) fn receiver_counters(&self) -> Vec<ReceiverCounters> {
        let receivers = self.desired.iter().flat_map(|desired| &desired.receivers);
        let counters = receivers.filter_map(|receiver| {
            let probes = self.received_probes.receivers.get(&receiver_hash(receiver.vni.get()))?;
            let (frames, lost_frames) = probes.counters()?;
            let (tap_uid, vni) = (receiver.tap.uid.clone(), receiver.vni.get());
            Some(ReceiverCounters { tap_uid: tap_uid.to_string(), vni, frames, lost_frames })
        });
        counters.collect()
    }

    /// The pods whose probes a receiver gets, and those of them whose full-size probes it does not get.
    pub(super) fn pods_with_probes(&self, receiver: &Receiver) -> [Vec<String>; 2] {
        let probes = self.received_probes.receivers.get(&receiver_hash(receiver.vni.get()));
        let now = Monotonic::now();
        let pods = || probes.iter().flat_map(|probes| &probes.pods);
        // What reports have room for.
        let pods = || pods().take(MAX_PODS_WITH_PROBES);
        let without_full_size = pods().filter(|(_, pod)| pod.left(now)[1].is_zero());
        [pods().map(|(pod, _)| pod.clone()).collect(), without_full_size.map(|(pod, _)| pod.clone()).collect()]
    }
}
