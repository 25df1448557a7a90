//! Sends one request.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PostParams},
    core::DeserializeGuard,
};
use podtap_api::{NodeTap, NodeTapSpec};
use podtap_model::NodeState;
use podtap_runtime::client::in_time;
use serde_json::json;
use tracing::info;

use crate::{
    apply::{
        actions::Action,
        agent_account::AgentAccount,
        context::{Context, delete_params, is_gone, patch_params},
    },
    names,
    plan::node_size::tap_helper_memory,
    store::node_tap::CachedNodeTap,
};

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
}

impl Error {
    pub fn new(action: Action, source: kube::Error) -> Self {
        match action {
            Action::WriteNodeTap { node, .. } => Self::WriteNodeTap { node, source },
            Action::DeleteNodeTap { node, .. } => Self::DeleteNodeTap { node, source },
            Action::CreateHelper { node, .. } => Self::CreateHelper { node, source },
            Action::DeleteHelper { node, .. } => Self::DeleteHelper { node, source },
        }
    }
}

/// Sends the request. It is a success if the object is already as requested. Returns the `NodeTap` that was written, if it was one.
pub async fn execute(context: &Context, action: &Action) -> Result<Option<CachedNodeTap>, kube::Error> {
    match action {
        Action::WriteNodeTap { node, version, spec } => {
            write_node_tap(context, node, version.as_deref(), spec).await.map(Some)
        }
        Action::DeleteNodeTap { node, uid } => delete_node_tap(context, node, uid).await.map(|()| None),
        Action::CreateHelper { node, owner } => create_helper(context, node, owner).await.map(|()| None),
        Action::DeleteHelper { node, name, uid, immediately } => {
            delete_helper(context, node, name, uid, *immediately).await.map(|()| None)
        }
    }
}

/// Creates it, or replaces the spec of that version of it. So a leader that was replaced without noticing overwrites nothing, and does not
/// bring back what its successor has deleted. Server-side apply would: it overwrites without a version, and creates whatever the version
/// (k8s.io/apiserver, pkg/endpoints/handlers/patch.go).
async fn write_node_tap(
    context: &Context,
    node: &str,
    version: Option<&str>,
    spec: &NodeState,
) -> Result<CachedNodeTap, kube::Error> {
    let response = if let Some(version) = version {
        let api: Api<DeserializeGuard<NodeTap>> = Api::all(context.client.clone());
        let operations = json!([
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            {"op": "replace", "path": "/spec", "value": spec},
        ]);
        let patch: Patch<()> = Patch::Json(serde_json::from_value(operations).map_err(kube::Error::SerdeError)?);
        // Otherwise, CRDs of another version would drop fields of the spec without an error.
        let params = patch_params().validation_strict();
        in_time(api.patch(node, &params, &patch)).await?
    } else {
        let api: Api<NodeTap> = Api::all(context.client.clone());
        let object = NodeTap::new(node, NodeTapSpec(spec.clone()));
        DeserializeGuard(Ok(in_time(api.create(&post_params(), &object)).await?))
    };
    let written = CachedNodeTap::from(response.clone());
    let (senders, receivers) = (spec.senders.len(), spec.receivers.len());
    info!(node, generation = written.generation, senders, receivers, "wrote NodeTap");
    context.caches.wrote_node_tap(response);
    Ok(written)
}

pub async fn delete_node_tap(context: &Context, node: &str, uid: &str) -> Result<(), kube::Error> {
    let api: Api<DeserializeGuard<NodeTap>> = Api::all(context.client.clone());
    if is_gone(in_time(api.delete(node, &delete_params(uid))).await)? {
        context.caches.deleted_node_tap(node);
    }
    info!(node, "deleted NodeTap");
    Ok(())
}

fn post_params() -> PostParams {
    PostParams { field_manager: Some(names::CONTROLLER.to_owned()), ..PostParams::default() }
}

async fn create_helper(context: &Context, node: &str, owner: &str) -> Result<(), kube::Error> {
    let Context { client, caches, template, .. } = context;
    let api: Api<Pod> = Api::namespaced(client.clone(), &template.namespace);
    AgentAccount::new(&template.namespace, node, owner).create(client).await?;
    let memory = tap_helper_memory(caches.nodes.get("", node).as_deref());
    let pod = in_time(api.create(&post_params(), &template.pod(node, owner, memory))).await?;
    info!(node, pod = pod.metadata.name, "created helper pod");
    caches.created_helper(pod, &template.namespace);
    Ok(())
}

async fn delete_helper(
    context: &Context,
    node: &str,
    name: &str,
    uid: &str,
    immediately: bool,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &context.template.namespace);
    let mut parameters = delete_params(uid);
    if immediately {
        parameters.grace_period_seconds = Some(0);
    }
    let deleted = in_time(api.delete(name, &parameters)).await;
    if let Some(pod) = deleted.as_ref().ok().and_then(|response| response.as_ref().left()) {
        context.caches.deleting_helper(pod.clone(), &context.template.namespace);
    }
    is_gone(deleted)?;
    info!(node, pod = name, "deleted helper pod");
    Ok(())
}
