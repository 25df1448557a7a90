//! The end of a tap: its finalizer goes when every node is clean. Never looks at a spec, so that objects that cannot be
//! read, or were never carried out, end just the same.
//!
//! # Guarantees
//! Deleting always ends: a node that is away blocks nothing, and any other one blocks for [`DEADLINE`] at most. What is left
//! on a node goes when its helper returns: its `NodeTap` does not list the tap any more.

use std::collections::BTreeMap;

use futures::{StreamExt as _, stream};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Api, api::Patch, core::PartialObjectMeta};
use podtap_api::{FINALIZER, PodTap};
use serde_json::json;

use crate::{apply::objects::{Applied, CONCURRENCY, Context, is_not_found, parameters}, events::{Occurrence, Publisher}, reason, state::{ControllerState, RetryKey, Generations}, store::{cache::Entry, objects::{CachedNodeTap, CachedTap}, snapshot::Snapshot}, validate::tap::reference};
use podtap_runtime::client::in_time;

/// How long nodes have, counted from the deletion.
const DEADLINE: SignedDuration = SignedDuration::from_secs(30);

/// Why the finalizer of a tap could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove the finalizer of the PodTap {tap}")]
pub struct Error {
    tap: String,
    source: kube::Error,
}

/// What is to be of a tap that is being deleted.
#[derive(Clone, Debug, PartialEq)]
enum Verdict {
    /// Nothing is left.
    Release,
    /// Nodes are at work; at the latest then it is over.
    Wait(Timestamp),
    /// These nodes have not reported in time.
    Abandon(Vec<String>),
}

/// The result of this stage.
#[derive(Debug, Default)]
pub struct Removed {
    pub errors: Vec<Error>,
    /// When to look again although nothing changes.
    pub next: Option<Timestamp>,
}

/// Removes our finalizer from the taps whose nodes are clean.
pub async fn finish(
    context: &Context,
    publisher: &Publisher,
    snapshot: &Snapshot,
    applied: &Applied,
    deleting: &[Entry<CachedTap>],
    state: &mut ControllerState,
) -> Removed {
    let now = snapshot.now;
    let mut finished = Removed::default();
    let mut attempts = Vec::new();
    for entry in deleting.iter().filter(|entry| entry.fact.finalizers.iter().any(|f| f == FINALIZER)) {
        let verdict = verdict(&entry.fact, snapshot, applied, &state.generations);
        if let Verdict::Wait(until) = verdict {
            finished.next = Some(finished.next.map_or(until, |next| next.min(until)));
        } else if !state.retries.holds(&RetryKey::Finalizers(entry.fact.uid.clone()), now) {
            attempts.push(async move {
                if let Verdict::Abandon(nodes) = verdict {
                    publisher.publish(&reference(&entry.fact), vec![abandoned(&nodes)]).await;
                }
                (entry, release(context, entry).await)
            });
        }
    }
    let mut attempts = stream::iter(attempts).buffer_unordered(CONCURRENCY);
    while let Some((entry, result)) = attempts.next().await {
        let key = RetryKey::Finalizers(entry.fact.uid.clone());
        match result {
            Err(source) if !is_not_found(&source) => {
                state.retries.failed(key, now);
                finished.errors.push(Error { tap: format!("{}/{}", entry.fact.namespace, entry.fact.name), source });
            }
            _ => {
                state.retries.succeeded(&key);
                state.generations.forget_tap(&entry.fact.uid);
            }
        }
    }
    finished
}

fn verdict(tap: &CachedTap, snapshot: &Snapshot, applied: &Applied, generations: &Generations) -> Verdict {
    let busy: Vec<String> = applied
        .node_taps
        .values()
        .filter(|node_tap| snapshot.nodes.get(&node_tap.name).is_some_and(|node| node.ready))
        .filter(|node_tap| !is_clean(node_tap, &tap.uid, generations, &applied.helper_failures))
        .map(|node_tap| node_tap.name.clone())
        .collect();
    let deadline = tap.deleting.unwrap_or(snapshot.now) + DEADLINE;
    if busy.is_empty() {
        Verdict::Release
    } else if snapshot.now < deadline {
        Verdict::Wait(deadline)
    } else {
        Verdict::Abandon(busy)
    }
}

fn is_clean<T>(node_tap: &CachedNodeTap, tap: &str, generations: &Generations, helper_failures: &BTreeMap<String, T>) -> bool {
    if node_tap.status.observed_generation.is_none() && helper_failures.contains_key(&node_tap.name) {
        // No helper has ever run there.
        return node_tap.spec.is_some() && !node_tap.mentions(tap);
    }
    let needed = generations.needed(node_tap, tap);
    // Zero: the object was made by this process, and never had this tap in it.
    !node_tap.mentions(tap) && (needed == 0 || node_tap.has_observed(needed))
}

fn abandoned(nodes: &[String]) -> Occurrence {
    Occurrence {
        is_warning: true,
        reason: reason::CLEANUP_ABANDONED,
        note: format!(
            "{} did not report within {} s that the tap is gone; its helper pod removes what is left as soon as it can (kubectl get nodetap {})",
            nodes.join(", "),
            DEADLINE.as_secs(),
            nodes.join(" "),
        ),
    }
}

async fn release(context: &Context, entry: &Entry<CachedTap>) -> Result<(), kube::Error> {
    let tap = &entry.fact;
    let api: Api<PodTap> = Api::namespaced(context.client.clone(), &tap.namespace);
    let finalizers: Vec<&String> = tap.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    // The version makes the API server refuse the list if somebody else has changed it in the meantime.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": entry.version}});
    let _: PartialObjectMeta<PodTap> =
        in_time(api.patch_metadata(&tap.name, &parameters(), &Patch::Merge(patch))).await?;
    // Where somebody else's finalizer keeps it, the watch brings it back.
    context.caches.released_tap(&tap.namespace, &tap.name);
    Ok(())
}

#[cfg(test)]
mod tests;
