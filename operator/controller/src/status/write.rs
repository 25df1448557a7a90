//! Stage 6: tells the users. Nothing is sent that is already said.

use futures::{StreamExt as _, stream};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch},
    core::DeserializeGuard,
};
use podtap_api::{GROUP, PodTap, PodTapStatus, TapReference};
use serde_json::{Value, json};

use crate::{apply::objects::{CONCURRENCY, Context, is_not_found, parameters}, events::{Occurrence, occurrences, Publisher}, failure::Failure, reason, state::{ControllerState, RetryKey}, status::conditions::{condition, OURS, whole_seconds}, store::{cache::Entry, objects::CachedTap}, validate::tap::{reference, Tap}};
use podtap_runtime::client::in_time;

/// Why a status could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write the status of the PodTap {tap}")]
    Write { tap: String, source: kube::Error },
    #[error("cannot report that the PodTap {tap} is not understood")]
    Unreadable { tap: String, source: kube::Error },
}

/// Writes the statuses that differ from what the API server has, and publishes what has changed.
pub async fn report(
    context: &Context,
    publisher: &Publisher,
    statuses: Vec<(&Tap, PodTapStatus)>,
    state: &mut ControllerState,
    now: Timestamp,
) -> Vec<Error> {
    let is_due = |tap: &Tap| !state.retries.holds(&RetryKey::Status(tap.reference.uid.clone()), now);
    let changed: Vec<_> =
        statuses.into_iter().filter(|(tap, status)| differs(&tap.status, status) && is_due(tap)).collect();
    let attempts = changed.into_iter().map(|(tap, status)| async move {
        let result = write(context, &tap.reference, &status).await;
        if result.is_ok() {
            publisher.publish(&tap.reference, occurrences(&tap.status, &status)).await;
        }
        (tap, result)
    });
    let attempts: Vec<_> = attempts.collect();
    let mut attempts = stream::iter(attempts).buffer_unordered(CONCURRENCY);
    let mut errors = Vec::new();
    while let Some((tap, result)) = attempts.next().await {
        let key = RetryKey::Status(tap.reference.uid.clone());
        match result {
            Ok(()) => state.retries.succeeded(&key),
            // Deleted a moment ago.
            Err(source) if is_not_found(&source) => {}
            Err(source) => {
                state.retries.failed(key, now);
                let tap = format!("{}/{}", tap.reference.namespace, tap.reference.name);
                errors.push(Error::Write { tap, source });
            }
        }
    }
    errors
}

/// Whether anything of ours differs; conditions of others do not count.
fn differs(old: &PodTapStatus, new: &PodTapStatus) -> bool {
    let ours = |status: &PodTapStatus| -> Vec<Condition> {
        let find = |kind: &str| status.conditions.iter().find(|condition| condition.type_ == kind).cloned();
        OURS.into_iter().filter_map(find).collect()
    };
    let rest = |status: &PodTapStatus| PodTapStatus { conditions: Vec::new(), ..status.clone() };
    ours(old) != ours(new) || rest(old) != rest(new)
}

/// Server-side apply: what we do not mention any more goes, and what others wrote stays.
async fn write(context: &Context, tap: &TapReference, status: &PodTapStatus) -> Result<(), kube::Error> {
    let api: Api<DeserializeGuard<PodTap>> = Api::namespaced(context.client.clone(), &tap.namespace);
    let object = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": "PodTap",
        // The UID keeps the status from another object of the same name.
        "metadata": {"name": tap.name, "namespace": tap.namespace, "uid": tap.uid},
        "status": status,
    });
    let generations = in_time(api.patch_status(&tap.name, &parameters().force(), &Patch::Apply(object))).await?;
    context.caches.wrote_tap(generations);
    Ok(())
}

/// Tells the users of objects that cannot be read, once for each error.
pub async fn report_unreadable(
    context: &Context,
    publisher: &Publisher,
    unreadable: &[Entry<CachedTap>],
    state: &mut ControllerState,
    now: Timestamp,
) -> Vec<Error> {
    state.unreadable.retain(|uid, _| unreadable.iter().any(|entry| entry.fact.uid == *uid));
    let mut errors = Vec::new();
    for entry in unreadable {
        let (tap, Err(error)) = (reference(&entry.fact), &entry.fact.body) else { continue };
        let key = RetryKey::Status(tap.uid.clone());
        if state.unreadable.get(&tap.uid) == Some(error) || state.retries.holds(&key, now) {
            continue;
        }
        match write_unreadable(context, &entry.fact, error, now).await {
            Ok(occurrence) => {
                publisher.publish(&tap, occurrence.into_iter().collect()).await;
                state.retries.succeeded(&key);
                state.unreadable.insert(tap.uid, error.clone());
            }
            Err(source) => {
                state.retries.failed(key, now);
                errors.push(Error::Unreadable { tap: format!("{}/{}", tap.namespace, tap.name), source });
            }
        }
    }
    errors
}

/// A raw merge patch: server-side apply needs objects that fit the schema, which this one may not.
async fn write_unreadable(
    context: &Context,
    tap: &CachedTap,
    error: &str,
    now: Timestamp,
) -> Result<Option<Occurrence>, kube::Error> {
    let resource = ApiResource::erase::<PodTap>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &tap.namespace, &resource);
    let object = in_time(api.get(&tap.name)).await?;
    let old = object.data.pointer("/status/conditions").cloned().unwrap_or_else(|| json!([]));
    let conditions = unreadable_conditions(&old, tap.generation, error, now);
    if conditions == old {
        return Ok(None);
    }
    let patch = json!({
        "metadata": {"resourceVersion": object.metadata.resource_version},
        "status": {"observedGeneration": tap.generation, "conditions": conditions},
    });
    in_time(api.patch_status(&tap.name, &parameters(), &Patch::Merge(patch))).await?;
    Ok(Some(Occurrence { is_warning: true, reason: reason::INVALID_SPEC, note: unreadable_failure(error).message }))
}

fn unreadable_failure(error: &str) -> Failure {
    Failure::new(
        reason::INVALID_SPEC,
        format!(
            "the object is not understood by this version of PodTap, and nothing is copied: {error}. Correct the field, or write the object anew"
        ),
    )
}

/// Ours replaced, others kept as they are, whatever they are.
fn unreadable_conditions(old: &Value, generation: i64, error: &str, now: Timestamp) -> Value {
    let list = old.as_array().map(Vec::as_slice).unwrap_or_default();
    let readable: Vec<Condition> = list.iter().filter_map(|c| serde_json::from_value(c.clone()).ok()).collect();
    let is_ours =
        |condition: &&Value| condition.get("type").and_then(Value::as_str).is_some_and(|kind| OURS.contains(&kind));
    let ours = OURS
        .into_iter()
        .map(|kind| json!(condition(kind, Err(unreadable_failure(error)), generation, &readable, whole_seconds(now))));
    ours.chain(list.iter().filter(|condition| !is_ours(condition)).cloned()).collect()
}

#[cfg(test)]
mod tests;
