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
    /// Where mirrored frames are sent.
    pub reach: Reach,
    /// Whether GSO packets are linearized before their `gso_size` is reduced; see
    /// [`Features::frag_list_safe`](super::Features::frag_list_safe).
    pub linearize: bool,
}

/// Where the destinations of a sender are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// All on other nodes, or outside of the cluster.
    #[default]
    Remote,
    /// All on the pod's own node.
    Local,
    /// Some on the pod's own node.
    Mixed,
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
        let Self { options, program, frame_limit, reach, linearize } = self;
        formatter
            .debug_struct("Settings")
            .field("options", options)
            .field("program", &program.as_ref().map(|program| &program.id))
            .field("frame_limit", frame_limit)
            .field("reach", reach)
            .field("linearize", linearize)
            .finish()
    }
}
