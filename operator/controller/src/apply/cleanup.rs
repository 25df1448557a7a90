//! Removes the finalizer of a deleted tap when every node is clean. Never looks at a spec, so that objects that cannot be decoded, or
//! were never carried out, are deleted in the same way.
//!
//! # Guarantees
//! Deletion always ends: a node that is not ready blocks nothing, and any other node blocks for [`DEADLINE`] at most. No clock affects
//! that: the leader counts from when it first sees the deletion, so that nodes have the whole time also if no controller ran for a while.
//! What is left on a node is removed when its helper pod runs again: its `NodeTap` does not list the tap any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::{
    api::{DynamicObject, Patch},
    core::PartialObjectMeta,
};
use podtap_api::FINALIZER;
use podtap_model::{Reason, TapReference, Uid};
use podtap_runtime::client::in_time;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    apply::{
        context::{Context, in_budget, is_not_found, patch_params},
        objects::Applied,
    },
    events::{Occurrence, Publisher},
    retries::RetryKey,
    state::ControllerState,
    store::{
        cache::Entry,
        generations::Generations,
        node_tap::{CachedNodeTap, mentions},
        snapshot::Snapshot,
        tap::{self, CachedTap},
    },
};

/// How long nodes have to clean up.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a finalizer could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove the finalizer of the {tap}")]
pub struct Error {
    tap: TapReference,
    source: kube::Error,
}

/// What happens to the finalizer.
#[derive(Clone, Debug, PartialEq)]
enum Decision {
    /// Every node is clean: it is removed.
    Remove,
    /// Nodes are cleaning up; it is removed after this time at the latest.
    Wait(Duration),
    /// These nodes have not reported in time: it is removed.
    Abandon(Vec<String>),
}

/// The result of this stage.
#[derive(Debug, Default)]
pub struct Cleanup {
    pub errors: Vec<Error>,
    /// When to reconcile again even if nothing changes.
    pub next: Option<Timestamp>,
}

/// Removes our finalizer from the deleted taps whose nodes are clean.
pub async fn remove_finalizers(
    context: &Context,
    publisher: &Publisher,
    snapshot: &Snapshot,
    applied: &Applied,
    deleting: &[Entry<CachedTap>],
    state: &mut ControllerState,
) -> Cleanup {
    let now = snapshot.now;
    let mut cleanup = Cleanup::default();
    let mut attempts = Vec::new();
    let uids: BTreeSet<&Uid> = deleting.iter().map(|entry| &entry.object.reference.uid).collect();
    state.deleting_since.retain(|tap, _| uids.contains(tap));
    if deleting.is_empty() {
        return cleanup;
    }
    // Found once for all taps: an object can have thousands of entries.
    let mentions = mentions(&applied.node_taps);
    for entry in deleting.iter().filter(|entry| entry.object.finalizers.iter().any(|f| f == FINALIZER)) {
        let since = *state.deleting_since.entry(entry.object.reference.uid.clone()).or_insert_with(Instant::now);
        let decision = decide(&entry.object, since.elapsed(), snapshot, applied, &mentions, &state.generations);
        if let Decision::Wait(rest) = decision {
            let until = now.checked_add(rest).unwrap_or(Timestamp::MAX);
            cleanup.next = Some(cleanup.next.map_or(until, |next| next.min(until)));
        } else if !state.retries.is_paused(&RetryKey::Finalizers(entry.object.reference.uid.clone()), now) {
            attempts.push(async move {
                if let Decision::Abandon(nodes) = decision {
                    publisher.publish(&entry.object.reference, [abandoned(&nodes)]);
                }
                (entry, remove_finalizer(context, entry).await)
            });
        }
    }
    let mut attempts = in_budget(attempts);
    while let Some((entry, result)) = attempts.next().await {
        let tap = &entry.object;
        let key = RetryKey::Finalizers(tap.reference.uid.clone());
        match result {
            Err(source) if !is_not_found(&source) => {
                state.retries.failed(key, snapshot.now);
                cleanup.errors.push(Error { tap: tap.reference.clone(), source });
            }
            _ => {
                state.retries.succeeded(&key);
                state.generations.forget_tap(&tap.reference.uid);
            }
        }
    }
    cleanup
}

/// `waited` is for how long the tap is known to be deleted.
fn decide(
    tap: &CachedTap,
    waited: Duration,
    snapshot: &Snapshot,
    applied: &Applied,
    mentions: &BTreeSet<(&str, &str)>,
    generations: &Generations,
) -> Decision {
    let mentions_tap = |node_tap: &CachedNodeTap| mentions.contains(&(&*tap.reference.uid, node_tap.name.as_str()));
    let busy: Vec<String> = applied
        .node_taps
        .values()
        .filter(|node_tap| snapshot.nodes.get(&node_tap.name).is_some_and(|node| node.ready))
        .filter(|node_tap| {
            !is_clean(node_tap, &tap.reference.uid, mentions_tap(node_tap), generations, &applied.helper_failures)
        })
        .map(|node_tap| node_tap.name.clone())
        .collect();
    let rest = DEADLINE.saturating_sub(waited);
    if busy.is_empty() {
        Decision::Remove
    } else if rest.is_zero() {
        Decision::Abandon(busy)
    } else {
        Decision::Wait(rest)
    }
}

fn is_clean<T>(
    node_tap: &CachedNodeTap,
    tap: &str,
    is_mentioned: bool,
    generations: &Generations,
    helper_failures: &BTreeMap<String, T>,
) -> bool {
    if node_tap.status.observed_generation.is_none() && helper_failures.contains_key(&node_tap.name) {
        // No helper pod has ever run there.
        return node_tap.spec.is_some() && !is_mentioned;
    }
    let required = generations.required(node_tap, tap);
    // Zero: this process created the object, and it never had this tap.
    !is_mentioned && (required == 0 || node_tap.has_observed(required))
}

fn abandoned(nodes: &[String]) -> Occurrence {
    Occurrence {
        is_warning: true,
        reason: Reason::CleanupAbandoned,
        note: format!(
            "{} did not report within {} s that the tap is gone; its helper pod removes what is left as soon as it can. Ask the cluster's administrator what is wrong with it",
            nodes.join(", "),
            DEADLINE.as_secs(),
        ),
    }
}

async fn remove_finalizer(context: &Context, entry: &Entry<CachedTap>) -> Result<(), kube::Error> {
    let tap = &entry.object;
    let api = tap::api(&context.client, &tap.reference.namespace);
    let finalizers: Vec<&String> = tap.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    // The API server rejects the list if the object was changed since it was read.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": entry.version}});
    let _: PartialObjectMeta<DynamicObject> =
        in_time(api.patch_metadata(&tap.reference.name, &patch_params(), &Patch::Merge(patch))).await?;
    // If another finalizer keeps the object, the watch brings it back.
    context.caches.released_tap(&tap.reference);
    Ok(())
}

#[cfg(test)]
mod tests;
