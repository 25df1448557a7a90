//! What one reconcile works with: the contents of all caches at one moment.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{api::core::v1::ObjectReference, jiff::Timestamp};
use podtap_model::{ConfigHash, Uid};

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

/// An object, and its labels and annotations under `podtap.dev/` that mean nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct UnknownKeys {
    pub regarding: ObjectReference,
    pub keys: Vec<String>,
}

impl UnknownKeys {
    /// `None` if the object has no such key.
    fn of(kind: &str, namespace: Option<&str>, name: &str, uid: &Uid, keys: &[String]) -> Option<Self> {
        let regarding = || ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: namespace.map(str::to_owned),
            name: Some(name.to_owned()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        };
        (!keys.is_empty()).then(|| Self { regarding: regarding(), keys: keys.to_vec() })
    }
}

/// The cluster as one reconcile sees it: plain, sorted data, so that the pure stages give the same result for the same cluster.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub now: Timestamp,
    pub policy: Option<Arc<CachedPolicy>>,
    /// By namespace, sorted by name.
    pub pods: BTreeMap<String, Vec<Arc<CachedPod>>>,
    /// The pods of our collector; `pods` has them, too.
    pub collectors: Vec<Arc<CachedPod>>,
    /// Helper pods by node; `pods` has them, too. See [`Snapshot::helpers_of`].
    pub helpers: BTreeMap<String, Vec<Arc<CachedPod>>>,
    pub nodes: BTreeMap<String, Arc<CachedNode>>,
    pub node_taps: BTreeMap<String, Arc<CachedNodeTap>>,
    /// The addresses of nodes and of pods with a network of their own.
    pub addresses: BTreeMap<IpAddr, AddressHolder>,
    pub namespaces: BTreeMap<String, Arc<CachedNamespace>>,
    /// The objects with labels or annotations under `podtap.dev/` that mean nothing.
    pub unknown_keys: Vec<UnknownKeys>,
    /// Those of the cluster, then those of namespaces; sorted by namespace and name.
    pub taps: Vec<Entry<CachedTap>>,
    /// The compiled filter expressions.
    pub expressions: Expressions,
    /// When taps started whose status may not say so yet, as far as this leader knows.
    pub starts: BTreeMap<Uid, Timestamp>,
    /// The last policy that could be decoded, as far as this leader knows.
    pub last_policy: Option<Arc<CachedPolicy>>,
    /// The oldest pod with each static-pod hash, by node.
    hash_owners: BTreeMap<(Option<String>, ConfigHash), (Timestamp, Uid)>,
}

/// What has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressHolder {
    /// The node of this name.
    Node(String),
    Pod,
}

impl Snapshot {
    /// Reads the caches. Sends no request.
    pub fn take(caches: &Caches, expressions: &Expressions, now: Timestamp) -> Self {
        let mut pods: BTreeMap<String, Vec<Arc<CachedPod>>> = BTreeMap::new();
        let mut helpers: BTreeMap<String, Vec<Arc<CachedPod>>> = BTreeMap::new();
        let mut collectors = Vec::new();
        let mut unknown_keys = unknown_keys(caches);
        for entry in caches.pods.list() {
            let CachedPod { namespace, name, uid, unknown_keys: keys, .. } = &*entry.object;
            unknown_keys.extend(UnknownKeys::of("Pod", Some(namespace), name, uid, keys));
            if let (Some(_), Some(node)) = (&entry.object.helper, &entry.object.node) {
                helpers.entry(node.clone()).or_default().push(Arc::clone(&entry.object));
            }
            if entry.object.is_collector {
                collectors.push(Arc::clone(&entry.object));
            }
            match pods.get_mut(&entry.object.namespace) {
                Some(list) => list.push(entry.object),
                None => drop(pods.insert(entry.object.namespace.clone(), vec![entry.object])),
            }
        }
        let nodes = by_name(&caches.nodes, |node: &CachedNode| &node.name);
        Self {
            now,
            addresses: addresses(&pods, &nodes),
            hash_owners: hash_owners(&pods),
            policy: caches.policies.list().into_iter().next().map(|entry| entry.object),
            pods,
            helpers,
            collectors,
            nodes,
            node_taps: node_taps(caches),
            namespaces: by_name(&caches.namespaces, |namespace: &CachedNamespace| &namespace.name),
            unknown_keys,
            taps: [caches.cluster_taps.list(), caches.taps.list()].concat(),
            expressions: expressions.clone(),
            starts: BTreeMap::new(),
            last_policy: None,
        }
    }

