//! Renews this node's mirrors, as long as the API server confirms that the node's `NodeTap` exists.
//!
//! # Guarantees
//! - A mirror is renewed only after an answer of the API server that has the `NodeTap` with the UID that the tap-helper works on. Without
//!   an answer, or without that object, it stops when its orphan timeout is over.
//! - There are about [`PER_TIMEOUT`] renewals per orphan timeout, and one when the API server or the tap-helper is back. So mirrors survive
//!   if the tap-helper, the agent or the API server are away for most of the timeout.
//! - Each confirmation is one read of the metadata of one object. With the default timeout of an hour, 500 nodes send about one request
//!   per second.

use std::time::Duration;

use kube::Api;
use podtap_model::{DesiredUpdate, bounds::DEFAULT_ORPHAN_TIMEOUT_SECONDS};
use podtap_runtime::{
    backoff::{Backoff, jittered},
    client::in_time,
};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::{helper_client::HelperClient, node_tap::RawNodeTap};

/// How often mirrors are renewed within their orphan timeout.
const PER_TIMEOUT: u32 = 10;
/// The first pause after a confirmation that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Renews the mirrors of `node` forever.
pub async fn run(api: Api<RawNodeTap>, node: &str, client: &HelperClient) {
    let (mut desired, mut connections) = (client.desired(), client.connections());
    let mut orphans: Option<Orphans> = None;
    let mut next = Instant::now();
    let mut backoff = Backoff::new(FIRST_PAUSE, FIRST_PAUSE);
    loop {
        // Before the update is read, so that none is missed.
        desired.mark_unchanged();
        let current = client.read_desired(Orphans::of).flatten();
        if current != orphans {
            next = Instant::now();
            backoff = Backoff::new(FIRST_PAUSE, current.as_ref().map_or(FIRST_PAUSE, Orphans::period));
            orphans = current;
        }
        let event = tokio::select! {
            biased;
            changed = desired.changed() => changed,
            // The update that was sent on the new connection renews nothing.
            changed = connections.changed() => {
                next = Instant::now();
                changed
            }
            () = due(orphans.as_ref(), next) => {
                let Some(orphans) = &orphans else { continue };
                let pause = match in_time(api.get_metadata_opt(node)).await {
                    Ok(Some(object)) if object.metadata.uid.as_ref() == Some(&orphans.uid) => {
                        client.renew(orphans.uid.clone());
                        backoff.reset();
                        jittered(orphans.period())
                    }
                    Ok(_) => {
                        debug!("the NodeTap that the tap-helper works on is gone: its mirrors are not renewed");
                        jittered(orphans.period())
                    }
                    Err(error) => {
                        warn!(
                            %error, timeout = ?orphans.timeout,
                            "the API server does not confirm this node's NodeTap; mirrors stop after the timeout, retrying"
                        );
                        backoff.pause()
                    }
                };
                next = Instant::now() + pause;
                Ok(())
            }
        };
        if event.is_err() {
            return;
        }
    }
}

async fn due(orphans: Option<&Orphans>, next: Instant) {
    match orphans {
        Some(_) => sleep_until(next).await,
        None => std::future::pending().await,
    }
}

/// Mirrors that stop unless they are renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Orphans {
    /// UID of the `NodeTap` that they are from.
    uid: String,
    /// When they stop.
    timeout: Duration,
}

impl Orphans {
    /// Those of an update, if it has any. Only the tap-helper decodes the rest of its spec.
    fn of(update: &DesiredUpdate) -> Option<Self> {
        let uid = update.uid.clone()?;
        update.spec["senders"].as_array().filter(|senders| !senders.is_empty())?;
        let seconds = update.spec["orphanTimeoutSeconds"].as_u64();
        let seconds = seconds.unwrap_or(DEFAULT_ORPHAN_TIMEOUT_SECONDS.into());
        Some(Self { uid, timeout: Duration::from_secs(seconds) })
    }

    fn period(&self) -> Duration {
        self.timeout / PER_TIMEOUT
    }
}

#[cfg(test)]
mod tests;
