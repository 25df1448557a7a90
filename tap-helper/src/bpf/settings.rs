use std::fmt;

use tap_wire::{Instruction, Limit, Match, Network, Oversize, ProgramError, Truncate};

use super::translate::{Insn, translate};

/// How the programs of one tap on one pod process frames.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Frames must match any of these, if there are any.
    pub include: Vec<Match>,
    /// Frames must match none of these.
    pub exclude: Vec<Match>,
    /// Frames must match this cBPF program, unless it is empty.
    pub program: Vec<Instruction>,
    /// How much of each frame is mirrored; all of it if `None`.
    pub truncate: Option<Truncate>,
    /// One flow in this many is mirrored; 0 and 1 mean all.
    pub one_in_flows: u32,
    /// The rate limit of mirrored frames.
    pub limit: Limit,
    /// What happens to a mirrored frame that exceeds [`frame_limit`](Self::frame_limit) and cannot be segmented.
    pub oversize: Oversize,
    /// Networks of the pods that the same tap mirrors, if each flow between two of them is to be mirrored once.
    pub deduplicate: Option<Vec<Network>>,
    /// Longest inner frame, with its Ethernet header, that fits the underlay; see [`frame_limit`].
    pub frame_limit: Option<u32>,
    /// Whether GSO packets are linearized before their `gso_size` is reduced; see
    /// [`Features::frag_list_safe`](super::Features::frag_list_safe).
    pub linearize: bool,
}

impl Settings {
    /// The filter expression as eBPF; empty if there is none.
    pub(super) fn expression(&self) -> Result<Vec<Insn>, ProgramError> {
        if self.program.is_empty() { Ok(Vec::new()) } else { translate(&self.program) }
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
        let Self {
            include,
            exclude,
            program,
            truncate,
            one_in_flows,
            limit,
            oversize,
            deduplicate,
            frame_limit,
            linearize,
        } = self;
        formatter
            .debug_struct("Settings")
            .field("include", include)
            .field("exclude", exclude)
            .field("instructions", &program.len())
            .field("truncate", truncate)
            .field("one_in_flows", one_in_flows)
            .field("limit", limit)
            .field("oversize", oversize)
            .field("deduplicate", deduplicate)
            .field("frame_limit", frame_limit)
            .field("linearize", linearize)
            .finish()
    }
}
