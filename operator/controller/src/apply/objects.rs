//! Stage 5: the plan becomes objects. Every error is collected; none stops what has nothing to do with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::DeserializeGuard,
};
use podtap_api::{FINALIZER, GROUP, NodeTap, NodeTapSpec, PodTap};
use serde_json::json;
use tracing::info;

use crate::{apply::helper_pod::HelperTemplate, failure::Failure, names, plan::{build::TapPlan, nodes::NodePlan}, reason, state::{ControllerState, RetryKey}, store::{objects::{CachedNodeTap, CachedPod}, snapshot::{self, Snapshot}, watch::Caches}};
use podtap_runtime::client::in_time;

/// How many requests are under way at the same time.
pub const CONCURRENCY: usize = 8;

/// Why an object could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write the NodeTap {node}")]
    WriteNodeTap { node: String, source: kube::Error },
    #[error("cannot delete the NodeTap {node}")]
    DeleteNodeTap { node: String, source: kube::Error },
    #[error("cannot create the helper pod of the node {node}")]
    CreateHelper { node: String, source: kube::Error },
    #[error("cannot delete the helper pod of the node {node}")]
    DeleteHelper { node: String, source: kube::Error },
    #[error("cannot add the finalizer to the PodTap {tap}")]
    AddFinalizer { tap: String, source: kube::Error },
}

/// What this stage works with.
#[derive(Clone)]
pub struct Context {
    pub client: Client,
    pub caches: Caches,
    pub template: HelperTemplate,
}

/// The state after this stage, of which only the status may speak.
#[derive(Debug)]
pub struct Applied {
    pub node_taps: BTreeMap<String, Arc<CachedNodeTap>>,
    /// Nodes whose helper pod does not run, and why.
    pub helper_failures: BTreeMap<String, Failure>,
    pub errors: Vec<Error>,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    WriteNodeTap { node: String, spec: NodeTapSpec },
    DeleteNodeTap { node: String, uid: String },
    CreateHelper { node: String, owner: String },
    DeleteHelper { node: String, name: String, uid: String, at_once: bool },
}

impl Action {
    fn key(&self) -> RetryKey {
        match self {
            Self::WriteNodeTap { node, .. } | Self::DeleteNodeTap { node, .. } => RetryKey::NodeTap(node.clone()),
            Self::CreateHelper { node, .. } | Self::DeleteHelper { node, .. } => RetryKey::Helper(node.clone()),
        }
    }
}

