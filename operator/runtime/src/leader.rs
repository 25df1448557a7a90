//! Leader election over a `Lease` object.
//!
//! # Guarantees
//! Of processes that share a lease, at most one holds it: writes carry the resource version that was read, and a holder that
//! cannot renew stops counting as one ([`Held::lost`]) 5 seconds before any other may take over.
//!
//! # Assumptions
//! Clocks need not agree, but run equally fast within a third. Identities are unique among processes that live at the same
//! time: a pod's name is.
//!
//! # Caveats
//! A process that was stopped (`SIGSTOP`, a frozen machine) learns of its loss when it goes on; one request that was under
//! way then may still be carried out. What a leader writes must bear that: server-side apply of complete objects does.

mod access;
mod election;

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use kube::{Api, Client};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tracing::{info, warn};

use crate::backoff::{Backoff, jittered};
use access::{Access, REQUEST_TIMEOUT, record};
use election::{Action, Candidate, LEASE_DURATION, RETRY_PERIOD, deadline};

/// Why a lease can never be acquired as things are.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server does not let this process use the lease.
    #[error(
        "not allowed to use the lease {namespace}/{name}: does the service account's Role have get, create and update on leases?"
    )]
    Forbidden {
        /// Namespace of the lease.
        namespace: String,
        /// Name of the lease.
        name: String,
        /// What the API server said.
        source: kube::Error,
    },
}

/// A lease that this process wants.
pub struct Lease {
    access: Access,
    candidate: Candidate,
}

/// Leadership. Renewed in the background; dropping it ends the renewals, and the lease runs out by itself.
#[must_use = "leadership ends when this is dropped"]
pub struct Held {
    lost: watch::Receiver<bool>,
    stop: Arc<Notify>,
    renewal: JoinHandle<()>,
}

impl Lease {
    /// Contacts nobody yet. `identity` is what the lease shows as its holder.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        let access = Access {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
        };
        Self { access, candidate: Candidate::new(identity) }
    }

    /// Waits until this process is the leader. Errors of the API server that can pass are logged and tried again.
    pub async fn acquire(&mut self) -> Result<Held, Error> {
        let mut backoff = Backoff::new(RETRY_PERIOD, LEASE_DURATION);
        let mut holder = None;
        loop {
            let began = Instant::now();
            let pause = match timeout(REQUEST_TIMEOUT, self.attempt(&mut holder)).await {
                Ok(Ok(Some(object))) => {
                    info!(lease = self.access.name, identity = self.access.identity, "leading");
                    return Ok(Held::start(self.access.clone(), object, began));
                }
                Ok(Ok(None)) => {
                    backoff.reset();
                    jittered(RETRY_PERIOD)
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                    return Err(Error::Forbidden {
                        namespace: self.access.namespace.clone(),
                        name: self.access.name.clone(),
                        source: kube::Error::Api(status),
                    });
                }
                Ok(Err(error)) => {
                    warn!(lease = self.access.name, %error, "cannot read or take the lease; trying again");
                    backoff.pause()
                }
                Err(_) => {
                    warn!(lease = self.access.name, "the API server does not answer; trying again");
                    backoff.pause()
                }
            };
            sleep(pause).await;
        }
    }

    /// One look at the lease; the object if it is ours now.
    async fn attempt(&mut self, holder: &mut Option<String>) -> Result<Option<LeaseObject>, kube::Error> {
        let object = self.access.api.get_opt(&self.access.name).await?;
        let record = object.as_ref().map(record);
        let written = match self.candidate.observe(record.as_ref(), Instant::now().into_std()) {
            Action::Create => self.access.create().await,
            Action::Take { transitions } => self.access.write(object.unwrap_or_default(), transitions).await,
            Action::Wait => {
                let current = record.map(|record| record.holder);
                if *holder != current {
                    info!(lease = self.access.name, holder = current, "another one leads; standing by");
                    *holder = current;
                }
                return Ok(None);
            }
        };
        match written {
            Ok(object) => Ok(Some(object)),
            // Another candidate was faster: look again.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Held {
    fn start(access: Access, object: LeaseObject, began: Instant) -> Self {
        let (losing, lost) = watch::channel(false);
        let stop = Arc::new(Notify::new());
        let renewal = tokio::spawn(renew(access, object, began, losing, stop.clone()));
        Self { lost, stop, renewal }
    }

    /// Resolves when leadership is over; whatever only a leader may do must have stopped within the following 5 seconds.
    pub async fn lost(&self) {
        // An error means that the renewal has ended, and leadership with it.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Gives the lease up, so that another one can take it at once. To be called when nothing is written any more.
    /// Best effort, and bounded in time: where it fails, the lease runs out by itself.
    pub async fn release(mut self) {
        self.stop.notify_one();
        let _ = (&mut self.renewal).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Renews until it is told to stop, or until the deadline is over.
async fn renew(
    access: Access,
    mut object: LeaseObject,
    began: Instant,
    losing: watch::Sender<bool>,
    stop: Arc<Notify>,
) {
    let mut valid_until: Instant = deadline(began.into_std()).into();
    loop {
        let next = Instant::now() + jittered(RETRY_PERIOD);
        tokio::select! {
            () = stop.notified() => {
                access.release(object).await;
                break;
            }
            () = sleep_until(next.min(valid_until)) => {}
        }
        // An API server that refuses at once must not keep this going.
        if Instant::now() >= valid_until {
            warn!(lease = access.name, "the lease could not be renewed in time");
            break;
        }
        match timeout_at(valid_until, access.keep(&mut object)).await {
            Ok(Ok(Some(renewal_began))) => valid_until = deadline(renewal_began.into_std()).into(),
            Ok(Ok(None)) => {
                warn!(lease = access.name, "another one has taken the lease");
                break;
            }
            Ok(Err(error)) => warn!(lease = access.name, %error, "cannot renew the lease; trying again"),
            Err(_) => {
                warn!(lease = access.name, "the lease could not be renewed in time");
                break;
            }
        }
    }
    losing.send_replace(true);
}

#[cfg(test)]
mod tests;
