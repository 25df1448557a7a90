//! The settings of a sender's programs, and what the kernel cannot do of what a sender requests. Pure.

use tap_wire::{Network, Oversize, Sender};

use crate::bpf::{self, BpfError, Features, Unsupported, frame_limit};

/// The settings of a sender's programs. `path_mtu` is the lowest MTU of the routes to the destinations, if any is known.
#[must_use]
pub fn settings(sender: &Sender, path_mtu: Option<u32>, features: &Features) -> bpf::Settings {
    let mtu = path_mtu.into_iter().chain(sender.underlay_mtu).min();
    let ipv6 = sender.destinations.first().is_some_and(|to| to.address.is_ipv6());
    bpf::Settings {
        include: sender.filter.include.clone(),
        exclude: sender.filter.exclude.clone(),
        program: sender.filter.expression.clone(),
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
        linearize: !features.frag_list_safe,
        // Without this feature, reducing gso_size would damage frames.
        frame_limit: mtu.filter(|_| features.clamp.is_ok()).map(|mtu| frame_limit(mtu, ipv6)),
    }
}

/// Why the programs have no room for what is wanted.
pub fn check(sender: &Sender) -> Result<(), BpfError> {
    let all = Features { ebpf: Ok(()), clamp: Ok(()), rate_limit: Ok(()), expression: Ok(()), frag_list_safe: true };
    settings(sender, None, &all).fingerprint().map(drop)
}

/// What of a wish this kernel cannot do, a sentence each.
#[must_use]
pub fn degraded(sender: &Sender, features: &Features) -> Vec<String> {
    let why = |reason: &Unsupported| format!("the node's kernel cannot do it ({reason})");
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
    if let Err(reason) = usable.and(features.clamp.as_ref().copied()) {
        // The kernel fragments no VXLAN over IPv6.
        let ipv6 = sender.destinations.first().is_some_and(|to| to.address.is_ipv6());
        let instead = if ipv6 { "lost" } else { "fragmented" };
        found.push(format!("Copies that do not fit the path are not made shorter, but {instead}: {}.", why(reason)));
    }
    found
}

#[cfg(test)]
mod tests;
