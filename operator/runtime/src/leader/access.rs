//! The lease in the API.

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

/// Longest wait for one answer of the API server: two attempts fit before a leader's deadline.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Reads and writes one lease on behalf of one identity.
#[derive(Clone)]
pub struct Access {
    pub api: Api<LeaseObject>,
    pub namespace: String,
    pub name: String,
    pub identity: String,
}

impl Access {
    /// Renews once: when that began, or `None` if the lease is somebody else's.
    pub async fn keep(&self, object: &mut LeaseObject) -> Result<Option<Instant>, kube::Error> {
        let began = Instant::now();
        let transitions = record(object).transitions;
        match timeout(REQUEST_TIMEOUT, self.write(object.clone(), transitions)).await {
            Ok(Ok(written)) => {
                *object = written;
                return Ok(Some(began));
            }
            // Somebody wrote it, or our own last write came through although its answer did not: read it anew.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            // Deleted, by an administrator: whoever creates it first leads.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(kube::Error::Service("no answer in time".into())),
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

    /// Writes us into the lease as it was read: its resource version makes the API server refuse when it has changed.
    pub async fn write(&self, mut object: LeaseObject, transitions: i32) -> Result<LeaseObject, kube::Error> {
        object.spec = Some(self.spec(object.spec.as_ref(), transitions));
        self.api.replace(&self.name, &PostParams::default(), &object).await
    }

    pub async fn release(&self, mut object: LeaseObject) {
        let spec = object.spec.get_or_insert_default();
        // As client-go does it: no holder, and nothing to wait for.
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        match timeout(REQUEST_TIMEOUT, self.api.replace(&self.name, &PostParams::default(), &object)).await {
            Ok(Ok(_)) => info!(lease = self.name, "gave the lease up"),
            Ok(Err(error)) => warn!(lease = self.name, %error, "cannot give the lease up; it runs out by itself"),
            Err(_) => warn!(lease = self.name, "cannot give the lease up in time; it runs out by itself"),
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

/// What the election needs to know of an object.
pub fn record(object: &LeaseObject) -> Record {
    let spec = object.spec.as_ref();
    let promised = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
        renewed: spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0.to_string()).unwrap_or_default(),
        duration: promised.map_or(LEASE_DURATION, Duration::from_secs),
        transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or_default(),
    }
}
