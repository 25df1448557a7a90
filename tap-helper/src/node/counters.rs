//! The counters of a node's senders and receivers.
//!
//! Programs decide how a frame is processed, and count each frame once. What happens to the mirrored frame is counted by the
//! action that mirrors it (`tcf_mirred_act` of the kernel's `act_mirred.c`): every frame that reaches it is in its packets, and
//! also in its overlimits if it could not be cloned, or the sender device did not take it. The latter includes a mirrored frame
//! that the program on that device drops because it cannot truncate it: `sch_handle_egress` turns that into `NET_XMIT_DROP`. So `failed`
//! is what the actions report, which includes what the programs count as failed; both are part of `mirrored`. What the VXLAN device drops
//! afterwards, for example because there is no route, is not a failure of the action.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Instant,
};

use podtap_model::{Count, Counters, DirectionCounters, SenderCounters};
use tracing::warn;

use super::{Node, pace::Pace, sources};
use crate::{
    bpf::{self, BpfError, SetCounters},
    marks::{Cookie, Mark, SenderMark},
    names::sender_hash,
    namespace::NamespaceId,
    netlink::{Connection, Filter, Hook, Link, NetlinkError, filters, links},
    observe::{NetnsKind, unless_gone},
    resource::SenderKey,
};

/// The requests for counters that are not answered yet. The namespaces are read one by one, so that nothing else has to wait for longer
/// than one of them takes.
#[derive(Default)]
pub(super) struct CounterRequests {
    /// The newest request that waits until the current one is answered.
    waiting: Option<u64>,
    current: Option<Reading>,
    /// When the next namespace may be read.
    pace: Pace,
}

/// The answer to a request, and the namespaces that it still lacks.
struct Reading {
    answer: Counters,
    left: Vec<NamespaceId>,
    sets: Sets,
}

/// The counters of program sets, by the ID of a classifier.
#[derive(Default)]
struct Sets(BTreeMap<u32, SetCounters>);

impl Sets {
    /// Most that are held at the same time: each takes a descriptor.
    const MOST: usize = 64;

    fn of(&mut self, program: u32) -> Result<&SetCounters, BpfError> {
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        Ok(match self.0.entry(program) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(SetCounters::adopt(program)?),
        })
    }
}

impl CounterRequests {
    /// When the next namespace is to be read.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let is_requested = self.waiting.is_some() || self.current.is_some();
        is_requested.then(|| self.pace.due_at())
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due_at().is_some() && self.pace.is_due(now)
    }
}

impl Node {
    /// Takes a request for the counters of all senders in the known namespaces. Of those that wait, only the newest is answered.
    pub fn request_counters(&mut self, request: u64) {
        self.counter_requests.waiting = Some(request);
    }

    /// Reads the counters of one namespace, if that is due. Returns the answer to the current request when it is complete; senders whose
    /// counters cannot be read are missing.
    pub async fn read_counters(&mut self, now: Instant) -> Option<Counters> {
        // Not before the first report of an update that came with the request.
        let is_known = self.desired.is_none() || self.sweep.is_complete();
        if !is_known || !self.counter_requests.is_due(now) {
            return None;
        }
        if let (None, Some(request)) = (&self.counter_requests.current, self.counter_requests.waiting.take()) {
            let pods = self.netns.iter().filter(|(_, netns)| netns.kind == NetnsKind::Pod);
            let answer = Counters { request, ..Counters::default() };
            self.counter_requests.current =
                Some(Reading { answer, left: pods.map(|(id, _)| *id).collect(), sets: Sets::default() });
        }
        let reading = self.counter_requests.current.as_mut()?;
        if let Some(id) = reading.left.pop()
            && let Some(netns) = self.netns.get(&id)
        {
            let start = Instant::now();
            match read(&netns.netlink, &mut reading.sets).await {
                Ok(found) => reading.answer.senders.extend(found),
                Err(error) => warn!(pod = self.netns_name(id), %error, "cannot read counters"),
            }
            self.counter_requests.pace.pause(start.elapsed());
        }
        let reading = self.counter_requests.current.take_if(|reading| reading.left.is_empty())?;
        let mut answer = reading.answer;
        answer.senders.sort_by(|one, other| (&one.tap_uid, &one.pod_uid).cmp(&(&other.tap_uid, &other.pod_uid)));
        answer.receivers = self.receiver_counters();
        answer.rejected = sources::dropped(&self.namespace).unwrap_or_else(|error| {
            warn!(%error, "cannot read how many packets the receivers rejected");
            None
        });
        Some(answer)
    }
}

