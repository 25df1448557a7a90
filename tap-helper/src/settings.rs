//! The settings of a sender's programs, and which of its mirror options the kernel does not support. Pure.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use podtap_model::{DesiredSender, Direction, MirrorOptions, Oversize, Tap, bounds::MAX_PEERS};

use crate::bpf::{self, BpfError, Features, Unsupported, frame_limit};

/// The settings of a sender's programs. `path_mtu` is the lowest MTU of the routes to the destinations, if any is known.
#[must_use]
pub fn settings(sender: &DesiredSender, path_mtu: Option<u32>, features: &Features) -> bpf::Settings {
    let options = &sender.tap.options;
    let mtu = path_mtu.into_iter().chain(sender.underlay_mtu).min();
    let ipv6 = is_ipv6(sender);
    let oversize = match options.oversize {
        // The kernel would drop it: it does not fragment VXLAN over IPv6 (`ip6_fragment`, net/ipv6/ip6_output.c).
        Oversize::Fragment if ipv6 => Oversize::Truncate,
        oversize => oversize,
    };
    let peers = peers(sender);
    bpf::Settings {
        options: MirrorOptions { oversize, ..options.clone() },
        program: sender.program.as_ref().map(Arc::clone),
        // Without this feature, reducing gso_size would damage frames.
        frame_limit: mtu.filter(|_| features.clamp.is_ok()).map(|mtu| frame_limit(mtu, ipv6)),
        linearize: !features.frag_list_safe,
        addresses: if peers.is_empty() { Vec::new() } else { sender.pod.addresses.clone() },
        peers,
    }
}

/// The pods that share flows with this one. In one direction only, each frame is mirrored once anyway: where it is sent, or where it is
/// received.
fn peers(sender: &DesiredSender) -> Vec<IpAddr> {
    let Tap { options, direction, peers, .. } = &*sender.tap;
    if options.deduplicate.is_none() || *direction != Direction::Both {
        return Vec::new();
    }
    // Flows with those above the limit are mirrored at both ends.
    let peers: BTreeSet<IpAddr> = peers.iter().copied().collect();
    peers.into_iter().take(MAX_PEERS).collect()
}

/// Why the programs have no room for the sender's options.
pub fn check(sender: &DesiredSender) -> Result<(), BpfError> {
    let all = Features { ebpf: Ok(()), clamp: Ok(()), rate_limit: Ok(()), expression: Ok(()), frag_list_safe: true };
    settings(sender, None, &all).fingerprint().map(drop)
}

/// The options of a sender that this kernel does not support, one sentence each.
#[must_use]
pub fn degraded(sender: &DesiredSender, features: &Features) -> Vec<String> {
    let why = |reason: &Unsupported| format!("the node's kernel does not support it ({reason})");
    let options = &sender.tap.options;
    let usable = features.usable();
    let mut found = Vec::new();
    if let Err(reason) = usable {
        let ignored = [
            (options.filter.is_some(), "All frames are mirrored, not only those that match the filter"),
            (options.truncate.is_some(), "Frames are mirrored whole, not truncated"),
            (options.one_in_flows() > 1, "All flows are mirrored, not only a sample"),
            (options.limit.is_some(), "Mirrored frames are not rate-limited"),
            (options.deduplicate.is_some(), "Flows between tapped pods are mirrored at both ends"),
        ];
        let requested = ignored.into_iter().filter(|(is_requested, _)| *is_requested);
        found.extend(requested.map(|(_, effect)| format!("{effect}: {}.", why(reason))));
    }
    if let Err(reason) = usable.and(features.clamp.as_ref().copied()) {
        // As above: the kernel does not fragment VXLAN over IPv6.
        let effect = if is_ipv6(sender) { "lost" } else { "fragmented" };
        found.push(format!("Mirrored frames that exceed the path MTU are {effect}, not clamped: {}.", why(reason)));
    }
    found
}

/// Whether mirrored frames are sent over IPv6.
fn is_ipv6(sender: &DesiredSender) -> bool {
    sender.tap.destinations.first().is_some_and(|endpoint| endpoint.address.is_ipv6())
}

#[cfg(test)]
mod tests;
