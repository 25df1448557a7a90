//! Deletes every tap and waits until every node is clean and has nothing of PodTap left, before PodTap itself is uninstalled.
//!
//! The controller decides whether a node is clean. It sees the pod of this job, and then deletes each clean `NodeTap` at once and sweeps no
//! further nodes.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::{
    ClusterResourceScope,
    api::rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectList},
    core::PartialObjectMeta,
};
use podtap_api::{ClusterPodTap, NodeTap, PodTap};
use podtap_model::TapReference;
use podtap_runtime::client;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::{
    apply::{
        agent_account,
        context::{is_gone, is_not_found},
    },
    names,
    store::tap,
};

/// Longer than the controller waits for a node that does not respond, and than a helper pod takes to end.
const DEADLINE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(500);

/// Why taps remain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("cannot list or delete taps")]
    Api(#[from] kube::Error),
    #[error(
        "these remain: {0}. Check that the controller is running and that these nodes are ready, and uninstall again. If a node is gone for good: kubectl delete nodetap NODE. What mirrors on an unreachable node stops by itself when the orphanTimeout of the policy is over"
    )]
    Left(String),
}

/// Deletes every tap, and waits until the controller has cleaned up after all of them.
pub async fn run() -> Result<(), Error> {
    let (client, _) = client::connect().await?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = remaining(&client).await?;
        if left.is_empty() {
            info!("no taps remain, and every node is clean");
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Left(left.join(", ")));
        }
        sleep(PAUSE).await;
    }
}

/// What is still to go. Nothing but names is read, so that objects of another version count, too.
async fn remaining(client: &Client) -> Result<Vec<String>, kube::Error> {
    let taps = [delete_all::<ClusterPodTap>(client).await?, delete_all::<PodTap>(client).await?].concat();
    let left = [taps, node_taps(client).await?].concat();
    if !left.is_empty() {
        return Ok(left);
    }
    // The garbage collector would, too, but not once the definition of `NodeTap` is gone, and only minutes later if that is new to it.
    let roles = delete_of_agents::<ClusterRole>(client).await?;
    Ok([roles, delete_of_agents::<ClusterRoleBinding>(client).await?].concat())
}

/// Deletes each tap that is not being deleted yet. Returns the taps that existed. Only their metadata is read, so that a tap that
/// cannot be decoded is deleted like any other.
async fn delete_all<K: Resource<DynamicType = ()>>(client: &Client) -> Result<Vec<String>, kube::Error> {
    let taps = tap::all::<K>(client);
    let mut left = Vec::new();
    for PartialObjectMeta { metadata, .. } in existing(taps.list_metadata(&ListParams::default()).await)? {
        let uid = names::uid(&metadata);
        let (namespace, name) = (metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default());
        let reference = TapReference { namespace, name, uid };
        if metadata.deletion_timestamp.is_none() {
            info!(tap = %reference, "deleting");
            let api = tap::api(client, &reference.namespace);
            is_gone(api.delete(&reference.name, &DeleteParams::default()).await)?;
        }
        left.push(reference.to_string());
    }
    Ok(left)
}

/// The `NodeTap`s that exist. The controller deletes each when its node is clean, with the helper pod, the account and the role that belong
/// to it.
async fn node_taps(client: &Client) -> Result<Vec<String>, kube::Error> {
    let nodes: Api<NodeTap> = Api::all(client.clone());
    let nodes = existing(nodes.list_metadata(&ListParams::default()).await)?;
    Ok(nodes.iter().map(|node| format!("NodeTap {}", node.name_any())).collect())
}

/// Deletes what agents had outside of the namespace, and returns what that was.
async fn delete_of_agents<K>(client: &Client) -> Result<Vec<String>, kube::Error>
where
    K: kube::Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + Debug + DeserializeOwned,
{
    let labels = agent_account::labels().map(|(name, value)| format!("{name}={value}")).join(",");
    let api: Api<K> = Api::all(client.clone());
    let mut left = Vec::new();
    for object in existing(api.list_metadata(&ListParams::default().labels(&labels)).await)? {
        let (kind, name) = (K::kind(&()), object.name_any());
        info!(%kind, name, "deleting");
        is_gone(api.delete(&name, &DeleteParams::default()).await)?;
        left.push(format!("{kind} {name}"));
    }
    Ok(left)
}

/// The objects of a list; none without the definition of their kind.
fn existing<K: Clone>(
    list: Result<ObjectList<PartialObjectMeta<K>>, kube::Error>,
) -> Result<Vec<PartialObjectMeta<K>>, kube::Error> {
    match list {
        Ok(list) => Ok(list.items),
        Err(error) if is_not_found(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use podtap_runtime::fake_client;

    use super::*;

    const TAPS: &str = "/apis/podtap.dev/v1alpha1/podtaps";
    const NODE_TAPS: &str = "/apis/podtap.dev/v1alpha1/nodetaps";
    const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";

    fn api(lists: &'static [(&'static str, &'static str)]) -> Client {
        fake_client::client(move |method, path, _| async move {
            if method == http::Method::DELETE {
                return (http::StatusCode::OK, json!({"kind": "Status", "status": "Success"}));
            }
            let Some((_, name)) = lists.iter().find(|(list, _)| *list == path) else {
                let status =
                    json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""});
                return (http::StatusCode::NOT_FOUND, status);
            };
            let deleted = "2026-01-01T00:00:00Z";
            let item = json!({"metadata": {"name": name, "namespace": "shop", "deletionTimestamp": deleted}});
            let kind = "PartialObjectMetadataList";
            let list = json!({"apiVersion": "meta.k8s.io/v1", "kind": kind, "metadata": {}, "items": [item]});
            (http::StatusCode::OK, list)
        })
    }

    async fn left(lists: &'static [(&'static str, &'static str)]) -> Vec<String> {
        remaining(&api(lists)).await.expect("lists")
    }

    #[tokio::test]
    async fn it_waits_until_nothing_is_left() {
        assert_eq!(left(&[(TAPS, "web"), (NODE_TAPS, "n1")]).await, ["PodTap shop/web", "NodeTap n1"]);
        assert_eq!(left(&[(NODE_TAPS, "n1")]).await, ["NodeTap n1"]);
        assert_eq!(left(&[(BINDINGS, "podtap-agent-n1")]).await, ["ClusterRoleBinding podtap-agent-n1"]);
        assert_eq!(left(&[]).await, [""; 0], "the definitions may be gone");
    }
}
