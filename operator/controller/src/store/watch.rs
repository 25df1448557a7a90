//! Watches: they fill the caches from the API server and wake the leader when a cached object changes.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use podtap_api::{NodeTap, POLICY_NAME, PodTap, PodTapPolicy};
use tokio::{sync::Notify, task::JoinSet, time::sleep};
use tracing::{info, warn};

use crate::store::{
    cache::Cache,
    caches::Caches,
    node::{CachedNamespace, CachedNode, service_networks as project_service_networks},
    node_tap::CachedNodeTap,
    pod::CachedPod,
    tap::{CachedTap, cached_policy},
};

/// When a kind that the API server does not serve is listed again: it may have been upgraded.
const UNSERVED_PAUSE: Duration = Duration::from_secs(1800);

/// Keeps `caches` up to date for as long as the returned set lives.
pub fn spawn(client: &Client, caches: &Caches, own_namespace: &str) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let all = watcher::Config::default;
    let Caches { changed, taps, node_taps, policies, pods, nodes, namespaces, service_networks } = caches.clone();
    let notify = || Arc::clone(&changed);

    let api: Api<DeserializeGuard<PodTap>> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), taps, CachedTap::from, notify()));

    let api: Api<DeserializeGuard<NodeTap>> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), node_taps, CachedNodeTap::from, notify()));

    let api: Api<DeserializeGuard<PodTapPolicy>> = Api::all(client.clone());
    let only_default = all().fields(&format!("metadata.name={POLICY_NAME}"));
    tasks.spawn(follow(watcher(api, only_default), policies, cached_policy, notify()));

    let own_namespace = own_namespace.to_owned();
    let api: Api<Pod> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), pods, move |pod| CachedPod::new(pod, &own_namespace), notify()));

    let api: Api<Node> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), nodes, CachedNode::from, notify()));

    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), namespaces, CachedNamespace::from, notify()));

    let api: Api<ServiceCIDR> = Api::all(client.clone());
    tasks.spawn(follow_if_served(watcher(api, all()), service_networks, project_service_networks, notify()));

    tasks
}

/// Like [`follow`], for a kind that this API server may not serve. Until it does, the cache is empty and counts as synced.
async fn follow_if_served<K, T>(
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    cache: Cache<T>,
    project: impl Fn(K) -> T + Copy,
    changed: Arc<Notify>,
) where
    K: ResourceExt + Debug,
    T: PartialEq,
{
    let mut stream = std::pin::pin!(stream);
    loop {
        let mut is_served = true;
        let served = stream.as_mut().take_while(|event| {
            is_served = !event.as_ref().is_err_and(is_not_served);
            std::future::ready(is_served)
        });
        follow(served, cache.clone(), project, Arc::clone(&changed)).await;
        if is_served {
            // A watcher never ends; a test's stream does.
            return;
        }
        info!(kind = std::any::type_name::<K>(), "the API server does not serve this kind; continuing without it");
        cache.apply(Event::<K>::Init, project);
        if cache.apply(Event::<K>::InitDone, project) {
            changed.notify_one();
        }
        sleep(UNSERVED_PAUSE).await;
    }
}

/// Whether the API server does not know the kind, or the installed RBAC rules are older than this program.
fn is_not_served(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

async fn follow<K, T>(
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    cache: Cache<T>,
    project: impl Fn(K) -> T,
    changed: Arc<Notify>,
) where
    K: ResourceExt + Debug,
    T: PartialEq,
{
    // The stream restarts itself; the backoff protects an API server that keeps failing.
    let mut stream = std::pin::pin!(stream.default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if cache.apply(event, &project) {
                    changed.notify_one();
                }
            }
            Err(error) => {
                warn!(kind = std::any::type_name::<K>(), %error, "a watch was interrupted; restarting it");
            }
        }
    }
}

#[cfg(test)]
mod tests;
