//! What was counted of the senders of a node.
//!
//! Programs decide what becomes of a frame and count that, all outcomes in one place. What becomes of the copy is counted by the
//! action that makes it (`tcf_mirred_act` of the kernel's `act_mirred.c`): each frame that comes to it is in its packets, whatever
//! happens then, and in its overlimits too if there is no copy, or the sender device does not take it. The latter is so also when
//! the program on that device drops a copy that it cannot cut: `sch_handle_egress` makes `NET_XMIT_DROP` of that. So `failed` is what
//! the actions say, and what the programs count as failed is a part of it; both are a part of `mirrored`. What the tunnel drops
//! behind that, for want of a route for example, is no failure to the action.

use std::collections::BTreeSet;

use tap_wire::{Count, Counters, DirectionCounters, SenderCounters};

use super::Node;
use crate::{
    bpf::{self, Maps},
    marks::{Cookie, Mark, SenderMark},
    names::sender_hash,
    netlink::{Filter, Hook, Link, NetlinkError, RouteSocket, filters, links},
    observe::{Scope, unless_gone},
    step::SenderKey,
};

impl Node {
    /// Reads the counters of all senders in the namespaces that are known. Those of one that cannot be read are missing.
    pub fn counters(&mut self, request: u64) -> Counters {
        let mut senders = Vec::new();
        for (id, space) in self.spaces.iter_mut().filter(|(_, space)| space.scope == Scope::Pod) {
            match read(&mut space.socket) {
                Ok(found) => senders.extend(found),
                Err(error) => {
                    let namespace = id.inode().to_string();
                    self.log.warn("cannot read counters", &[("namespace", &namespace), ("error", &error.to_string())]);
                }
            }
        }
        senders.sort_by(|one, other| (&one.tap, &one.pod).cmp(&(&other.tap, &other.pod)));
        Counters { request, senders }
    }
}

/// Those of the senders in the namespace of a socket.
fn read(socket: &mut RouteSocket) -> Result<Vec<SenderCounters>, NetlinkError> {
    let links = links(socket)?;
    let mark = |link| match Mark::of(link) {
        Some(Mark::Sender(mark)) => Some((link, mark)),
        _ => None,
    };
    let senders: Vec<(&Link, SenderMark)> = links.iter().filter_map(mark).collect();
    let interfaces: BTreeSet<u32> = senders.iter().map(|(_, mark)| mark.interface_index).collect();
    let mut all = Vec::new();
    for interface in interfaces {
        for hook in [Hook::Ingress, Hook::Egress] {
            all.extend(unless_gone(filters(socket, interface, hook))?);
        }
    }
    Ok(senders.into_iter().filter_map(|(link, mark)| of_sender(link, mark, &all)).collect())
}

/// Those of one sender; none if it has programs whose counters cannot be read, since what the actions say is less than these.
fn of_sender(link: &Link, mark: SenderMark, filters: &[Filter]) -> Option<SenderCounters> {
    let owner = sender_hash(&SenderKey { tap: mark.tap.clone(), pod: mark.pod.clone() });
    let filter = |hook: Hook| {
        filters.iter().find(|filter| {
            let leads = filter.mirror.as_ref().is_some_and(|mirror| mirror.to == link.index);
            leads && filter.id.hook == hook && Cookie::of(filter).is_some_and(|cookie| cookie.owner == owner)
        })
    };
    let [ingress, egress] = [Hook::Ingress, Hook::Egress].map(filter);
    let program = [ingress, egress].into_iter().flatten().find_map(|filter| filter.program);
    let programs = match program {
        Some(id) => Some(Maps::adopt(id).and_then(|maps| maps.counters()).ok()?),
        None => None,
    };
    Some(SenderCounters {
        tap: mark.tap,
        pod: mark.pod,
        interface: mark.interface,
        ebpf: programs.is_some(),
        ingress: ingress.map(|filter| direction(filter, programs.map(|counters| counters.ingress))),
        egress: egress.map(|filter| direction(filter, programs.map(|counters| counters.egress))),
        truncated: programs.map(|counters| count(counters.truncated)),
        oversized: programs.map(|counters| count(counters.oversized)),
    })
}

fn direction(filter: &Filter, programs: Option<bpf::DirectionCounters>) -> DirectionCounters {
    let action = filter.mirror.as_ref().map(|mirror| mirror.counters).unwrap_or_default();
    DirectionCounters {
        mirrored: programs
            .map_or(Count { frames: action.packets, bytes: action.bytes }, |counters| count(counters.mirrored)),
        filtered: programs.map(|counters| count(counters.filtered)),
        sampled_out: programs.map(|counters| count(counters.sampled_out)),
        over_limit: programs.map(|counters| count(counters.rate_limited)),
        deduplicated: programs.map(|counters| count(counters.deduplicated)),
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
    fn without_programs_it_is_what_the_action_says_and_no_more() {
        let link = Link { index: 7, ..Link::default() };
        let others = [filter("t", Hook::Egress, 8, 100, None), filter("other", Hook::Egress, 7, 100, None)];
        let filters = [&others[..], &[filter("t", Hook::Ingress, 7, 5, None)]].concat();
        let counters = of_sender(&link, mark(), &filters).expect("they can be read");
        let mirrored = Count { frames: 5, bytes: 300 };
        let expected = SenderCounters {
            tap: "t".to_owned(),
            pod: "p".to_owned(),
            interface: "eth0".to_owned(),
            ebpf: false,
            ingress: Some(DirectionCounters { mirrored, failed: 1, ..DirectionCounters::default() }),
            ..SenderCounters::default()
        };
        assert_eq!(counters, expected);
    }

    #[test]
    fn programs_that_cannot_be_read_are_not_replaced_by_less() {
        let link = Link { index: 7, ..Link::default() };
        // No kernel gives this number so soon.
        assert_eq!(of_sender(&link, mark(), &[filter("t", Hook::Ingress, 7, 5, Some(u32::MAX))]), None);
    }
}
