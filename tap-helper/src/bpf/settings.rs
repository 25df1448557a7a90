use std::{fmt, sync::Arc};

use podtap_model::{IpNet, MirrorOptions, Program, ProgramError};

use super::translate::{Insn, translate};

/// How the programs of one tap on one pod process frames.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which frames are mirrored, and how.
    pub options: MirrorOptions,
    /// The compiled expression of the filter, if it has one.
    pub program: Option<Arc<Program>>,
    /// Longest inner frame, with its Ethernet header, that fits the underlay; see [`frame_limit`].
    pub frame_limit: Option<u32>,
    /// Whether GSO packets are linearized before their `gso_size` is reduced; see [`frag_list_safe`](super::frag_list_safe).
    pub linearize: bool,
}

impl Settings {
    /// The filter expression as eBPF; empty if there is none.
    pub(super) fn expression(&self) -> Result<Vec<Insn>, ProgramError> {
        self.program.as_ref().map_or_else(|| Ok(Vec::new()), |program| translate(&program.instructions))
    }

    /// Where the other pods of the tap are, if each flow between two of them is mirrored once: sorted, each network once.
    pub(crate) fn peer_networks(&self) -> Vec<IpNet> {
        let cidrs = self.options.deduplicate.iter().flat_map(|deduplicate| deduplicate.cidrs().map(IpNet::trunc));
        let mut networks: Vec<IpNet> = cidrs.collect();
        networks.sort_unstable();
        networks.dedup();
        networks
    }
}

/// Longest inner frame for an underlay: its MTU without the IP, UDP and VXLAN headers.
#[must_use]
pub fn frame_limit(underlay_mtu: u32, ipv6: bool) -> u32 {
    underlay_mtu.saturating_sub(if ipv6 { 56 } else { 36 })
}

/// For logs: without the instructions, of which there may be hundreds.
impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, program, frame_limit, linearize } = self;
        formatter
            .debug_struct("Settings")
            .field("options", options)
            .field("program", &program.as_ref().map(|program| &program.id))
            .field("frame_limit", frame_limit)
            .field("linearize", linearize)
            .finish()
    }
}
