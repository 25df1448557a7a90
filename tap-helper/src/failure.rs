//! Why an item is not in place, in the words of the contract.

use nix::errno::Errno;
use tap_wire::{Reason, State, Status};

use crate::netlink::NetlinkError;

/// Why an item is not in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The state it is in because of that.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// What happened and what to do, a sentence or two.
    pub message: String,
}

impl Failure {
    /// Not attempted.
    #[must_use]
    pub fn refused(reason: Reason, message: String) -> Self {
        Self { state: State::Refused, reason, message }
    }

    /// Attempted in vain; it will be attempted again.
    #[must_use]
    pub fn failed(reason: Reason, message: String) -> Self {
        Self { state: State::Failed, reason, message }
    }

    /// An error of the kernel that means nothing special where it happened.
    #[must_use]
    pub fn kernel(error: &NetlinkError) -> Self {
        let advice = match error.errno {
            Errno::EPERM | Errno::EACCES => {
                "The tap-helper needs the capabilities NET_ADMIN, SYS_ADMIN, SYS_PTRACE and BPF."
            }
            Errno::ENOMEM | Errno::ENOBUFS => "The node lacks memory; this is tried again.",
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => {
                return Self::failed(
                    Reason::KernelFeature,
                    sentence(
                        error,
                        "The node's kernel lacks a feature that this needs: load its module, or use another kernel.",
                    ),
                );
            }
            _ => "This is tried again.",
        };
        Self::failed(Reason::Kernel, sentence(error, advice))
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
