//! Reads and writes of the `Lease` object.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::election::{LEASE_DURATION, Record};

/// How long a request may take: two fit within a leader's deadline.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Access to one lease on behalf of one identity.
#[derive(Clone)]
pub struct Access {
    pub api: Api<LeaseObject>,
    pub namespace: String,
    pub name: String,
    pub identity: String,
}

impl Access {
    /// Renews once. Returns when the renewal began, or `None` if another process has the lease.
    pub async fn keep(&self, object: &mut LeaseObject) -> Result<Option<Instant>, kube::Error> {
        let began = Instant::now();
        let transitions = record(object).transitions;
        match timeout(REQUEST_TIMEOUT, self.write(object.clone(), transitions)).await {
            Ok(Ok(written)) => {
                *object = written;
                return Ok(Some(began));
            }
            // Someone wrote it, or our last write succeeded although its response was lost: read it again.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            // Deleted by an administrator: the first to create it leads.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(kube::Error::Service("no response in time".into())),
        }
        let current = self.api.get(&self.name).await?;
        if record(&current).holder != self.identity {
            return Ok(None);
        }
        let began = Instant::now();
        *object = self.write(current, transitions).await?;
        Ok(Some(began))
    }

    pub async fn create(&self) -> Result<LeaseObject, kube::Error> {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let object = LeaseObject { metadata, spec: Some(self.spec(None, 0)) };
        self.api.create(&PostParams::default(), &object).await
    }

    /// Writes our identity into the lease as it was read: if it has changed since, the resource version causes a conflict.
    pub async fn write(&self, mut object: LeaseObject, transitions: i32) -> Result<LeaseObject, kube::Error> {
        object.spec = Some(self.spec(object.spec.as_ref(), transitions));
        self.api.replace(&self.name, &PostParams::default(), &object).await
    }

    pub async fn release(&self, mut object: LeaseObject) {
        let spec = object.spec.get_or_insert_default();
        // Like client-go: no holder, and a duration that has passed at once.
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        match timeout(REQUEST_TIMEOUT, self.api.replace(&self.name, &PostParams::default(), &object)).await {
            Ok(Ok(_)) => info!(lease = self.name, "released the lease"),
            Ok(Err(error)) => warn!(lease = self.name, %error, "cannot release the lease; it will expire"),
            Err(_) => warn!(lease = self.name, "cannot release the lease in time; it will expire"),
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let acquired = before
            .filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
            .and_then(|spec| spec.acquire_time.clone());
        LeaseSpec {
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions),
            renew_time: Some(now),
            ..before.cloned().unwrap_or_default()
        }
    }
}

/// The part of the object that the election depends on.
pub fn record(object: &LeaseObject) -> Record {
    let spec = object.spec.as_ref();
    let duration = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
        renewed: spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0.to_string()).unwrap_or_default(),
        duration: duration.map_or(LEASE_DURATION, Duration::from_secs),
        transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or_default(),
    }
}
