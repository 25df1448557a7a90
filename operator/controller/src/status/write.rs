//! Writes the statuses that differ from what the API server has.

use futures::StreamExt as _;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::{Api, api::Patch, core::DeserializeGuard};
use podtap_api::{GROUP, PodTap, PodTapStatus};
use podtap_model::TapReference;
use podtap_runtime::client::in_time;
use serde_json::json;

use crate::{
    apply::context::{Context, in_budget, is_not_found, patch_params},
    events::Publisher,
    retries::{Retries, RetryKey},
    status::{conditions::OWN_TYPES, transitions::occurrences},
    validate::tap::Tap,
};

/// Why a status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the status of the PodTap {tap}")]
pub struct Error {
    tap: String,
    source: kube::Error,
}

/// Writes the statuses that differ, and publishes an event for each transition.
pub async fn write(
    context: &Context,
    publisher: &Publisher,
    statuses: Vec<(&Tap, PodTapStatus)>,
    retries: &mut Retries,
    now: Timestamp,
) -> Vec<Error> {
    let is_due = |tap: &Tap| !retries.is_paused(&RetryKey::Status(tap.reference.uid.clone()), now);
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
    let mut errors = Vec::new();
    while let Some((tap, result)) = attempts.next().await {
        let key = RetryKey::Status(tap.reference.uid.clone());
        match result {
            Ok(()) => retries.succeeded(&key),
            // Deleted in the meantime.
            Err(source) if is_not_found(&source) => {}
            Err(source) => {
                retries.failed(key, now);
                let tap = format!("{}/{}", tap.reference.namespace, tap.reference.name);
                errors.push(Error { tap, source });
            }
        }
    }
    errors
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
    let api: Api<DeserializeGuard<PodTap>> = Api::namespaced(context.client.clone(), &tap.namespace);
    let object = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": "PodTap",
        // With the UID, the status never ends up on another object of the same name.
        "metadata": {"name": tap.name, "namespace": tap.namespace, "uid": tap.uid},
        "status": status,
    });
    let response = in_time(api.patch_status(&tap.name, &patch_params().force(), &Patch::Apply(object))).await?;
    context.caches.wrote_tap(response);
    Ok(())
}

#[cfg(test)]
mod tests;
