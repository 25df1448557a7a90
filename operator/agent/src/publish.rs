//! Publishes the tap-helper's reports as the status of this node's `NodeTap`.
//!
//! # Guarantees
//! A status is written only if it differs from that in the API server, always the newest, and only to the object that it is about (the
//! UID is a precondition). A burst of changes takes at most [`BURST`] writes, then one per second.

use std::{fmt::Display, net::IpAddr, time::Duration};

use kube::{
    Api,
    api::{Patch, PatchParams, ResourceExt as _},
};
use podtap_model::{NodeStatus, Report};
use podtap_runtime::backoff::Backoff;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, warn};

use crate::node_tap::{LastStatus, RawNodeTap};

const FIELD_MANAGER: &str = "podtap-agent";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes that may follow each other without a pause.
const BURST: u32 = 10;

/// Publishes the newest report, and which of the addresses that the agent checks are reachable, forever. `last_status` is what the watch
/// shows.
pub async fn run(
    api: Api<RawNodeTap>,
    node: &str,
    mut last_status: watch::Receiver<Option<LastStatus>>,
    mut reports: watch::Receiver<Option<Report>>,
    mut reachable: watch::Receiver<Vec<IpAddr>>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    let mut pace = Pace::new(Instant::now());
    let mut written = None;
    loop {
        // Also without a report: a change that is never read would wake this loop for ever.
        let reachable_addresses = reachable.borrow_and_update().clone();
        let report = reports
            .borrow_and_update()
            .clone()
            .map(|Report { uid, status }| Report { uid, status: NodeStatus { reachable_addresses, ..status } });
        let due = due(report.as_ref(), last_status.borrow_and_update().as_ref(), written.as_ref());
        let Some(Due { uid, status, patch }) = due else {
            let changed = tokio::select! {
                changed = last_status.changed() => changed,
                changed = reports.changed() => changed,
                changed = reachable.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            continue;
        };
        match timeout(REQUEST_TIMEOUT, write(&api, node, patch)).await {
            Ok(Ok(object)) => {
                backoff.reset();
                debug!(generation = status.observed_generation, "wrote the status");
                let resource_version = object.resource_version().unwrap_or_default();
                written = Some(LastStatus { uid, resource_version, status: Some(status) });
                sleep_until(pace.next(Instant::now())).await;
            }
            Ok(Err(error)) => pause(&mut backoff, &error).await,
            Err(elapsed) => pause(&mut backoff, &elapsed).await,
        }
    }
}

async fn pause(backoff: &mut Backoff, error: &impl Display) {
    warn!(%error, "cannot write the status of this node's NodeTap; retrying");
    sleep(backoff.pause()).await;
}

async fn write(api: &Api<RawNodeTap>, node: &str, patch: Value) -> Result<RawNodeTap, kube::Error> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch_status(node, &params, &Patch::Merge(patch)).await
}

/// A status that has to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Due {
    /// UID of the object.
    uid: String,
    status: NodeStatus,
    /// The request: a merge patch (RFC 7396).
    patch: Value,
}

/// The status that has to be written; `None` if the API server has it already, or if the report is about another object.
fn due(report: Option<&Report>, last_status: Option<&LastStatus>, written: Option<&LastStatus>) -> Option<Due> {
    let (report, last_status) = (report?, last_status?);
    if report.uid.as_ref() != Some(&last_status.uid) {
        return None;
    }
    let current = newest(last_status, written).status.as_ref();
    if current == Some(&report.status) {
        return None;
    }
    Some(Due {
        uid: last_status.uid.clone(),
        status: report.status.clone(),
        patch: patch(&last_status.uid, &report.status, current),
    })
}

fn patch(uid: &str, status: &NodeStatus, current: Option<&NodeStatus>) -> Value {
    let mut status = json!(status);
    remove_others(&mut status, &json!(current));
    json!({ "metadata": { "uid": uid }, "status": status })
}

/// A merge patch keeps members that it does not mention: lists that are empty now, for example, or features of another version.
fn remove_others(patch: &mut Value, current: &Value) {
    let Value::Object(current) = current else { return };
    for (name, value) in current {
        match patch.get_mut(name) {
            Some(own) => remove_others(own, value),
            None => patch[name] = Value::Null,
        }
    }
}

/// The newer one of what the watch shows and what was written: the watch may lag behind. Resource versions of one kind are numbers
/// that increase (KEP-5504). If they were not, the worst result would be a write that changes nothing.
fn newest<'a>(last_status: &'a LastStatus, written: Option<&'a LastStatus>) -> &'a LastStatus {
    let version = |status: &LastStatus| status.resource_version.parse::<u128>().ok();
    match written {
        Some(written) if written.uid == last_status.uid && version(written) > version(last_status) => written,
        _ => last_status,
    }
}

/// A token bucket: [`BURST`] writes, refilled by one per second.
#[derive(Debug)]
struct Pace {
    /// When the bucket is full again.
    full: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Takes a token for a write at `now`. Returns when the next write may follow.
    fn next(&mut self, now: Instant) -> Instant {
        self.full = self.full.max(now) + Duration::from_secs(1);
        now + self.full.saturating_duration_since(now).saturating_sub(Duration::from_secs(1) * BURST)
    }
}

#[cfg(test)]
mod tests;
