//! What has to happen before `PodTap` itself is removed: no tap is left, and each node is clean.

use std::time::Duration;

use kube::{Api, Client, ResourceExt as _, api::DeleteParams, api::ListParams, core::PartialObjectMeta};
use podtap_api::{NodeTap, PodTap};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::client;

/// Longer than the controller takes for a node that does not answer.
const DEADLINE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(500);

/// Why taps are left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("cannot list or delete taps")]
    Api(#[from] kube::Error),
    #[error("these are left, though there was time: {0}. Is the controller running? kubectl -n podtap-system get pods")]
    Left(String),
}

/// Deletes every `PodTap` and waits until the controller has seen to it that none has left anything.
pub async fn run() -> Result<(), Error> {
    let client = client::connect().await?;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = delete_all(&client).await?;
        let busy = busy_nodes(&client).await?;
        if left.is_empty() && busy.is_empty() {
            info!("no tap is left, and every node is clean");
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Left(left.into_iter().chain(busy).collect::<Vec<_>>().join(", ")));
        }
        sleep(PAUSE).await;
    }
}

/// Asks for the deletion of each tap that is not being deleted; the taps that are still there. Only their metadata is read, so
/// that one that cannot be understood goes like any other.
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

/// The nodes that have work, or have not reported that it is gone. Those that are away are not waited for longer than the taps are.
async fn busy_nodes(client: &Client) -> Result<Vec<String>, kube::Error> {
    let nodes: Api<NodeTap> = Api::all(client.clone());
    let nodes = match nodes.list(&ListParams::default()).await {
        Ok(nodes) => nodes.items,
        Err(error) => {
            warn!(%error, "cannot read the NodeTaps; whether nodes are clean is not known");
            Vec::new()
        }
    };
    let busy = nodes.iter().filter(|node| !node.spec.senders.is_empty() || !node.spec.receivers.is_empty());
    Ok(busy.map(|node| format!("NodeTap {}", node.name_any())).collect())
}
