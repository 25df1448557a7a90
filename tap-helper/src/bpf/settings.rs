use std::{fmt, net::IpAddr, sync::Arc};

use podtap_model::{EtherType, MirrorOptions, Program, ProgramError};

use super::{
    object::program_hash,
    translate::{Insn, translate},
};

/// How the programs of one tap on one pod process frames.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which frames are mirrored, and how.
    pub options: MirrorOptions,
    /// Which flows are in the sample: the same for all senders of a tap, on every node.
    pub sample_seed: u64,
    /// The compiled expression of the filter, if it has one.
    pub program: Option<Arc<Program>>,
    /// Longest inner frame, with its Ethernet header, that fits the underlay; see [`frame_limit`].
    pub frame_limit: Option<u32>,
    /// Where mirrored frames are sent.
    pub reach: Reach,
    /// Whether GSO packets are linearized before their `gso_size` is reduced; see [`frag_list_safe`](super::frag_list_safe).
    pub linearize: bool,
    /// Addresses of pods that the same tap mirrors: a flow with one of them is mirrored at one end only. Sorted, each once, at most
    /// [`MAX_PEERS`](podtap_model::bounds::MAX_PEERS).
    pub peers: Vec<IpAddr>,
    /// EtherType of probes: the pod's own frames with it are not mirrored.
    pub probe_ether_type: EtherType,
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
    /// Identifies the programs that support them.
    pub(super) fn program_hash(&self) -> Result<u64, ProgramError> {
        Ok(program_hash(&self.expression()?, self.options.track_flows()))
    }

    /// The filter expression as eBPF; empty if there is none.
    pub(super) fn expression(&self) -> Result<Vec<Insn>, ProgramError> {
        self.program.as_ref().map_or_else(|| Ok(Vec::new()), |program| translate(&program.instructions))
    }
}

/// Longest inner frame for an underlay: its MTU without the IP, UDP and VXLAN headers.
#[must_use]
pub fn frame_limit(underlay_mtu: u32, ipv6: bool) -> u32 {
    underlay_mtu.saturating_sub(if ipv6 { 56 } else { 36 })
}

/// For logs: without the seed, and without the instructions and the peers, of which there may be hundreds.
impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, sample_seed: _, program, frame_limit, reach, linearize, peers, probe_ether_type } = self;
        formatter
            .debug_struct("Settings")
            .field("options", options)
            .field("program", &program.as_ref().map(|program| &program.id))
            .field("frame_limit", frame_limit)
            .field("reach", reach)
            .field("linearize", linearize)
            .field("peers", &peers.len())
            .field("probe_ether_type", &probe_ether_type.get())
            .finish()
    }
}
