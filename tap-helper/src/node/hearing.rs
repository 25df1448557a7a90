//! Whose probes arrive at the receivers of this node.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use podtap_model::{Receiver, ReceiverCounters, bounds::MAX_HEARD_PODS};
use tracing::warn;

use super::{Node, pace::Pace};
use crate::{
    bpf::{LastProbes, Monotonic, ReceiveMaps},
    marks::Cookie,
    names::receiver_hash,
    observe::Observed,
};

/// How long a pod counts as heard after a probe of it. Two of them may be lost, or its helper killed and restarted.
const SILENCE: Duration = Duration::from_millis(3500);
/// Likewise, for its full-size probes, of which there is one in two seconds: one of them may be lost.
const FULL_SIZE_SILENCE: Duration = Duration::from_millis(4200);
/// After that, it is forgotten, and what is sent meanwhile is not known to be lost.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Likewise, while there are many.
const FORGOTTEN_OF_MANY: Duration = Duration::from_secs(10);
const MANY: usize = 1024;
/// The interval of readings, at least and at most.
const INTERVALS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];

/// What is heard at the receivers.
#[derive(Default)]
pub(super) struct Hearing {
    /// By the hash of the receiver.
    receivers: BTreeMap<u64, Heard>,
    pace: Pace,
}

/// What is heard at one receiver.
struct Heard {
    /// The ID of its program.
    program: u32,
    maps: ReceiveMaps,
    /// The pods that are heard.
    pods: BTreeMap<String, HeardPod>,
    /// The frames that should have arrived by the last reading.
    expected: u64,
    /// The frames of them that did not.
    lost: u64,
}

/// When probes of a pod arrived.
#[derive(Clone, Copy)]
struct HeardPod {
    first: Monotonic,
    last: Monotonic,
    last_full_size: Monotonic,
}

impl HeardPod {
    /// How long it counts as heard, and as heard with full-size probes.
    fn left(self, now: Monotonic) -> [Duration; 2] {
        [self.last.after(SILENCE).left(now), self.last_full_size.after(FULL_SIZE_SILENCE).left(now)]
    }
}

/// The programs of the receivers in a namespace, by the hash of the receiver.
pub(super) fn receive_programs(observed: &Observed) -> BTreeMap<u64, u32> {
    let programs = observed.filters.iter().filter(|filter| observed.receive_program(filter).is_some());
    programs.filter_map(|filter| Some((Cookie::of(filter)?.owner, filter.program?))).collect()
}

impl Heard {
    fn open(program: u32, pods: BTreeMap<String, HeardPod>) -> Option<Self> {
        match ReceiveMaps::adopt(program) {
            Ok(maps) => Some(Self { program, maps, pods, expected: 0, lost: 0 }),
            Err(error) => {
                warn!(%error, "cannot read whose probes arrive");
                None
            }
        }
    }

    /// Reads who is heard. Returns how long that stays so without another probe.
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
            let heard = self.pods.entry(pod).or_insert(HeardPod { first: now, last, last_full_size: now });
            heard.last = heard.last.max(last);
            heard.last_full_size = heard.last_full_size.max(last_full_size.unwrap_or(heard.first));
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

impl Node {
    /// When to read next who is heard; none without receivers.
    pub(super) fn hearing_due_at(&self) -> Option<Instant> {
        let has_receivers = self.netns.values().any(|netns| !netns.receive_programs.is_empty());
        has_receivers.then(|| self.hearing.pace.due_at())
    }

    /// Reads who is heard, if that is due.
    pub(super) fn hear(&mut self, now: Instant) {
        if self.hearing_due_at().is_none() || !self.hearing.pace.is_due(now) {
            return;
        }
        let programs = self.netns.values().flat_map(|netns| &netns.receive_programs);
        let programs: BTreeMap<u64, u32> = programs.map(|(receiver, program)| (*receiver, *program)).collect();
        self.hearing.receivers.retain(|receiver, _| programs.contains_key(receiver));
        let mut next = INTERVALS[1];
        for (receiver, program) in programs {
            let known = self.hearing.receivers.remove(&receiver);
            let heard = match known {
                Some(heard) if heard.program == program => Some(heard),
                // Its program was replaced: who was heard still is.
                known => Heard::open(program, known.map(|heard| heard.pods).unwrap_or_default()),
            };
            let Some(mut heard) = heard else { continue };
            next = heard.read(Monotonic::now()).unwrap_or(next).min(next);
            self.hearing.receivers.insert(receiver, heard);
        }
        self.hearing.pace.wait_until(now + next.max(INTERVALS[0]));
    }

    /// What the receivers have counted.
    pub(super) fn receiver_counters(&self) -> Vec<ReceiverCounters> {
        let receivers = self.desired.iter().flat_map(|desired| &desired.receivers);
        let counters = receivers.filter_map(|receiver| {
            let heard = self.hearing.receivers.get(&receiver_hash(receiver.vni.get()))?;
            let (frames, lost_frames) = heard.counters()?;
            let (tap_uid, vni) = (receiver.tap.uid.clone(), receiver.vni.get());
            Some(ReceiverCounters { tap_uid: tap_uid.to_string(), vni, frames, lost_frames })
        });
        counters.collect()
    }

    /// The pods that a receiver hears, and those of them whose small probes only.
    pub(super) fn heard_pods(&self, receiver: &Receiver) -> [Vec<String>; 2] {
        let heard = self.hearing.receivers.get(&receiver_hash(receiver.vni.get()));
        let now = Monotonic::now();
        let pods = || heard.iter().flat_map(|heard| &heard.pods);
        // What reports have room for: more than a tap has.
        let pods = || pods().take(MAX_HEARD_PODS);
        let small_only = pods().filter(|(_, pod)| pod.left(now)[1].is_zero());
        [pods().map(|(pod, _)| pod.clone()).collect(), small_only.map(|(pod, _)| pod.clone()).collect()]
    }
}
