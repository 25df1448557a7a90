//! What programs are told, from what is wanted of a sender; and what of it cannot be done without them. Pure.

use tap_wire::{Filter, Match, Network, Oversize, Sender};

use crate::bpf::{self, BpfError, Features, frame_limit};

/// What programs of a sender are told. `path_mtu` is the least MTU of the routes to the destinations, if any is known.
#[must_use]
pub fn settings(sender: &Sender, path_mtu: Option<u32>, features: &Features) -> bpf::Settings {
    let Filter { include, exclude, expression } = &sender.filter;
    let mtu = path_mtu.into_iter().chain(sender.underlay_mtu).min();
    let ipv6 = sender.destinations.first().is_some_and(|to| to.address.is_ipv6());
    bpf::Settings {
        filter: bpf::Filter {
            include: include.iter().map(match_of).collect(),
            exclude: exclude.iter().map(match_of).collect(),
            expression: expression.clone(),
        },
        truncate: sender.truncate,
        one_in_flows: sender.one_in_flows,
        limit: sender.limit,
        oversize: match sender.oversize {
            // The kernel would drop it: it fragments no VXLAN over IPv6 (`ip6_fragment`, net/ipv6/ip6_output.c).
            Oversize::Fragment if ipv6 => Oversize::Truncate,
            oversize => oversize,
        },
        deduplicate: sender.deduplicate.as_ref().map(|deduplicate| {
            let all = deduplicate.pod_networks.iter().chain(&deduplicate.service_networks);
            let mut networks: Vec<Network> = all.copied().collect();
            networks.sort_unstable_by_key(|network| (network.address, network.prefix));
            networks.dedup();
            networks
        }),
        linearize: !features.whole_lists,
        // Where segments cannot be made shorter, trying would lose them.
        frame_limit: mtu.filter(|_| features.fit.is_ok()).map(|mtu| frame_limit(mtu, ipv6)),
    }
}

/// Why the programs have no room for what is wanted.
pub fn check(sender: &Sender) -> Result<(), BpfError> {
    let all = Features { ebpf: Ok(()), fit: Ok(()), limit: Ok(()), expression: Ok(()), whole_lists: true };
    settings(sender, None, &all).fingerprint().map(drop)
}

/// What of a wish this kernel cannot do, a sentence each.
#[must_use]
pub fn degraded(sender: &Sender, features: &Features) -> Vec<String> {
    let why = |reason: &str| format!("the node's kernel cannot do it ({reason})");
    let usable = features.usable();
    let mut found = Vec::new();
    if let Err(reason) = usable {
        let wishes = [
            (!sender.filter.is_empty(), "All frames are copied, not only those that the filter wants"),
            (sender.truncate.is_some(), "Frames are copied whole and not truncated"),
            (sender.one_in_flows > 1, "All flows are copied, not only a sample"),
            (!sender.limit.is_none(), "Copies are not limited"),
            (sender.deduplicate.is_some(), "Flows between tapped pods are copied at both ends"),
        ];
        let done = wishes.into_iter().filter(|(wanted, _)| *wanted);
        found.extend(done.map(|(_, what)| format!("{what}: {}.", why(reason))));
    }
    if let Err(reason) = usable.and(features.fit.as_ref().map(drop).map_err(String::as_str)) {
        // The kernel fragments no VXLAN over IPv6.
        let ipv6 = sender.destinations.first().is_some_and(|to| to.address.is_ipv6());
        let instead = if ipv6 { "lost" } else { "fragmented" };
        found.push(format!("Copies that do not fit the path are not made shorter, but {instead}: {}.", why(reason)));
    }
    found
}

fn match_of(Match { protocol, ports, networks }: &Match) -> bpf::Match {
    bpf::Match {
        protocol: *protocol,
        ports: ports.iter().map(|range| (range.first, range.last)).collect(),
        networks: networks.clone(),
    }
}

#[cfg(test)]
mod tests;
