//! The settings of a sender's programs. Pure.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use podtap_model::{DesiredSender, Direction, MirrorOptions, Oversize, Tap, bounds::MAX_PEERS};

use crate::{
    bpf::{self, BpfError, Reach},
    names::Hash,
};

/// What the node's routes tell about the paths to a sender's destinations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// The lowest MTU, if any is known.
    pub mtu: Option<u32>,
    /// Where they lead.
    pub reach: Reach,
}

/// The settings of a sender's programs. `frag_list_safe` is [`bpf::frag_list_safe`].
#[must_use]
pub fn settings(sender: &DesiredSender, paths: Paths, frag_list_safe: bool) -> bpf::Settings {
    let options = &sender.tap.options;
    let oversize = match options.oversize {
        // The kernel would drop it: it does not fragment VXLAN over IPv6 (`ip6_fragment`, net/ipv6/ip6_output.c).
        Oversize::Fragment if is_ipv6(sender) => Oversize::Truncate,
        oversize => oversize,
    };
    bpf::Settings {
        options: MirrorOptions { oversize, ..options.clone() },
        sample_seed: Hash::new().text("sample").text(&sender.tap.uid).value(),
        program: sender.program.as_ref().map(Arc::clone),
        frame_limit: frame_limit(sender, paths),
        reach: paths.reach,
        linearize: !frag_list_safe,
        peers: peers(sender),
        probe_ether_type: sender.probe_ether_type,
    }
}

/// The longest frame of a sender that fits the paths to its destinations, with its Ethernet header; none if no path is known.
#[must_use]
pub fn frame_limit(sender: &DesiredSender, paths: Paths) -> Option<u32> {
    let mtu = paths.mtu.into_iter().chain(sender.underlay_mtu).min()?;
    Some(bpf::frame_limit(mtu, is_ipv6(sender)))
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
    settings(sender, Paths::default(), true).fingerprint().map(drop)
}

/// Whether mirrored frames are sent over IPv6.
fn is_ipv6(sender: &DesiredSender) -> bool {
    sender.tap.destinations.first().is_some_and(|endpoint| endpoint.address.is_ipv6())
}

#[cfg(test)]
mod tests;