/// Gives each tap that is to be carried out its finalizer, before any node learns of it. Returns the UIDs of those
/// that could not get it and that no node knows yet, and the errors.
pub async fn secure(
    context: &Context,
    taps_: &[TapPlan<'_>],
    snapshot: &Snapshot,
    state: &mut ControllerState,
) -> (BTreeSet<String>, Vec<Error>) {
    let now = snapshot.now;
    let open = taps_.iter().filter(|o| o.is_executed() && !o.tap.finalizers.iter().any(|f| f == FINALIZER));
    let mut unsecured = BTreeSet::new();
    let mut errors = Vec::new();
    let attempts = open.filter(|tap| {
        let held = state.retries.holds(&RetryKey::Finalizers(tap.tap.reference.uid.clone()), now);
        if held {
            unsecured.insert(tap.tap.reference.uid.clone());
        }
        !held
    });
    let attempts: Vec<_> =
        attempts.map(|tap| async move { (tap.tap, add_finalizer(context, tap).await) }).collect();
    let mut attempts = stream::iter(attempts).buffer_unordered(CONCURRENCY);
    while let Some((tap, result)) = attempts.next().await {
        let key = RetryKey::Finalizers(tap.reference.uid.clone());
        match result {
            Ok(()) => state.retries.succeeded(&key),
            Err(source) => {
                unsecured.insert(tap.reference.uid.clone());
                // Deleted a moment ago: nothing to try again.
                if !is_not_found(&source) {
                    state.retries.failed(key, now);
                    let tap = format!("{}/{}", tap.reference.namespace, tap.reference.name);
                    errors.push(Error::AddFinalizer { tap, source });
                }
            }
        }
    }
    // Somebody took the finalizer off a tap that is at work: tearing that down would help nobody.
    unsecured.retain(|tap| !snapshot.node_taps.values().any(|node_tap| node_tap.mentions(tap)));
    (unsecured, errors)
}

async fn add_finalizer(context: &Context, tap: &TapPlan<'_>) -> Result<(), kube::Error> {
    let tap = tap.tap;
    let api: Api<DeserializeGuard<PodTap>> = Api::namespaced(context.client.clone(), &tap.reference.namespace);
    let finalizers: Vec<&str> = tap.finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
    // The version makes the API server refuse the list if somebody else has changed it in the meantime.
    let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": tap.version}});
    let object = in_time(api.patch(&tap.reference.name, &parameters(), &Patch::Merge(patch))).await?;
    context.caches.wrote_tap(object);
    Ok(())
}

/// Makes the cluster's objects what `plans` say.
pub async fn apply(
    context: &Context,
    snapshot: &Snapshot,
    plans: &BTreeMap<String, NodePlan>,
    state: &mut ControllerState,
) -> Applied {
    state.generations.look(&snapshot.node_taps);
    let node_taps = plans.iter().filter_map(|(node, plan)| node_tap_action(snapshot, node, plan)).collect();
    let mut errors = run(context, snapshot, node_taps, state).await;

    // A helper pod refers to the UID of its NodeTap, which may be as new as this pass.
    let node_taps = take_snapshot::node_taps(&context.caches);
    let template = context.template.hash();
    note_helpers(snapshot, state, &template);
    let helpers = plans.iter().filter_map(|(node, plan)| {
        let owner = node_taps.get(node).map(|node_tap| node_tap.uid.as_str());
        helper_action(snapshot.helpers.get(node).map(Arc::as_ref), node, plan, owner, &template)
    });
    errors.extend(run(context, snapshot, helpers.collect(), state).await);
    state.helper_failures.retain(|node, _| plans.contains_key(node));
    Applied { node_taps: take_snapshot::node_taps(&context.caches), helper_failures: state.helper_failures.clone(), errors }
}

fn node_tap_action(snapshot: &Snapshot, node: &str, plan: &NodePlan) -> Option<Action> {
    let current = snapshot.node_taps.get(node);
    match plan {
        NodePlan::Serve(spec) => (current.and_then(|fact| fact.spec.as_ref()) != Some(spec))
            .then(|| Action::WriteNodeTap { node: node.to_owned(), spec: spec.clone() }),
        // Its helper pod goes first.
        NodePlan::Retire if snapshot.helpers.contains_key(node) => None,
        NodePlan::Retire | NodePlan::Forget => {
            current.map(|fact| Action::DeleteNodeTap { node: node.to_owned(), uid: fact.uid.clone() })
        }
    }
}

fn helper_action(
    helper: Option<&CachedPod>,
    node: &str,
    plan: &NodePlan,
    owner: Option<&str>,
    template: &str,
) -> Option<Action> {
    let delete = |pod: &CachedPod, at_once| Action::DeleteHelper {
        node: node.to_owned(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        at_once,
    };
    match (plan, helper) {
        // Nobody would confirm that it has stopped.
        (NodePlan::Forget, Some(pod)) => Some(delete(pod, true)),
        // Gone soon; its name is free only then.
        (_, Some(pod)) if pod.terminating => None,
        (NodePlan::Retire, Some(pod)) => Some(delete(pod, false)),
        (NodePlan::Serve(_), Some(pod)) => {
            let is_current = pod.helper.as_ref().is_some_and(|h| h.template == template && h.ended.is_none());
            (!is_current).then(|| delete(pod, false))
        }
        (NodePlan::Serve(_), None) => {
            owner.map(|owner| Action::CreateHelper { node: node.to_owned(), owner: owner.to_owned() })
        }
        (NodePlan::Retire | NodePlan::Forget, None) => None,
    }
}

/// Takes note of how the helper pods are. A pod of an outdated template is about to be replaced: it says nothing.
fn note_helpers(snapshot: &Snapshot, state: &mut ControllerState, template: &str) {
    for (node, pod) in &snapshot.helpers {
        let Some(helper) = pod.helper.as_ref().filter(|helper| helper.template == template) else { continue };
        if let Some(container_error) = &helper.ended {
            // The next one is made after a growing pause.
            if !pod.terminating && !state.retries.holds(&RetryKey::Helper(node.clone()), snapshot.now) {
                state.retries.failed(RetryKey::Helper(node.clone()), snapshot.now);
            }
            state.helper_failures.insert(node.clone(), helper_failure(node, &container_error.reason, &container_error.message));
        } else if let Some(container_error) = &helper.container_error {
            state.helper_failures.insert(node.clone(), helper_failure(node, &container_error.reason, &container_error.message));
        } else if pod.ready {
            state.helper_failures.remove(node);
            state.retries.succeeded(&RetryKey::Helper(node.clone()));
        }
    }
}

fn helper_failure(node: &str, why: &str, message: &str) -> Failure {
    let cure = match why {
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
            "check that the node can pull PodTap's image (image, pullPolicy and imagePullSecrets of the chart)"
        }
        "OutOfcpu" | "OutOfmemory" | "OutOfpods" | "Evicted" => "make room on the node",
        _ => "look at the pod with kubectl describe and kubectl logs",
    };
    let message = if message.is_empty() { why.to_owned() } else { format!("{why}: {message}") };
    Failure::new(
        reason::HELPER_FAILED,
        format!("the helper pod {} of the node {node} does not run ({message}): {cure}", names::helper_pod(node)),
    )
}

async fn run(context: &Context, snapshot: &Snapshot, actions: Vec<Action>, state: &mut ControllerState) -> Vec<Error> {
    let now = snapshot.now;
    // An ended pod is in the way of the next one: it is deleted at once, and only its successor has to wait.
    let is_due = |action: &Action| {
        matches!(action, Action::DeleteHelper { .. }) || !state.retries.holds(&action.key(), now)
    };
    let due: Vec<Action> = actions.into_iter().filter(is_due).collect();
    let attempts: Vec<_> = due
        .into_iter()
        .map(|action| async {
            let result = execute(context, &action).await;
            (action, result)
        })
        .collect();
    let mut attempts = stream::iter(attempts).buffer_unordered(CONCURRENCY);
    let mut errors = Vec::new();
    while let Some((action, result)) = attempts.next().await {
        let key = action.key();
        match (result, action) {
            (Ok(Some(generations)), Action::WriteNodeTap { node, .. }) => {
                state.generations.note(snapshot.node_taps.get(&node).map(Arc::as_ref), &generations);
                state.retries.succeeded(&key);
            }
            // Whether the pod works is another question: its pauses end when it is ready.
            (Ok(_), Action::CreateHelper { .. } | Action::DeleteHelper { .. }) => {}
            (Ok(_), _) => state.retries.succeeded(&key),
            (Err(source), action) => {
                if let Some((node, failure)) = rejection(&action, &source) {
                    state.helper_failures.insert(node, failure);
                }
                state.retries.failed(key, now);
                errors.push(error(action, source));
            }
        }
    }
    errors
}

/// What the user is told when the API server does not take the helper pod.
fn rejection(action: &Action, error: &kube::Error) -> Option<(String, Failure)> {
    let (Action::CreateHelper { node, .. }, kube::Error::Api(status)) = (action, error) else { return None };
    if !(status.is_forbidden() || status.is_invalid()) {
        return None;
    }
    let cure = if status.message.contains("PodSecurity") {
        "the namespace of PodTap needs the label pod-security.kubernetes.io/enforce=privileged (other namespaces need nothing)"
    } else if status.message.contains("quota") {
        "raise the ResourceQuota of the namespace of PodTap"
    } else {
        "an admission rule of this cluster stands against it: make an exception for the namespace of PodTap"
    };
    let message = format!("the API server refuses the helper pod of the node {node} ({}): {cure}", status.message);
    Some((node.clone(), Failure::new(reason::HELPER_REJECTED, message)))
}

fn error(action: Action, source: kube::Error) -> Error {
    match action {
        Action::WriteNodeTap { node, .. } => Error::WriteNodeTap { node, source },
        Action::DeleteNodeTap { node, .. } => Error::DeleteNodeTap { node, source },
        Action::CreateHelper { node, .. } => Error::CreateHelper { node, source },
        Action::DeleteHelper { node, .. } => Error::DeleteHelper { node, source },
    }
}

/// Sends one request; what is already as wanted is a success.
async fn execute(context: &Context, action: &Action) -> Result<Option<CachedNodeTap>, kube::Error> {
    let Context { client, caches, template } = context;
    match action {
        Action::WriteNodeTap { node, spec } => {
            let api: Api<DeserializeGuard<NodeTap>> = Api::all(client.clone());
            let object = json!({
                "apiVersion": format!("{GROUP}/v1alpha1"),
                "kind": "NodeTap",
                "metadata": {"name": node},
                "spec": spec,
            });
            let generations = in_time(api.patch(node, &parameters().force(), &Patch::Apply(object))).await?;
            let fact = CachedNodeTap::from(generations.clone());
            info!(
                node,
                generation = fact.generation,
                senders = spec.senders.len(),
                receivers = spec.receivers.len(),
                "wrote NodeTap"
            );
            caches.wrote_node_tap(generations);
            Ok(Some(fact))
        }
        Action::DeleteNodeTap { node, uid } => {
            let api: Api<DeserializeGuard<NodeTap>> = Api::all(client.clone());
            if is_gone(in_time(api.delete(node, &only(uid))).await)? {
                caches.deleted_node_tap(node);
            }
            info!(node, "deleted NodeTap");
            Ok(None)
        }
        Action::CreateHelper { node, owner } => {
            let api: Api<Pod> = Api::namespaced(client.clone(), &template.namespace);
            let post = PostParams { field_manager: Some(names::CONTROLLER.to_owned()), ..PostParams::default() };
            match in_time(api.create(&post, &template.pod(node, owner))).await {
                Ok(pod) => {
                    caches.wrote_helper(pod, &template.namespace);
                    info!(node, "created helper pod");
                    Ok(None)
                }
                // The watch is behind, and will tell.
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
                Err(error) => Err(error),
            }
        }
        Action::DeleteHelper { node, name, uid, at_once } => {
            let api: Api<Pod> = Api::namespaced(client.clone(), &template.namespace);
            let mut parameters = only(uid);
            if *at_once {
                parameters.grace_period_seconds = Some(0);
            }
            is_gone(in_time(api.delete(name, &parameters)).await)?;
            info!(node, "deleted helper pod");
            Ok(None)
        }
    }
}

/// For every write of ours.
pub fn parameters() -> PatchParams {
    PatchParams::apply(names::CONTROLLER)
}

/// Only the object that was looked at, not another one that has its name by now.
fn only(uid: &str) -> DeleteParams {
    DeleteParams::background().preconditions(Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() })
}

/// Whether the API server says that there is no such object.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Whether the object is gone for sure.
fn is_gone<T>(result: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if is_not_found(&error) => Ok(true),
        // Another object of that name: the watch will tell.
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
