use std::os::fd::OwnedFd;

use thiserror::Error;

use super::{
    BpfError, Programs, Settings, kernel_version,
    object::{MapsByName, Object, PROBE},
    test_run::Runnable,
};

/// Why a kernel does not support a feature.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Unsupported(pub String);

impl From<BpfError> for Unsupported {
    fn from(error: BpfError) -> Self {
        Self(error.to_string())
    }
}

/// Which features this kernel supports, with the reason for each that it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Classifiers: filters, sampling, truncation, deduplication, counters.
    pub ebpf: Result<(), Unsupported>,
    /// Reducing `gso_size`, to clamp mirrored frames to the MTU.
    pub clamp: Result<(), Unsupported>,
    /// Rate limits: spin locks in maps.
    pub rate_limit: Result<(), Unsupported>,
    /// Filter expressions: BPF-to-BPF calls.
    pub expression: Result<(), Unsupported>,
    /// Whether reducing `gso_size` is safe for GSO packets with a `frag_list`. On other kernels they are linearized before, or
    /// `skb_segment` would hit a `BUG_ON`. Known from the kernel's version, as it cannot be tried.
    pub frag_list_safe: bool,
}

impl Features {
    /// Whether the programs of a tap can be loaded, or why not. They are one object that needs all features except
    /// [`clamp`](Self::clamp), which matters at run time only.
    pub fn usable(&self) -> Result<(), &Unsupported> {
        [&self.ebpf, &self.rate_limit, &self.expression].into_iter().try_for_each(|feature| feature.as_ref().copied())
    }
}

/// Probes each feature with a small program. If all are supported, loads and returns the programs of a tap: a verifier may
/// accept small programs and reject large ones.
#[must_use]
pub fn probe() -> (Features, Option<Programs>) {
    let mut features = Features {
        ebpf: loads("probe_ebpf"),
        clamp: clamps(),
        rate_limit: loads("probe_rate_limit"),
        expression: loads("probe_expression"),
        frag_list_safe: kernel_version::frag_list_safe(),
    };
    let mut programs = None;
    if features.usable().is_ok() {
        match Programs::load(&Settings::default(), None) {
            Ok(loaded) => programs = Some(loaded),
            Err(error) => features.ebpf = Err(error.into()),
        }
    }
    (features, programs)
}

fn loads(name: &str) -> Result<(), Unsupported> {
    Ok(load(name).map(drop)?)
}

fn load(name: &str) -> Result<OwnedFd, BpfError> {
    let mut object = Object::parse(PROBE)?;
    object.keep_program(name);
    // A kernel without spin locks rejects the map. Only the program that needs it may fail then.
    let maps = if name == "probe_rate_limit" { object.maps(MapsByName::new())? } else { MapsByName::new() };
    object.link(&maps)?;
    object.load(name)
}

fn clamps() -> Result<(), Unsupported> {
    // bpf_skb_adjust_room looks at the IPv4 header only.
    let mut frame = [0; 64];
    (frame[12], frame[14], frame[17]) = (8, 0x45, 50);
    let (result, _) = Runnable::new(load("probe_clamp")?)?.run(&frame, &[])?;
    let unsupported = match result {
        0 => return Ok(()),
        1 => "the kernel cannot add room to a frame",
        _ => "the kernel cannot remove room from a frame and keep gso_size (Linux 5.1)",
    };
    Err(Unsupported(unsupported.to_owned()))
}
