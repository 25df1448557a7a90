//! Why a resource is not in place, as reports say it.

use nix::errno::Errno;
use podtap_model::{Reason, State};

use crate::netlink::NetlinkError;

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
                "The tap-helper needs the capabilities NET_ADMIN, SYS_ADMIN, SYS_PTRACE and BPF."
            }
            Errno::ENOMEM | Errno::ENOBUFS => "The node is out of memory; this is retried automatically.",
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => {
                return Self::failed(
                    Reason::KernelFeatureMissing,
                    sentence(error, "The node's kernel lacks a feature: load its module, or use another kernel."),
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

/// An error of the kernel and what to do about it.
#[must_use]
pub fn sentence(error: &NetlinkError, advice: &str) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}. {advice}", characters.as_str())
}
