//! The caches of all kinds that the controller watches.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, api::DynamicObject, core::DeserializeGuard};
use podtap_api::NodeTap;
use podtap_model::TapReference;
use tokio::sync::Notify;

use crate::store::{
    cache::Cache,
    node::{CachedNamespace, CachedNode},
    node_tap::CachedNodeTap,
    pod::CachedPod,
    tap::{CachedPolicy, CachedTap},
};

/// One cache per watched kind. Clones share the caches.
#[derive(Clone, Debug)]
pub struct Caches {
    pub(super) changed: Arc<Notify>,
    /// Of namespaces.
    pub taps: Cache<CachedTap>,
    /// Of the cluster.
    pub cluster_taps: Cache<CachedTap>,
    pub node_taps: Cache<CachedNodeTap>,
    pub policies: Cache<CachedPolicy>,
    pub pods: Cache<CachedPod>,
    pub nodes: Cache<CachedNode>,
    pub namespaces: Cache<CachedNamespace>,
}

impl Caches {
    pub fn new() -> Self {
        Self {
            changed: Arc::new(Notify::new()),
            taps: Cache::new(),
            cluster_taps: Cache::new(),
            node_taps: Cache::new(),
            policies: Cache::new(),
            pods: Cache::new(),
            nodes: Cache::new(),
            namespaces: Cache::new(),
        }
    }

    /// Returns once every kind has been listed. Until then, an object that is not cached may exist.
    pub async fn wait_until_synced(&self) {
        let Self { changed: _, taps, cluster_taps, node_taps, policies, pods, nodes, namespaces } = self;
        taps.wait_until_synced().await;
        cluster_taps.wait_until_synced().await;
        node_taps.wait_until_synced().await;
        policies.wait_until_synced().await;
        pods.wait_until_synced().await;
        nodes.wait_until_synced().await;
        namespaces.wait_until_synced().await;
    }

    /// Returns as soon as a cached object has changed since the last call returned.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Records the response to a write of a tap's status or finalizers.
    pub fn wrote_tap(&self, object: DynamicObject) {
        let cache = self.taps_of(&object.namespace().unwrap_or_default());
        self.wake_if(cache.record_write(object, CachedTap::from, CachedTap::differs_only_in_own_fields));
    }

    /// The cache of the taps of a namespace or, if that is empty, of the cluster.
    fn taps_of(&self, namespace: &str) -> &Cache<CachedTap> {
        if namespace.is_empty() { &self.cluster_taps } else { &self.taps }
    }

    /// Records the response to a write of a `NodeTap` spec.
    pub fn wrote_node_tap(&self, object: DeserializeGuard<NodeTap>) {
        let is_ours = |known: &CachedNodeTap, new: &CachedNodeTap| known.status == new.status;
        self.wake_if(self.node_taps.record_write(object, CachedNodeTap::from, is_ours));
    }

    /// Records that a helper pod was created.
    pub fn created_helper(&self, pod: Pod, own_namespace: &str) {
        self.pods.record_write(pod, |pod| CachedPod::new(pod, own_namespace), |_, _| true);
    }

    /// Records that a helper pod is being deleted, by the response to the deletion. The watch reports when it is gone.
    pub fn deleting_helper(&self, pod: Pod, own_namespace: &str) {
        if pod.metadata.deletion_timestamp.is_some() {
            self.created_helper(pod, own_namespace);
        }
    }

    /// Records that our finalizer was removed from a tap.
    pub fn released_tap(&self, tap: &TapReference) {
        // No reconcile waits for this: the tap's resources were free before.
        self.taps_of(&tap.namespace).remove(&tap.namespace, &tap.name);
    }

    /// Records that a `NodeTap` was deleted, with everything in it.
    pub fn deleted_node_tap(&self, name: &str) {
        self.wake_if(self.node_taps.remove("", name));
    }

    fn wake_if(&self, changed: bool) {
        if changed {
            self.changed.notify_one();
        }
    }
}
