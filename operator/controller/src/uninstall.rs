//! Deletes every tap and waits until every node is clean, before PodTap itself is uninstalled.

use std::time::Duration;

use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams},
    core::PartialObjectMeta,
};
use podtap_api::{NodeTap, PodTap};
use podtap_runtime::client;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tracing::info;

/// Longer than the controller waits for a node that does not respond.
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
        "these remain: {0}. Check that the controller is running and that these nodes are ready. What remains on an unreachable node is removed when its helper pod runs again, or when the node is rebooted"
    )]
    Left(String),
}

/// Deletes every `PodTap`, and waits until the controller has cleaned up after all of them.
pub async fn run() -> Result<(), Error> {
    let (client, _) = client::connect().await?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = delete_all(&client).await?;
        let busy = busy_nodes(&client).await?;
        if left.is_empty() && busy.is_empty() {
            info!("no taps remain, and every node is clean");
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Left(left.into_iter().chain(busy).collect::<Vec<_>>().join(", ")));
        }
        sleep(PAUSE).await;
    }
}

/// Deletes each tap that is not being deleted yet. Returns the taps that still exist. Only their metadata is read, so that a tap that
/// cannot be decoded is deleted like any other.
async fn delete_all(client: &Client) -> Result<Vec<String>, kube::Error> {
    let taps: Api<PodTap> = Api::all(client.clone());
    let mut left = Vec::new();
    for tap in taps.list_metadata(&ListParams::default()).await? {
        let PartialObjectMeta { metadata, .. } = &tap;
        let (namespace, name) = (tap.namespace().unwrap_or_default(), tap.name_any());
        if metadata.deletion_timestamp.is_none() {
            info!(namespace, name, "deleting PodTap");
            let api: Api<PodTap> = Api::namespaced(client.clone(), &namespace);
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => continue,
                Err(error) => return Err(error),
            }
        }
        left.push(format!("PodTap {namespace}/{name}"));
    }
    Ok(left)
}

/// The nodes that have anything to do, or have not reported yet that they are clean. Nothing else is decoded, so that objects of another
/// version count, too.
async fn busy_nodes(client: &Client) -> Result<Vec<String>, kube::Error> {
    let nodes: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<NodeTap>(&()));
    let nodes = nodes.list(&ListParams::default()).await?;
    Ok(nodes.iter().filter(|node| is_busy(node)).map(|node| format!("NodeTap {}", node.name_any())).collect())
}

fn is_busy(node: &DynamicObject) -> bool {
    let has = |list: &str| node.data.pointer(list).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let observed = node.data.pointer("/status/observedGeneration").and_then(Value::as_i64);
    ["/spec/senders", "/spec/receivers", "/status/senders", "/status/receivers"].into_iter().any(has)
        || observed != node.metadata.generation
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_busy_until_its_helper_has_observed_that_nothing_is_requested() {
        let node = |spec: Value, status: Value| -> DynamicObject {
            let object = json!({"metadata": {"name": "n1", "generation": 3}, "spec": spec, "status": status});
            serde_json::from_value(object).expect("an object")
        };
        let clean = json!({"observedGeneration": 3, "senders": [], "receivers": []});
        assert!(!is_busy(&node(json!({"senders": []}), clean.clone())));
        assert!(is_busy(&node(json!({"senders": [{}]}), clean)));
        assert!(is_busy(&node(json!({}), json!({"observedGeneration": 2}))), "not observed yet");
        assert!(is_busy(&node(json!({}), json!({"observedGeneration": 3, "senders": [{}]}))), "being removed");
        assert!(is_busy(&node(json!({}), Value::Null)));
    }
}
