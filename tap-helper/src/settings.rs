//! The settings of a sender's programs, and which of its mirror options the kernel does not support. Pure.

use std::sync::Arc;

use podtap_model::{DesiredSender, MirrorOptions, Oversize};

use crate::bpf::{self, BpfError, Features, Reach, Unsupported, frame_limit};

/// What the node's routes tell about the paths to a sender's destinations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// The lowest MTU, if any is known.
    pub mtu: Option<u32>,
    /// Where they lead.
    pub reach: Reach,
}

/// The settings of a sender's programs.
#[must_use]
pub fn settings(sender: &DesiredSender, paths: Paths, features: &Features) -> bpf::Settings {
    let options = &sender.tap.options;
    let mtu = paths.mtu.into_iter().chain(sender.underlay_mtu).min();
    let ipv6 = is_ipv6(sender);
    let oversize = match options.oversize {
        // The kernel would drop it: it does not fragment VXLAN over IPv6 (`ip6_fragment`, net/ipv6/ip6_output.c).
        Oversize::Fragment if ipv6 => Oversize::Truncate,
        oversize => oversize,
    };
    bpf::Settings {
        options: MirrorOptions { oversize, ..options.clone() },
        program: sender.program.as_ref().map(Arc::clone),
        // Without this feature, reducing gso_size would damage frames.
        frame_limit: mtu.filter(|_| features.clamp.is_ok()).map(|mtu| frame_limit(mtu, ipv6)),
        reach: paths.reach,
        linearize: !features.frag_list_safe,
    }
}

/// Why the programs have no room for the sender's options.
pub fn check(sender: &DesiredSender) -> Result<(), BpfError> {
    let all = Features { ebpf: Ok(()), clamp: Ok(()), rate_limit: Ok(()), expression: Ok(()), frag_list_safe: true };
    settings(sender, Paths::default(), &all).fingerprint().map(drop)
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
