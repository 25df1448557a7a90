//! Writes the `NodeTap`s and helper pods of a plan.

use std::{collections::BTreeMap, sync::Arc};

use futures::StreamExt as _;
use k8s_openapi::jiff::Timestamp;

use crate::{
    apply::{
        actions::{Action, helper_actions, node_tap_action},
        context::{Context, in_budget},
        execute::{Error, execute},
        helper_failures,
    },
    failure::Failure,
    plan::{
        helper_pods::{self, Unready},
        nodes::NodePlan,
        rollout::{self, Rollout},
    },
    state::ControllerState,
    store::{
        node_tap::CachedNodeTap,
        snapshot::{self, Snapshot},
    },
};

/// The objects after this stage. The status stage uses these, and not those of the snapshot.
#[derive(Debug, Default)]
pub struct Applied {
    pub node_taps: BTreeMap<String, Arc<CachedNodeTap>>,
    /// Nodes whose helper pod does not run, and why.
    pub helper_failures: BTreeMap<String, Failure>,
    pub rollout: Rollout,
    /// When to reconcile again even if nothing changes.
    pub next: Option<Timestamp>,
    pub errors: Vec<Error>,
}

/// Creates, updates and deletes the cluster's objects according to `plans`.
pub async fn apply(
    context: &Context,
    snapshot: &Snapshot,
    plans: &BTreeMap<String, NodePlan>,
    state: &mut ControllerState,
) -> Applied {
    state.generations.observe(&snapshot.node_taps);
    let node_taps = plans.iter().filter_map(|(node, plan)| node_tap_action(snapshot, node, plan)).collect();
    let mut errors = write_node_taps(context, snapshot, node_taps, state).await;

    // A helper pod refers to the UID of its NodeTap, which may have just been created.
    let node_taps = snapshot::node_taps(&context.caches);
    let template = context.template.hash();
    state.unready = helper_pods::unready(snapshot, plans, &template, &state.unready);
    helper_failures::observe(snapshot, &state.unready, &template, &mut state.helper_failures, &mut state.retries);
    let rollout = rollout::plan(snapshot, plans, &template, &state.unready, context.max_unavailable);
    let helpers = plans.iter().flat_map(|(node, plan)| {
        let owner = node_taps.get(node).map(|node_tap| node_tap.uid.as_str());
        helper_actions(snapshot.helpers_of(node), node, plan, owner, &template, rollout.replace.contains(node))
    });
    errors.extend(write_helpers(context, snapshot, helpers.collect(), state).await);
    state.helper_failures.retain(|node, _| plans.contains_key(node));
    let deadlines = state.unready.values().map(Unready::deadline);
    Applied {
        node_taps: snapshot::node_taps(&context.caches),
        helper_failures: state.helper_failures.clone(),
        rollout,
        next: deadlines.filter(|deadline| *deadline > snapshot.now).min(),
        errors,
    }
}

async fn write_node_taps(
    context: &Context,
    snapshot: &Snapshot,
    actions: Vec<Action>,
    state: &mut ControllerState,
) -> Vec<Error> {
    let due = actions.into_iter().filter(|action| !state.retries.is_paused(&action.retry_key(), snapshot.now));
    let attempts: Vec<_> = due
        .map(|action| async {
            let result = execute(context, &action).await;
            (action, result)
        })
        .collect();
    let mut attempts = in_budget(attempts);
    let mut errors = Vec::new();
    while let Some((action, result)) = attempts.next().await {
        let key = action.retry_key();
        match result {
            Ok(written) => {
                if let Some(written) = written {
                    state.generations.record(snapshot.node_taps.get(&written.name).map(Arc::as_ref), &written);
                }
                state.retries.succeeded(&key);
            }
            // The watch reports the newer object, or that it is gone, and wakes the next reconcile.
            Err(error) if is_cache_behind(&action, &error) => {}
            Err(source) => {
                state.retries.failed(key, snapshot.now);
                errors.push(Error::new(action, source));
            }
        }
    }
    errors
}

/// Whether the object has changed since the snapshot: another leader or a user wrote, created or deleted it.
fn is_cache_behind(action: &Action, error: &kube::Error) -> bool {
    match (action, error) {
        (Action::WriteNodeTap { version: None, .. }, kube::Error::Api(status)) => status.is_already_exists(),
        (Action::WriteNodeTap { .. }, kube::Error::Api(status)) => status.is_conflict() || status.is_not_found(),
        _ => false,
    }
}

/// Sends what is due, and records what has been answered. Requests that take long go on while the next reconciles run.
async fn write_helpers(
    context: &Context,
    snapshot: &Snapshot,
    actions: Vec<Action>,
    state: &mut ControllerState,
) -> Vec<Error> {
    let due = actions.into_iter().filter(|action| !state.retries.is_paused(&action.retry_key(), snapshot.now));
    let mut errors = Vec::new();
    for (action, result) in state.helper_requests.send(context, due).await {
        let Err(source) = result else {
            // That a pod exists does not mean that it runs: its pauses end when it is ready.
            if matches!(action, Action::DeleteHelper { .. }) {
                state.retries.succeeded(&action.retry_key());
            }
            continue;
        };
        if let Some((node, failure)) = helper_failures::rejection(&action, &source) {
            state.helper_failures.insert(node, failure);
        }
        state.retries.failed(action.retry_key(), snapshot.now);
        errors.push(Error::new(action, source));
    }
    errors
}