/// Reads the counters of the senders in one namespace.
async fn read(netlink: &Connection, sets: &mut Sets) -> Result<Vec<SenderCounters>, NetlinkError> {
    let _shared = netlink.share_allowance();
    let links = links(netlink).await?;
    let mark = |link| match Mark::of(link) {
        Some(Mark::Sender(mark)) => Some((link, mark)),
        _ => None,
    };
    let senders: Vec<(&Link, SenderMark)> = links.iter().filter_map(mark).collect();
    let interfaces: BTreeSet<u32> = senders.iter().map(|(_, mark)| mark.interface_index).collect();
    let mut all = Vec::new();
    for interface in interfaces {
        for hook in [Hook::Ingress, Hook::Egress] {
            all.extend(unless_gone(filters(netlink, interface, hook).await)?);
        }
    }
    Ok(senders.into_iter().filter_map(|(link, mark)| of_sender(link, mark, &all, sets)).collect())
}

/// The counters of one sender; none if those of its programs cannot be read.
fn of_sender(link: &Link, mark: SenderMark, filters: &[Filter], sets: &mut Sets) -> Option<SenderCounters> {
    let owner = sender_hash(&SenderKey { tap: mark.tap.clone(), pod: mark.pod.clone() });
    let filter = |hook: Hook| {
        filters.iter().find(|filter| {
            let mirrors = filter.mirror.as_ref().is_some_and(|mirror| mirror.to == link.index);
            mirrors && filter.id.hook == hook && Cookie::of(filter).is_some_and(|cookie| cookie.owner == owner)
        })
    };
    let [ingress, egress] = [Hook::Ingress, Hook::Egress].map(filter);
    let program = [ingress, egress].into_iter().flatten().find_map(|filter| Some((filter.program?, filter.classid)));
    let (id, classid) = program?;
    let counters = sets.of(id).and_then(|set| set.sender(classid)).ok()?;
    Some(SenderCounters {
        tap_uid: mark.tap,
        pod_uid: mark.pod,
        interface: mark.interface,
        ingress: ingress.map(|filter| direction(filter, counters.ingress)),
        egress: egress.map(|filter| direction(filter, counters.egress)),
        forged: count(counters.forged),
    })
}

fn direction(filter: &Filter, counters: bpf::DirectionCounters) -> DirectionCounters {
    let action = filter.mirror.as_ref().map(|mirror| mirror.counters).unwrap_or_default();
    DirectionCounters {
        mirrored: count(counters.mirrored),
        filtered: count(counters.filtered),
        sampled_out: count(counters.sampled_out),
        rate_limited: count(counters.rate_limited),
        deduplicated: count(counters.deduplicated),
        expired: count(counters.expired),
        cut_off: count(counters.cut_off),
        truncated: count(counters.truncated),
        oversized: count(counters.oversized),
        failed: action.failed.into(),
    }
}

fn count(count: bpf::Count) -> Count {
    Count { frames: count.frames, bytes: count.bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Counters, FilterId, Mirror};

    fn mark() -> SenderMark {
        SenderMark {
            tap: "t".to_owned(),
            pod: "p".to_owned(),
            interface: "eth0".to_owned(),
            interface_index: 2,
            ipv6: false,
            config: 0,
            clsact_ours: true,
        }
    }

    fn filter(tap: &str, hook: Hook, to: u32, packets: u64, program: Option<u32>) -> Filter {
        let owner = sender_hash(&SenderKey { tap: tap.to_owned(), pod: "p".to_owned() });
        let mirror = Mirror {
            to,
            as_ours: true,
            redirects: false,
            cookie: Cookie { owner, hook, clsact_ours: true }.bytes().to_vec(),
            counters: Counters { packets, bytes: packets * 60, failed: 1 },
        };
        let kind = "bpf".to_owned();
        let id = FilterId { interface: 2, hook, chain: 0, priority: 32, protocol: 3, kind, handle: 1 };
        Filter { id, drops_all: false, program, classid: 0, mirror: Some(mirror) }
    }

    #[test]
    fn a_sender_without_readable_programs_has_no_counters() {
        let link = Link { index: 7, ..Link::default() };
        // No kernel assigns this program ID so soon.
        for program in [None, Some(u32::MAX)] {
            assert_eq!(
                of_sender(&link, mark(), &[filter("t", Hook::Ingress, 7, 5, program)], &mut Sets::default()),
                None
            );
        }
    }
}
