//! The counters of a node's senders.
//!
//! Programs decide how a frame is processed, and count each frame once. What happens to the mirrored frame is counted by the
//! action that mirrors it (`tcf_mirred_act` of the kernel's `act_mirred.c`): every frame that reaches it is in its packets, and
//! also in its overlimits if it could not be cloned, or the sender device did not take it. The latter includes a mirrored frame
//! that the program on that device drops because it cannot truncate it: `sch_handle_egress` turns that into `NET_XMIT_DROP`. So `failed`
//! is what the actions report, which includes what the programs count as failed; both are part of `mirrored`. What the VXLAN device drops
//! afterwards, for example because there is no route, is not a failure of the action.

use std::collections::BTreeSet;

use podtap_model::{Count, Counters, DirectionCounters, SenderCounters};
use tracing::warn;

use super::{Node, sources};
use crate::{
    bpf::{self, Maps},
    marks::{Cookie, Mark, SenderMark},
    names::sender_hash,
    netlink::{Connection, Filter, Hook, Link, NetlinkError, filters, links},
    observe::{NetnsKind, unless_gone},
    resource::SenderKey,
};

impl Node {
    /// Reads the counters of all senders in the known namespaces. Senders whose counters cannot be read are missing.
    pub async fn counters(&self, request: u64) -> Counters {
        let mut senders = Vec::new();
        for (id, netns) in self.netns.iter().filter(|(_, netns)| netns.kind == NetnsKind::Pod) {
            match read(&netns.netlink).await {
                Ok(found) => senders.extend(found),
                Err(error) => warn!(pod = self.place(*id), %error, "cannot read counters"),
            }
        }
        senders.sort_by(|one, other| (&one.tap_uid, &one.pod_uid).cmp(&(&other.tap_uid, &other.pod_uid)));
        let rejected = sources::dropped(&self.namespace).unwrap_or_else(|error| {
            warn!(%error, "cannot read how many packets the receivers rejected");
            None
        });
        Counters { request, senders, rejected }
    }
}

/// Reads the counters of the senders in one namespace.
async fn read(netlink: &Connection) -> Result<Vec<SenderCounters>, NetlinkError> {
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
    Ok(senders.into_iter().filter_map(|(link, mark)| of_sender(link, mark, &all)).collect())
}

/// The counters of one sender; none if those of its programs cannot be read.
fn of_sender(link: &Link, mark: SenderMark, filters: &[Filter]) -> Option<SenderCounters> {
    let owner = sender_hash(&SenderKey { tap: mark.tap.clone(), pod: mark.pod.clone() });
    let filter = |hook: Hook| {
        filters.iter().find(|filter| {
            let mirrors = filter.mirror.as_ref().is_some_and(|mirror| mirror.to == link.index);
            mirrors && filter.id.hook == hook && Cookie::of(filter).is_some_and(|cookie| cookie.owner == owner)
        })
    };
    let [ingress, egress] = [Hook::Ingress, Hook::Egress].map(filter);
    let program = [ingress, egress].into_iter().flatten().find_map(|filter| filter.program);
    let counters = Maps::adopt(program?).and_then(|maps| maps.counters()).ok()?;
    Some(SenderCounters {
        tap_uid: mark.tap,
        pod_uid: mark.pod,
        interface: mark.interface,
        ingress: ingress.map(|filter| direction(filter, counters.ingress)),
        egress: egress.map(|filter| direction(filter, counters.egress)),
        truncated: count(counters.truncated),
        oversized: count(counters.oversized),
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
        Filter { id, drops_all: false, program, mirror: Some(mirror) }
    }

    #[test]
    fn a_sender_without_readable_programs_has_no_counters() {
        let link = Link { index: 7, ..Link::default() };
        // No kernel assigns this program ID so soon.
        for program in [None, Some(u32::MAX)] {
            assert_eq!(of_sender(&link, mark(), &[filter("t", Hook::Ingress, 7, 5, program)]), None);
        }
    }
}
