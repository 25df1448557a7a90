//! Watches: they fill the caches from the API server and wake the leader when a cached object changes.

use std::{fmt::Debug, sync::Arc};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use podtap_api::{ClusterPodTap, NodeTap, POLICY_NAME, PodTap, PodTapPolicy};
use tokio::{sync::Notify, task::JoinSet};
use tracing::warn;

use crate::store::{
    cache::Cache,
    caches::Caches,
    node::{CachedNamespace, CachedNode},
    node_tap::CachedNodeTap,
    pod::CachedPod,
    tap::{self, CachedTap, cached_policy},
};

/// Keeps `caches` up to date for as long as the returned set lives.
pub fn spawn(client: &Client, caches: &Caches, own_namespace: &str) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let all = watcher::Config::default;
    let Caches { changed, taps, cluster_taps, node_taps, policies, pods, nodes, namespaces } = caches.clone();
    let notify = || Arc::clone(&changed);

    tasks.spawn(follow(watcher(tap::all::<PodTap>(client), all()), taps, CachedTap::from, notify()));
    let cluster_scoped = watcher(tap::all::<ClusterPodTap>(client), all());
    tasks.spawn(follow(cluster_scoped, cluster_taps, CachedTap::from, notify()));

    let api: Api<DeserializeGuard<NodeTap>> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), node_taps, CachedNodeTap::from, notify()));

    let api: Api<DeserializeGuard<PodTapPolicy>> = Api::all(client.clone());
    let only_default = all().fields(&format!("metadata.name={POLICY_NAME}"));
    tasks.spawn(follow(watcher(api, only_default), policies, cached_policy, notify()));

    let own_namespace = own_namespace.to_owned();
    let api: Api<Pod> = Api::all(client.clone());
    let own = own_namespace.clone();
    tasks.spawn(follow(watcher(api, all()), pods, move |pod| CachedPod::new(pod, &own), notify()));

    let api: Api<Node> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), nodes, CachedNode::from, notify()));

    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let project = move |namespace| CachedNamespace::new(namespace, &own_namespace);
    tasks.spawn(follow(watcher(api, all()), namespaces, project, notify()));

    tasks
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