    /// The pod of this name, if it exists.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<CachedPod>> {
        let pods = self.pods.get(namespace)?;
        pods.binary_search_by(|pod| pod.name.as_str().cmp(name)).ok().map(|index| &pods[index])
    }

    /// The helper pods of a node, those that end included.
    pub fn helpers_of(&self, node: &str) -> &[Arc<CachedPod>] {
        self.helpers.get(node).map_or(&[], Vec::as_slice)
    }

    /// Whether an older pod on the node has the static-pod hash that this pod claims. Anybody who may create pods can write the
    /// annotation; trusting it would give its author the other pod's traffic.
    pub fn is_impostor(&self, pod: &CachedPod) -> bool {
        let Some(hash) = &pod.config_hash else { return false };
        let owner = self.hash_owners.get(&(pod.node.clone(), hash.clone()));
        owner.is_some_and(|(created, uid)| (*created, uid) < (pod.created, &pod.uid))
    }
}

fn hash_owners(
    pods: &BTreeMap<String, Vec<Arc<CachedPod>>>,
) -> BTreeMap<(Option<String>, ConfigHash), (Timestamp, Uid)> {
    let mut owners = BTreeMap::new();
    for pod in pods.values().flatten() {
        let Some(hash) = &pod.config_hash else { continue };
        let age = (pod.created, pod.uid.clone());
        let oldest = owners.entry((pod.node.clone(), hash.clone())).or_insert_with(|| age.clone());
        if age < *oldest {
            *oldest = age;
        }
    }
    owners
}

fn addresses(
    pods: &BTreeMap<String, Vec<Arc<CachedPod>>>,
    nodes: &BTreeMap<String, Arc<CachedNode>>,
) -> BTreeMap<IpAddr, AddressHolder> {
    let pods = pods.values().flatten().filter(|pod| !pod.host_network && !pod.finished);
    let pods = pods.flat_map(|pod| pod.addresses.iter().map(|address| (*address, AddressHolder::Pod)));
    let holder = |node: &CachedNode| AddressHolder::Node(node.name.clone());
    let nodes = nodes.values().flat_map(|node| node.all_addresses.iter().map(|address| (*address, holder(node))));
    pods.chain(nodes).collect()
}

/// The cached `NodeTap`s; the apply stage reads them again after its writes.
pub fn node_taps(caches: &Caches) -> BTreeMap<String, Arc<CachedNodeTap>> {
    by_name(&caches.node_taps, |node_tap| &node_tap.name)
}

fn by_name<T: PartialEq>(cache: &Cache<T>, name: impl Fn(&T) -> &String) -> BTreeMap<String, Arc<T>> {
    cache.list().into_iter().map(|entry| (name(&entry.object).clone(), entry.object)).collect()
}

/// Those of namespaces and nodes.
fn unknown_keys(caches: &Caches) -> Vec<UnknownKeys> {
    let namespaces = caches.namespaces.list().into_iter().filter_map(|entry| {
        let CachedNamespace { name, uid, unknown_keys, .. } = &*entry.object;
        // The event belongs into the namespace itself, where its users see it.
        UnknownKeys::of("Namespace", Some(name), name, uid, unknown_keys)
    });
    let nodes = caches.nodes.list().into_iter().filter_map(|entry| {
        let CachedNode { name, uid, unknown_keys, .. } = &*entry.object;
        UnknownKeys::of("Node", None, name, uid, unknown_keys)
    });
    namespaces.chain(nodes).collect()
}
