//! Adds the finalizer to taps, before any node learns of them.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use kube::api::Patch;
use podtap_api::FINALIZER;
use podtap_model::{TapReference, Uid};
use podtap_runtime::client::in_time;
use serde_json::json;

use crate::{
    apply::context::{Context, in_budget, is_not_found, patch_params},
    plan::tap_plan::TapPlan,
    retries::{Retries, RetryKey},
    store::{snapshot::Snapshot, tap},
    validate::tap::Tap,
};

/// Why a finalizer could not be added.
#[derive(Debug, thiserror::Error)]
#[error("cannot add the finalizer to the {tap}")]
pub struct Error {
    tap: TapReference,
    source: kube::Error,
}

/// The result of this stage.
#[derive(Debug, Default)]
pub struct Finalizers {
    /// Taps that have no finalizer and that no node knows yet.
    pub missing: BTreeSet<Uid>,
    pub errors: Vec<Error>,
}

/// Adds the finalizer to each tap that is to be carried out.
pub async fn add(context: &Context, taps: &[TapPlan<'_>], snapshot: &Snapshot, retries: &mut Retries) -> Finalizers {
    let now = snapshot.now;
    let mut result = Finalizers::default();
    let mut attempts = Vec::new();
    for plan in taps.iter().filter(|plan| plan.is_executed() && !plan.tap.finalizers.iter().any(|f| f == FINALIZER)) {
        let uid = &plan.tap.reference.uid;
        result.missing.insert(uid.clone());
        if !retries.is_paused(&RetryKey::Finalizers(uid.clone()), now) {
            attempts.push(async move { (plan.tap, patch(context, plan.tap).await) });
        }
    }
    let mut attempts = in_budget(attempts);
    while let Some((tap, attempt)) = attempts.next().await {
        let uid = &tap.reference.uid;
        let key = RetryKey::Finalizers(uid.clone());
        match attempt {
            Ok(()) => {
                result.missing.remove(uid);
                retries.succeeded(&key);
            }
            Err(source) => {
                // Deleted in the meantime: nothing to retry.
                if !is_not_found(&source) {
                    retries.failed(key, now);
                    result.errors.push(Error { tap: tap.reference.clone(), source });
                }
            }
        }
    }
    // Another client has removed the finalizer of a tap that is already mirroring. Stopping the tap would not help.
    if !result.missing.is_empty() {
        let known: BTreeSet<&str> = snapshot.node_taps.values().flat_map(|node_tap| node_tap.mentioned()).collect();
        result.missing.retain(|tap| !known.contains(&**tap));
    }
    result
}

async fn patch(context: &Context, tap: &Tap) -> Result<(), kube::Error> {
    let api = tap::api(&context.client, &tap.reference.namespace);
    let finalizers: Vec<&str> = tap.finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
    // The API server rejects the list if the object was changed since it was read.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": tap.version}});
    let object = in_time(api.patch(&tap.reference.name, &patch_params(), &Patch::Merge(patch))).await?;
    context.caches.wrote_tap(object);
    Ok(())
}
