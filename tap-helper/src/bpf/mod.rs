//! The eBPF programs of a tap on a pod, which select, truncate, sample, rate-limit and clamp mirrored frames in the kernel.
//!
//! A set has three [`Programs`]: one for each direction of the pod's interface, whose result decides whether the filter's mirred
//! action runs (`cls_bpf` without direct-action), and one for the egress of the sender device, which only mirrored frames pass
//! (with direct-action). They share [`Maps`] with the configuration and the counters. Nothing is pinned: filters hold the
//! programs, and programs hold the maps. A helper that starts adopts them by the program ID that the kernel reports for each
//! filter (`TCA_BPF_ID`).
//!
//! The kernel's verifier takes up to a tenth of a second for a set, so up to [`SENDERS`] senders of a tap share one: their
//! settings are the same. What differs, counters, deadline and state, is in the maps at the sender's class ID, a number below [`SENDERS`] in
//! each of its filters (`TCA_BPF_CLASSID`), which `cls_bpf` passes to the program in `tc_classid`.
//!
//! [`Maps::configure`] changes the [`Settings`] of running programs between two frames. Only another expression needs other programs
//! ([`Maps::supports`]): [`Programs::load`] loads them with the counters of their predecessor, and they take its place when its
//! filters are replaced.
//!
//! Every sender has a deadline ([`Maps::set_deadline`]), after which the programs mirror nothing of it. A new one has none, and mirrors
//! nothing until it gets one.
//!
//! Whether a kernel supports the programs shows when it loads them: they are one object, and use nothing whose absence would show only
//! when they run. The last feature that they need is in Linux 5.11 (`bpf_ktime_get_coarse_ns`); those that the kernel checks at run time,
//! such as the flags of `bpf_skb_adjust_room`, are older.
//!
//! Fragments after the first have no ports: they take those of the first one. If that was not seen, a fragment is mirrored if an
//! include rule could match it, and no exclude rule without ports does. An expression sees each frame on its own, as in tcpdump.

mod classic;
mod counters;
mod error;
mod kernel_version;
mod layout;
mod maps;
mod monotonic;
mod object;
mod probe;
mod programs;
mod receive;
mod settings;
mod syscall;
mod tcx;
#[cfg(feature = "test-run")]
mod test_run;
mod translate;

pub use counters::{Count, Counters, DirectionCounters, SetCounters};
pub use error::{BpfError, ObjectError};
pub use kernel_version::frag_list_safe;
pub use maps::{Fingerprint, Maps};
pub use monotonic::Monotonic;
pub use probe::{Probe, Prober};
pub use programs::Programs;
pub use receive::{LastProbes, Receive, ReceiveMaps, ReceiveSettings};
pub use settings::{Reach, Settings, frame_limit};
pub use tcx::{TcxProgram, tcx_programs};

/// The number of senders that share a set: their class IDs are below it.
pub const SENDERS: u32 = constants::SENDERS;

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: u32 = constants::ETHERNET_HEADER;

/// bpf/constants.h.
#[expect(dead_code, clippy::unreadable_literal, reason = "some are for the C side only, and all are written as in C")]
mod constants {
    include!(concat!(env!("OUT_DIR"), "/constants.rs"));
}

/// One of the [`Programs`].
#[cfg(feature = "test-run")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `Programs`")]
pub enum ProgramKind {
    Ingress,
    Egress,
    Clamp,
}
