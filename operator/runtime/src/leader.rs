//! Leader election over a `Lease` object.
//!
//! # Guarantees
//! At most one process holds a lease: writes carry the resource version that was read, and a holder that cannot renew has lost the
//! lease ([`Held::lost`]) 5 seconds before another process may take it. After a crash, another process leads within about
//! 20 seconds; after [`Held::release`], within 3.
//!
//! # Assumptions
//! Clocks need not be synchronised, but their rates differ by less than a third. Processes that run at the same time have different
//! identities, such as the names of their pods.
//!
//! # Caveats
//! A process that was stopped (`SIGSTOP`, a paused VM) notices its loss only when it continues, and a request that was in flight may
//! still be carried out. A leader's writes must tolerate that, as server-side apply of complete objects does.

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

/// Why the lease cannot be acquired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// RBAC does not allow this process to use the lease.
    #[error(
        "not allowed to use the lease {namespace}/{name}: does the service account's Role have get, create and update on leases?"
    )]
    Forbidden {
        /// Namespace of the lease.
        namespace: String,
        /// Name of the lease.
        name: String,
        /// The response of the API server.
        source: kube::Error,
    },
}

/// A lease that this process competes for.
pub struct Lease {
    access: Access,
    candidate: Candidate,
}

/// Leadership. A background task renews it. Dropping it stops the renewals: the lease expires 15 seconds after the last one.
#[must_use = "leadership ends when this is dropped"]
pub struct Held {
    lost: watch::Receiver<bool>,
    stop: Arc<Notify>,
    renewal: JoinHandle<()>,
}

impl Lease {
    /// A candidate for the lease, with `identity` as `spec.holderIdentity`. It sends nothing yet.
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

    /// Waits until this process is the leader. Transient errors of the API server are logged and retried.
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
                    warn!(lease = self.access.name, %error, "cannot read or take the lease; retrying");
                    backoff.pause()
                }
                Err(_) => {
                    warn!(lease = self.access.name, "the API server does not respond; retrying");
                    backoff.pause()
                }
            };
            sleep(pause).await;
        }
    }

    /// Reads the lease, and takes it if possible. Returns the object if this process holds it now.
    async fn attempt(&mut self, holder: &mut Option<String>) -> Result<Option<LeaseObject>, kube::Error> {
        let object = self.access.api.get_opt(&self.access.name).await?;
        let record = object.as_ref().map(record);
        let written = match self.candidate.observe(record.as_ref(), Instant::now().into_std()) {
            Action::Create => self.access.create().await,
            Action::Take { transitions } => self.access.write(object.unwrap_or_default(), transitions).await,
            Action::Wait => {
                let current = record.map(|record| record.holder);
                if *holder != current {
                    info!(lease = self.access.name, holder = current, "another process leads; standing by");
                    *holder = current;
                }
                return Ok(None);
            }
        };
        match written {
            Ok(object) => Ok(Some(object)),
            // Another candidate was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Held {
    fn start(access: Access, object: LeaseObject, began: Instant) -> Self {
        let (lost_sender, lost) = watch::channel(false);
        let stop = Arc::new(Notify::new());
        let renewal = tokio::spawn(renew(access, object, began, lost_sender, stop.clone()));
        Self { lost, stop, renewal }
    }

    /// Waits until leadership is lost. Everything that only a leader may do must stop within 5 seconds after that.
    pub async fn lost(&self) {
        // An error means that the renewals have ended, and leadership with them.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Releases the lease, so that another process can take it at once. Call it after the last write. Best effort and
    /// bounded in time: if it fails, the lease expires.
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

/// Renews until it is stopped, another process takes the lease, or the deadline passes.
async fn renew(access: Access, mut object: LeaseObject, began: Instant, lost: watch::Sender<bool>, stop: Arc<Notify>) {
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
        // Otherwise an API server that fails fast would keep this going.
        if Instant::now() >= valid_until {
            warn!(lease = access.name, "cannot renew the lease in time");
            break;
        }
        match timeout_at(valid_until, access.keep(&mut object)).await {
            Ok(Ok(Some(renewal_began))) => valid_until = deadline(renewal_began.into_std()).into(),
            Ok(Ok(None)) => {
                warn!(lease = access.name, "another process has taken the lease");
                break;
            }
            Ok(Err(error)) => warn!(lease = access.name, %error, "cannot renew the lease; retrying"),
            Err(_) => {
                warn!(lease = access.name, "cannot renew the lease in time");
                break;
            }
        }
    }
    lost.send_replace(true);
}

#[cfg(test)]
mod tests;
