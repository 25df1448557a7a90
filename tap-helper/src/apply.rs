//! `tap-helper apply`: a desired state from a file, once.

use std::time::Instant;

use tap_wire::{Desired, Report, State};

use crate::{
    lock::{Lock, TAKEN},
    log::Log,
    node::{Node, NodeError},
};

/// Why a command that changes the node did not run.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    /// The kernel cannot be asked.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The lock cannot be asked for.
    #[error("cannot take the node's lock: {0}")]
    Lock(#[source] std::io::Error),
    /// Somebody else has it.
    #[error("{}", TAKEN)]
    Taken,
}

/// Makes the node hold exactly what is desired, as far as that goes at once, and says how far. What waits or failed is not tried
/// again; a later `serve` or `apply` goes on with it.
pub fn apply(desired: Desired, log: Log) -> Result<Report, OnceError> {
    let mut node = Node::open(log)?;
    let Some(_lock) = Lock::take(node.own()).map_err(OnceError::Lock)? else { return Err(OnceError::Taken) };
    let now = Instant::now();
    node.want(desired, now)?;
    node.turn(now)?;
    Ok(node.report().unwrap_or_default())
}

/// Whether everything that was wanted is in place, and nothing else.
#[must_use]
pub fn is_complete(report: &Report) -> bool {
    let senders = report.senders.iter().map(|sender| sender.status.state);
    let receivers = report.receivers.iter().map(|receiver| receiver.status.state);
    senders.chain(receivers).all(|state| state == State::Active)
}
