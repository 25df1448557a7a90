//! `tap-helper apply`: a desired state from a file, once.

use std::{
    io,
    time::{Instant, SystemTime},
};

use podtap_model::{DesiredState, NodeStatus, State};

use crate::{
    lock::Lock,
    node::{Node, NodeError},
};

/// Why a command that changes the node did not run.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The node's state cannot be read.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The lock cannot be requested.
    #[error("cannot take the node's lock: {0}")]
    Lock(#[source] io::Error),
    /// Another helper holds the lock.
    #[error("another tap-helper works on this node: send the request to its socket, or stop it first")]
    Locked,
}

/// Reconciles the node with a desired state once, and reports the result. What is pending or failed is not retried;
/// a later `serve` or `apply` resumes it.
///
/// There is no API server that confirms the desired state: the caller does, and the clock is the node's. The mirrors stop at their
/// deadline unless this is repeated before.
pub async fn apply(desired: DesiredState) -> Result<NodeStatus, ApplyError> {
    let mut node = Node::open()?;
    let Some(_lock) = Lock::take().map_err(ApplyError::Lock)? else {
        return Err(ApplyError::Locked);
    };
    let result = reconcile(&mut node, desired).await;
    node.segment_all().await;
    result?;
    Ok(node.report().unwrap_or_default().status)
}

async fn reconcile(node: &mut Node, desired: DesiredState) -> Result<(), NodeError> {
    let now = Instant::now();
    let desired = DesiredState { now: Some(SystemTime::now().into()), ..desired };
    node.set_desired(desired, now).await?;
    node.sweep_all().await?;
    node.reconcile(now).await?;
    while !node.is_settled(now) {
        node.reconcile(now).await?;
    }
    Ok(())
}

/// Whether every requested sender and receiver is active, and nothing else is left.
#[must_use]
pub fn is_complete(status: &NodeStatus) -> bool {
    let senders = status.senders.iter().map(|sender| sender.state);
    let receivers = status.receivers.iter().map(|receiver| receiver.state);
    senders.chain(receivers).all(|state| state == State::Active)
}
