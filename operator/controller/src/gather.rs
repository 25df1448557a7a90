//! Stage 1: everything that a pass looks at, at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;

use super::{
    cache::{Cache, Entry},
    expressions::Expressions,
    facts::{NamespaceFact, NodeFact, NodeTapFact, PodFact, PolicyFact, TapFact},
    network::Network,
    watch::Caches,
};

/// The cluster as one pass sees it: plain data, sorted, so that the pure stages give the same result for the same cluster.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub now: Timestamp,
    pub policy: Option<Arc<PolicyFact>>,
    /// By namespace, in the order of their names.
    pub pods: BTreeMap<String, Vec<Arc<PodFact>>>,
    /// Helper pods by node, also found under `pods`.
    pub helpers: BTreeMap<String, Arc<PodFact>>,
    pub nodes: BTreeMap<String, Arc<NodeFact>>,
    pub node_taps: BTreeMap<String, Arc<NodeTapFact>>,
    /// Namespaces that opted out.
    pub excluded_namespaces: BTreeSet<String>,
    /// In the order of namespace and name.
    pub taps: Vec<Entry<TapFact>>,
    /// What the nodes and the `ServiceCIDR` objects say that pods and services have.
    pub pod_networks: Vec<Network>,
    pub service_networks: Vec<Network>,
    /// What the expressions of filters mean; filled in by the next step.
    pub expressions: Expressions,
}

impl Snapshot {
    /// `None` for a pod that is not there.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<PodFact>> {
        let pods = self.pods.get(namespace)?;
        pods.binary_search_by(|pod| pod.name.as_str().cmp(name)).ok().map(|index| &pods[index])
    }

    /// Whether an older pod of the node has the static pod's hash that this one claims. The annotation can be written by anybody
    /// who may make pods; believing it would give its author the other pod's traffic.
    pub fn is_impostor(&self, pod: &PodFact) -> bool {
        let age = |pod: &PodFact| (pod.created, pod.uid.clone());
        let is_older = |other: &PodFact| {
            other.node == pod.node
                && other.cgroup_uid == pod.cgroup_uid
                && other.uid != pod.uid
                && age(other) < age(pod)
        };
        pod.cgroup_uid.is_some() && self.pods.values().flatten().any(|other| is_older(other))
    }
}

/// Collects what the caches hold. No request is sent.
pub fn gather(caches: &Caches, now: Timestamp) -> Snapshot {
    let mut pods: BTreeMap<String, Vec<Arc<PodFact>>> = BTreeMap::new();
    let mut helpers = BTreeMap::new();
    for entry in caches.pods.list() {
        if let (Some(_), Some(node)) = (&entry.fact.helper, &entry.fact.node) {
            helpers.insert(node.clone(), Arc::clone(&entry.fact));
        }
        match pods.get_mut(&entry.fact.namespace) {
            Some(list) => list.push(entry.fact),
            None => drop(pods.insert(entry.fact.namespace.clone(), vec![entry.fact])),
        }
    }
    Snapshot {
        now,
        policy: caches.policies.list().into_iter().next().map(|entry| entry.fact),
        pods,
        helpers,
        nodes: by_name(&caches.nodes, |node: &NodeFact| &node.name),
        node_taps: node_taps(caches),
        excluded_namespaces: excluded(&caches.namespaces),
        taps: caches.taps.list(),
        pod_networks: networks(&caches.nodes, |node| &node.pod_networks),
        service_networks: networks(&caches.service_networks, |networks| networks),
        expressions: Expressions::new(),
    }
}

/// What the nodes' objects say now; looked at again after writing.
pub fn node_taps(caches: &Caches) -> BTreeMap<String, Arc<NodeTapFact>> {
    by_name(&caches.node_taps, |node_tap| &node_tap.name)
}

fn by_name<T: PartialEq>(cache: &Cache<T>, name: impl Fn(&T) -> &String) -> BTreeMap<String, Arc<T>> {
    cache.list().into_iter().map(|entry| (name(&entry.fact).clone(), entry.fact)).collect()
}

fn networks<T: PartialEq>(cache: &Cache<T>, networks: impl Fn(&T) -> &Vec<Network>) -> Vec<Network> {
    Network::aggregate(cache.list().iter().flat_map(|entry| networks(&entry.fact).clone()).collect())
}

fn excluded(namespaces: &Cache<NamespaceFact>) -> BTreeSet<String> {
    namespaces.list().into_iter().filter(|entry| entry.fact.excluded).map(|entry| entry.fact.name.clone()).collect()
}
