//! Writes the statuses that differ from what the API server has, each at most once per second.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::{SignedDuration, Timestamp},
};
use kube::api::Patch;
use podtap_api::PodTapStatus;
use podtap_model::{TapReference, Uid};
use podtap_runtime::client::in_time;
use serde_json::json;

use crate::{
    apply::context::{Context, in_budget, is_not_found, patch_params},
    events::Publisher,
    retries::{Retries, RetryKey},
    status::{conditions::OWN_TYPES, transitions::occurrences},
    store::tap,
    validate::tap::Tap,
};

/// Why a status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of the {tap}")]
pub struct Error {
    tap: TapReference,
    source: kube::Error,
}

/// Shortest time between two writes of the status of a tap: pods that come and go by the second must not become as many writes, each
/// of which wakes everyone who watches taps.
const INTERVAL: SignedDuration = SignedDuration::from_secs(1);

/// When the status of each tap was last written, if that was less than [`INTERVAL`] ago.
#[derive(Debug, Default)]
pub struct LastWrites(BTreeMap<Uid, Timestamp>);

impl LastWrites {
    /// When the status of the tap may be written again, if not yet.
    fn due(&self, tap: &Uid, now: Timestamp) -> Option<Timestamp> {
        // A write in the future was before the clock was set back.
        let last = self.0.get(tap).filter(|last| **last <= now)?;
        Some(*last + INTERVAL).filter(|due| *due > now)
    }

    fn forget_old(&mut self, now: Timestamp) {
        self.0.retain(|_, last| *last <= now && *last + INTERVAL > now);
    }
}

/// The result of this stage.
#[derive(Debug, Default)]
pub struct Written {
    pub errors: Vec<Error>,
    /// When a status that was written too recently is due.
    pub next: Option<Timestamp>,
}

/// Writes the statuses that differ, and publishes an event for each transition.
pub async fn write(
    context: &Context,
    publisher: &Publisher,
    statuses: Vec<(&Tap, PodTapStatus)>,
    last_writes: &mut LastWrites,
    retries: &mut Retries,
    now: Timestamp,
) -> Written {
    last_writes.forget_old(now);
    let mut written = Written::default();
    let mut is_due = |tap: &Tap| {
        let due = last_writes.due(&tap.reference.uid, now);
        written.next = written.next.into_iter().chain(due).min();
        due.is_none() && !retries.is_paused(&RetryKey::Status(tap.reference.uid.clone()), now)
    };
    let changed: Vec<_> =
        statuses.into_iter().filter(|(tap, status)| differs(&tap.status, status) && is_due(tap)).collect();
    let attempts = changed.into_iter().map(|(tap, status)| async move {
        let result = write_status(context, &tap.reference, &status).await;
        if result.is_ok() {
            publisher.publish(&tap.reference, occurrences(&tap.status, &status));
        }
        (tap, result)
    });
    let attempts: Vec<_> = attempts.collect();
    let mut attempts = in_budget(attempts);
    while let Some((tap, result)) = attempts.next().await {
        let key = RetryKey::Status(tap.reference.uid.clone());
        match result {
            Ok(()) => {
                retries.succeeded(&key);
                last_writes.0.insert(tap.reference.uid.clone(), now);
            }
            // Deleted in the meantime.
            Err(source) if is_not_found(&source) => {}
            Err(source) => {
                retries.failed(key, now);
                written.errors.push(Error { tap: tap.reference.clone(), source });
            }
        }
    }
    written
}

/// Whether anything of ours differs; conditions of others do not count.
fn differs(old: &PodTapStatus, new: &PodTapStatus) -> bool {
    let own = |status: &PodTapStatus| -> Vec<Condition> {
        let find = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind).cloned();
        OWN_TYPES.into_iter().filter_map(find).collect()
    };
    let rest = |status: &PodTapStatus| PodTapStatus { conditions: Vec::new(), ..status.clone() };
    own(old) != own(new) || rest(old) != rest(new)
}

/// Server-side apply: fields that we no longer set are removed, and fields of others stay.
async fn write_status(context: &Context, tap: &TapReference, status: &PodTapStatus) -> Result<(), kube::Error> {
    let (api, resource) = (tap::api(&context.client, &tap.namespace), tap::resource(&tap.namespace));
    let object = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        // With the UID, the status never ends up on another object of the same name.
        "metadata": {"name": tap.name, "uid": tap.uid},
        "status": status,
    });
    let response = in_time(api.patch_status(&tap.name, &patch_params().force(), &Patch::Apply(object))).await?;
    context.caches.wrote_tap(response);
    Ok(())
}

#[cfg(test)]
mod tests;
