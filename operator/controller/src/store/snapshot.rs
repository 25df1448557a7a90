//! What one reconcile works with: the contents of all caches at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;

use crate::{
    expression::compiled::Expressions,
    store::{
        cache::{Cache, Entry},
        caches::Caches,
        node::{CachedNamespace, CachedNode},
        node_tap::CachedNodeTap,
        pod::CachedPod,
        tap::{CachedPolicy, CachedTap},
    },
};

/// The cluster as one reconcile sees it: plain, sorted data, so that the pure stages give the same result for the same cluster.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub now: Timestamp,
    pub policy: Option<Arc<CachedPolicy>>,
    /// By namespace, sorted by name.
    pub pods: BTreeMap<String, Vec<Arc<CachedPod>>>,
    /// Helper pods by node; `pods` has them, too.
    pub helpers: BTreeMap<String, Arc<CachedPod>>,
    pub nodes: BTreeMap<String, Arc<CachedNode>>,
    pub node_taps: BTreeMap<String, Arc<CachedNodeTap>>,
    /// Namespaces that have opted out.
    pub excluded_namespaces: BTreeSet<String>,
    /// Sorted by namespace and name.
    pub taps: Vec<Entry<CachedTap>>,
    /// The compiled filter expressions.
    pub expressions: Expressions,
}

impl Snapshot {
    /// Reads the caches. Sends no request.
    pub fn take(caches: &Caches, expressions: &Expressions, now: Timestamp) -> Self {
        let mut pods: BTreeMap<String, Vec<Arc<CachedPod>>> = BTreeMap::new();
        let mut helpers = BTreeMap::new();
        for entry in caches.pods.list() {
            if let (Some(_), Some(node)) = (&entry.object.helper, &entry.object.node) {
                helpers.insert(node.clone(), Arc::clone(&entry.object));
            }
            match pods.get_mut(&entry.object.namespace) {
                Some(list) => list.push(entry.object),
                None => drop(pods.insert(entry.object.namespace.clone(), vec![entry.object])),
            }
        }
        Self {
            now,
            policy: caches.policies.list().into_iter().next().map(|entry| entry.object),
            pods,
            helpers,
            nodes: by_name(&caches.nodes, |node: &CachedNode| &node.name),
            node_taps: node_taps(caches),
            excluded_namespaces: excluded(&caches.namespaces),
            taps: caches.taps.list(),
            expressions: expressions.clone(),
        }
    }

    /// The pod of this name, if it exists.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<CachedPod>> {
        let pods = self.pods.get(namespace)?;
        pods.binary_search_by(|pod| pod.name.as_str().cmp(name)).ok().map(|index| &pods[index])
    }

    /// Whether an older pod on the node has the static-pod hash that this pod claims. Anybody who may create pods can write the
    /// annotation; trusting it would give its author the other pod's traffic.
    pub fn is_impostor(&self, pod: &CachedPod) -> bool {
        let age = |pod: &CachedPod| (pod.created, pod.uid.clone());
        let is_older = |other: &CachedPod| {
            other.node == pod.node
                && other.config_hash == pod.config_hash
                && other.uid != pod.uid
                && age(other) < age(pod)
        };
        pod.config_hash.is_some() && self.pods.values().flatten().any(|other| is_older(other))
    }
}

/// The cached `NodeTap`s; the apply stage reads them again after its writes.
pub fn node_taps(caches: &Caches) -> BTreeMap<String, Arc<CachedNodeTap>> {
    by_name(&caches.node_taps, |node_tap| &node_tap.name)
}

fn by_name<T: PartialEq>(cache: &Cache<T>, name: impl Fn(&T) -> &String) -> BTreeMap<String, Arc<T>> {
    cache.list().into_iter().map(|entry| (name(&entry.object).clone(), entry.object)).collect()
}

fn excluded(namespaces: &Cache<CachedNamespace>) -> BTreeSet<String> {
    let excluded = namespaces.list().into_iter().filter(|entry| entry.object.excluded);
    excluded.map(|entry| entry.object.name.clone()).collect()
}
