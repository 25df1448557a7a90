//! Why a resource is not in place, as reports say it.

use nix::errno::Errno;
use podtap_model::{Reason, State};

use crate::{bpf::BpfError, netlink::NetlinkError};

/// State, reason and message of a sender or receiver, as in its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its state.
    pub state: State,
    /// Why it is in that state.
    pub reason: Reason,
    /// What happened, and what to do about it; empty when there is nothing to do.
    pub message: String,
}

impl Status {
    /// In place.
    pub const ACTIVE: Self = Self { state: State::Active, reason: Reason::AsExpected, message: String::new() };
    /// About to be put in place.
    pub const PENDING: Self = Self { state: State::Pending, reason: Reason::Pending, message: String::new() };
    /// No longer requested.
    pub const REMOVING: Self = Self { state: State::Removing, reason: Reason::Removing, message: String::new() };
}

/// Why a resource is not in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The state that follows from it.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// What happened and what to do, in a sentence or two.
    pub message: String,
}

impl Failure {
    /// Not attempted.
    #[must_use]
    pub fn refused(reason: Reason, message: String) -> Self {
        Self { state: State::Refused, reason, message }
    }

    /// Attempted and failed; it is retried.
    #[must_use]
    pub fn failed(reason: Reason, message: String) -> Self {
        Self { state: State::Failed, reason, message }
    }

    /// Restored, and changed by another program again and again.
    #[must_use]
    pub fn contested() -> Self {
        let message = "Another program in the pod or on the node keeps changing PodTap's devices, filters or forwarding entries. \
                       Find that program, and make it leave them alone.";
        Self::failed(Reason::KernelError, message.to_owned())
    }

    /// An error of the kernel that has no special meaning where it occurred.
    #[must_use]
    pub fn kernel(error: &NetlinkError) -> Self {
        if error.too_much {
            return Self::refused(
                Reason::PodNetworkTooLarge,
                sentence(
                    error,
                    "PodTap examines up to 4096 devices, addresses, routes, qdiscs and filters in the network namespace of a pod: \
                     find out what adds so many, or exclude the pod from the tap.",
                ),
            );
        }
        let advice = match error.errno {
            Errno::EPERM | Errno::EACCES => {
                "Ask the cluster's administrator to check that the tap-helper has the capabilities NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_PTRACE and BPF."
            }
            Errno::ENOMEM | Errno::ENOBUFS => "The node is out of memory; this is retried automatically.",
            _ if error.is_unsupported() => {
                return Self::failed(
                    Reason::KernelFeatureMissing,
                    sentence(
                        error,
                        "The node's kernel lacks a feature: ask the cluster's administrator to load its module.",
                    ),
                );
            }
            _ => "This is retried automatically.",
        };
        Self::failed(Reason::KernelError, sentence(error, advice))
    }

    /// As in a report.
    #[must_use]
    pub fn status(&self) -> Status {
        Status { state: self.state, reason: self.reason, message: self.message.clone() }
    }
}

/// Why a sender's programs cannot be loaded or configured.
#[must_use]
pub fn program_failure(error: &BpfError) -> Failure {
    match error {
        BpfError::TooManyRules(_) | BpfError::Expression(_) => {
            Failure::refused(Reason::InvalidSpec, format!("The tap exceeds a limit: {error}."))
        }
        BpfError::Rejected { .. } => Failure::failed(
            Reason::KernelFeatureMissing,
            format!("The node's kernel does not accept the tap's programs: {error}. A simpler filter may help."),
        ),
        _ => Failure::failed(
            Reason::KernelError,
            format!("The tap's programs are not attached: {error}. This is retried."),
        ),
    }
}

/// Why no programs can be loaded at all, as found with those of a tap without options.
#[must_use]
pub fn unloadable(error: &BpfError) -> Failure {
    let what = "The node cannot load the eBPF programs that select the frames to mirror";
    let then = "Taps that mirror already are not changed; this is retried automatically.";
    match error {
        // Out of memory or descriptors: not for long.
        BpfError::Kernel { errno, .. } | BpfError::Rejected { errno, .. }
            if matches!(errno, Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR | Errno::EMFILE | Errno::ENFILE) =>
        {
            Failure::failed(Reason::KernelError, format!("{what}: {error}. {then}"))
        }
        _ => Failure::refused(
            Reason::KernelFeatureMissing,
            format!(
                "{what}: {error}. PodTap needs Linux 5.11 with CONFIG_BPF_SYSCALL, not locked down, and the capability BPF. {then}"
            ),
        ),
    }
}

/// An error of the kernel and what to do about it.
#[must_use]
pub fn sentence(error: &NetlinkError, advice: &str) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}. {advice}", characters.as_str())
}
