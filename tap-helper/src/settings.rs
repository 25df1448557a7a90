//! The settings of a sender's programs. Pure.

use std::sync::Arc;

use podtap_model::{DesiredSender, MirrorOptions, Oversize};

use crate::bpf::{self, BpfError, frame_limit};

/// The settings of a sender's programs. `path_mtu` is the lowest MTU of the routes to the destinations, if any is known;
/// `frag_list_safe` is [`bpf::frag_list_safe`].
#[must_use]
pub fn settings(sender: &DesiredSender, path_mtu: Option<u32>, frag_list_safe: bool) -> bpf::Settings {
    let options = &sender.tap.options;
    let mtu = path_mtu.into_iter().chain(sender.underlay_mtu).min();
    let ipv6 = is_ipv6(sender);
    let oversize = match options.oversize {
        // The kernel would drop it: it does not fragment VXLAN over IPv6 (`ip6_fragment`, net/ipv6/ip6_output.c).
        Oversize::Fragment if ipv6 => Oversize::Truncate,
        oversize => oversize,
    };
    bpf::Settings {
        options: MirrorOptions { oversize, ..options.clone() },
        program: sender.program.as_ref().map(Arc::clone),
        frame_limit: mtu.map(|mtu| frame_limit(mtu, ipv6)),
        linearize: !frag_list_safe,
    }
}

/// Why the programs have no room for the sender's options.
pub fn check(sender: &DesiredSender) -> Result<(), BpfError> {
    settings(sender, None, true).fingerprint().map(drop)
}

/// Whether mirrored frames are sent over IPv6.
fn is_ipv6(sender: &DesiredSender) -> bool {
    sender.tap.destinations.first().is_some_and(|endpoint| endpoint.address.is_ipv6())
}

#[cfg(test)]
mod tests;
