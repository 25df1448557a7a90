//! Reports objects that cannot be decoded, in their own status.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use kube::api::Patch;
use podtap_model::{Reason, TapReference, Uid};
use podtap_runtime::client::in_time;
use serde_json::{Value, json};

use crate::{
    apply::context::{Context, in_budget, patch_params},
    events::{Occurrence, Publisher},
    failure::Failure,
    retries::{Retries, RetryKey},
    status::{
        conditions::{OWN_TYPES, condition},
        tap_status::whole_seconds,
    },
    store::{
        cache::Entry,
        tap::{self, CachedTap, DecodeError},
    },
};

/// Why the status could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot report that the {tap} cannot be decoded")]
pub struct Error {
    tap: TapReference,
    source: kube::Error,
}

/// How many taps one reconcile reports. Each takes two requests, and any tenant can have many.
const MAX_REPORTS: usize = 64;

/// The result of this stage.
#[derive(Debug, Default)]
pub struct Reported {
    pub errors: Vec<Error>,
    /// When those are due for which there was no time.
    pub next: Option<Timestamp>,
}

/// Reports each decoding error once. `reported` has the last one of each tap.
pub async fn report(
    context: &Context,
    publisher: &Publisher,
    unreadable: &[Entry<CachedTap>],
    reported: &mut BTreeMap<Uid, DecodeError>,
    retries: &mut Retries,
    now: Timestamp,
) -> Reported {
    let uids: BTreeSet<&Uid> = unreadable.iter().map(|entry| &entry.object.reference.uid).collect();
    reported.retain(|uid, _| uids.contains(uid));
    let is_due = |tap: &CachedTap, error: &DecodeError| {
        reported.get(&tap.reference.uid) != Some(error)
            && !retries.is_paused(&RetryKey::Status(tap.reference.uid.clone()), now)
    };
    let errors = unreadable.iter().filter_map(|entry| Some((&*entry.object, entry.object.body.as_ref().err()?)));
    let due: Vec<_> = errors.filter(|(tap, error)| is_due(tap, error)).collect();
    let attempts = due.iter().take(MAX_REPORTS).map(|&(tap, error)| async move {
        let result = write(context, tap, error, now).await;
        (tap, error, result)
    });
    let attempts: Vec<_> = attempts.collect();
    let mut attempts = in_budget(attempts);
    let (mut errors, mut attempted) = (Vec::new(), 0);
    while let Some((tap, error, result)) = attempts.next().await {
        attempted += 1;
        let key = RetryKey::Status(tap.reference.uid.clone());
        match result {
            Ok(occurrence) => {
                publisher.publish(&tap.reference, occurrence);
                retries.succeeded(&key);
                reported.insert(tap.reference.uid.clone(), error.clone());
            }
            Err(source) => {
                retries.failed(key, now);
                errors.push(Error { tap: tap.reference.clone(), source });
            }
        }
    }
    Reported { errors, next: (attempted < due.len()).then_some(now) }
}

/// Sends a raw merge patch: server-side apply needs objects that fit the schema, which this one may not.
async fn write(
    context: &Context,
    tap: &CachedTap,
    error: &DecodeError,
    now: Timestamp,
) -> Result<Option<Occurrence>, kube::Error> {
    let api = tap::api(&context.client, &tap.reference.namespace);
    let object = in_time(api.get(&tap.reference.name)).await?;
    let old = object.data.pointer("/status/conditions").cloned().unwrap_or_else(|| json!([]));
    let conditions = conditions(&old, tap.generation, error, now);
    if conditions == old {
        return Ok(None);
    }
    let patch = json!({
        "metadata": {"resourceVersion": object.metadata.resource_version},
        "status": {"observedGeneration": tap.generation, "conditions": conditions},
    });
    in_time(api.patch_status(&tap.reference.name, &patch_params(), &Patch::Merge(patch))).await?;
    Ok(Some(Occurrence { is_warning: true, reason: Reason::InvalidSpec, note: failure(error).message }))
}

fn failure(error: &DecodeError) -> Failure {
    Failure::new(
        Reason::InvalidSpec,
        format!(
            "this version of PodTap cannot decode the object, and nothing is mirrored: {error}. Correct the field, or recreate the object"
        ),
    )
}

/// Our conditions replaced, others kept as they are, whatever they are.
fn conditions(old: &Value, generation: i64, error: &DecodeError, now: Timestamp) -> Value {
    let list = old.as_array().map(Vec::as_slice).unwrap_or_default();
    let readable: Vec<Condition> = list.iter().filter_map(|c| serde_json::from_value(c.clone()).ok()).collect();
    let is_own = |condition: &&Value| {
        condition.get("type").and_then(Value::as_str).is_some_and(|kind| OWN_TYPES.contains(&kind))
    };
    let own = OWN_TYPES
        .into_iter()
        .map(|kind| json!(condition(kind, Err(failure(error)), generation, &readable, whole_seconds(now))));
    own.chain(list.iter().filter(|condition| !is_own(condition)).cloned()).collect()
}

#[cfg(test)]
mod tests;
