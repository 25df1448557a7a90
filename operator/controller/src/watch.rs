//! Watches: what the API server says goes into the caches, and wakes the pass when it matters.

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

use super::{
    cache::Cache,
    facts::{self, NamespaceFact, NodeFact, NodeTapFact, PodFact, PolicyFact, TapFact, policy_fact},
    network::Network,
};

/// When a kind that is not served is asked for again: the API server may have been upgraded.
const UNSERVED_PAUSE: Duration = Duration::from_secs(1800);

/// All that is watched. Clones share one memory.
#[derive(Clone, Debug)]
pub struct Caches {
    changed: Arc<Notify>,
    pub taps: Cache<TapFact>,
    pub node_taps: Cache<NodeTapFact>,
    pub policies: Cache<PolicyFact>,
    pub pods: Cache<PodFact>,
    pub nodes: Cache<NodeFact>,
    pub namespaces: Cache<NamespaceFact>,
    pub service_networks: Cache<Vec<Network>>,
}

impl Caches {
    pub fn new() -> Self {
        Self {
            changed: Arc::new(Notify::new()),
            taps: Cache::new(),
            node_taps: Cache::new(),
            policies: Cache::new(),
            pods: Cache::new(),
            nodes: Cache::new(),
            namespaces: Cache::new(),
            service_networks: Cache::new(),
        }
    }

    /// Returns once every kind has been listed: before that, what is missing here may exist.
    pub async fn wait_until_synced(&self) {
        let Self { changed: _, taps, node_taps, policies, pods, nodes, namespaces, service_networks } = self;
        taps.wait_until_synced().await;
        node_taps.wait_until_synced().await;
        policies.wait_until_synced().await;
        pods.wait_until_synced().await;
        nodes.wait_until_synced().await;
        namespaces.wait_until_synced().await;
        service_networks.wait_until_synced().await;
    }

    /// Returns as soon as anything of interest has changed since this returned last.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes in the answer to a write of a tap's status or finalizers.
    pub fn wrote_tap(&self, object: DeserializeGuard<PodTap>) {
        self.wake_if(self.taps.wrote(object, TapFact::from, TapFact::differs_only_in_ours));
    }

    /// Takes in the answer to a write of a node's spec.
    pub fn wrote_node_tap(&self, object: DeserializeGuard<NodeTap>) {
        let is_ours = |known: &NodeTapFact, new: &NodeTapFact| known.status == new.status;
        self.wake_if(self.node_taps.wrote(object, NodeTapFact::from, is_ours));
    }

    /// Takes in that a helper pod was made.
    pub fn wrote_helper(&self, pod: Pod, own_namespace: &str) {
        self.pods.wrote(pod, |pod| PodFact::new(pod, own_namespace), |_, _| true);
    }

    /// Takes in that a tap has been let go.
    pub fn released_tap(&self, namespace: &str, name: &str) {
        // No pass is waiting for that: what it had was free before.
        self.taps.forget(namespace, name);
    }

    /// Takes in that a node's object was deleted, with all that it held.
    pub fn deleted_node_tap(&self, name: &str) {
        self.wake_if(self.node_taps.forget("", name));
    }

    fn wake_if(&self, changed: bool) {
        if changed {
            self.changed.notify_one();
        }
    }
}

/// Keeps `caches` up to date for as long as the returned set lives.
pub fn spawn(client: &Client, caches: &Caches, own_namespace: &str) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let all = watcher::Config::default;
    let Caches { changed, taps, node_taps, policies, pods, nodes, namespaces, service_networks } = caches.clone();
    let notify = || Arc::clone(&changed);

    let api: Api<DeserializeGuard<PodTap>> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), taps, TapFact::from, notify()));

    let api: Api<DeserializeGuard<NodeTap>> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), node_taps, NodeTapFact::from, notify()));

    let api: Api<DeserializeGuard<PodTapPolicy>> = Api::all(client.clone());
    let only_one = all().fields(&format!("metadata.name={POLICY_NAME}"));
    tasks.spawn(follow(watcher(api, only_one), policies, policy_fact, notify()));

    let own_namespace = own_namespace.to_owned();
    let api: Api<Pod> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), pods, move |pod| PodFact::new(pod, &own_namespace), notify()));

    let api: Api<Node> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), nodes, NodeFact::from, notify()));

    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    tasks.spawn(follow(watcher(api, all()), namespaces, NamespaceFact::from, notify()));

    let api: Api<ServiceCIDR> = Api::all(client.clone());
    tasks.spawn(follow_if_served(watcher(api, all()), service_networks, facts::service_networks, notify()));

    tasks
}

/// As [`follow`], for a kind that this API server may not have: then there is none of it, until some later time.
async fn follow_if_served<K, T>(
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    cache: Cache<T>,
    fact: impl Fn(K) -> T + Copy,
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
        follow(served, cache.clone(), fact, Arc::clone(&changed)).await;
        if is_served {
            // A watcher has no end; a test's stream has.
            return;
        }
        info!(kind = std::any::type_name::<K>(), "this API server does not let us watch it: done without");
        cache.take(Event::<K>::Init, fact);
        if cache.take(Event::<K>::InitDone, fact) {
            changed.notify_one();
        }
        sleep(UNSERVED_PAUSE).await;
    }
}

/// Whether the API server does not know the kind, or the installation's rights are older than this program.
fn is_not_served(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

async fn follow<K, T>(
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    cache: Cache<T>,
    fact: impl Fn(K) -> T,
    changed: Arc<Notify>,
) where
    K: ResourceExt + Debug,
    T: PartialEq,
{
    // The stream starts over by itself; the growing pause keeps a broken API server from being hammered.
    let mut stream = std::pin::pin!(stream.default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if cache.take(event, &fact) {
                    changed.notify_one();
                }
            }
            Err(error) => {
                warn!(kind = std::any::type_name::<K>(), %error, "a watch was interrupted, and is started again");
            }
        }
    }
}

#[cfg(test)]
mod tests;
