//! Projections of nodes and namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Node},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::core::PartialObjectMeta;
use podtap_api::is_excluded;
use podtap_model::Uid;

use crate::{names, store::unknown_keys::unknown_keys};

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each mirrors an independent field of the object")]
pub struct CachedNode {
    pub name: String,
    pub uid: Uid,
    pub ready: bool,
    /// Cordoned: about to be drained, as a rule.
    pub unschedulable: bool,
    pub labels: BTreeMap<String, String>,
    /// Opted out by label or annotation.
    pub excluded: bool,
    /// Whether it can run a helper pod.
    pub linux: bool,
    /// Bytes of memory that pods may use together; `None` if the kubelet has not reported it.
    pub memory: Option<u64>,
    pub cpus: Option<u64>,
    /// See [`unknown_keys`].
    pub unknown_keys: Vec<String>,
    /// `InternalIP`s in the order of the node's status.
    pub addresses: Vec<IpAddr>,
    /// The addresses of every type, sorted.
    pub all_addresses: BTreeSet<IpAddr>,
}

impl From<Node> for CachedNode {
    fn from(node: Node) -> Self {
        let (uid, excluded) = (names::uid(&node.metadata), is_excluded(&node.metadata));
        let unknown_keys = unknown_keys(&node.metadata);
        let os = node.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
        let linux = os.is_none_or(|os| os == "linux");
        let status = node.status.unwrap_or_default();
        // One of the type Hostname may be an IP address, too.
        let addresses = status.addresses.unwrap_or_default().into_iter();
        let addresses: Vec<(String, IpAddr)> =
            addresses.filter_map(|address| Some((address.type_, address.address.parse().ok()?))).collect();
        let spec = node.spec.unwrap_or_default();
        let number = |quantities: &Option<BTreeMap<String, Quantity>>, name: &str| {
            Some(quantities.as_ref()?.get(name)?.0.parse::<podtap_model::Quantity>().ok()?.get())
        };
        Self {
            uid,
            excluded,
            unschedulable: spec.unschedulable.unwrap_or_default(),
            linux,
            memory: number(&status.allocatable, "memory"),
            cpus: number(&status.capacity, "cpu"),
            unknown_keys,
            name: node.metadata.name.unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default(),
            ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
            addresses: addresses.iter().filter(|(kind, _)| kind == "InternalIP").map(|(_, address)| *address).collect(),
            all_addresses: addresses.into_iter().map(|(_, address)| address).collect(),
        }
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedNamespace {
    pub name: String,
    pub uid: Uid,
    pub labels: BTreeMap<String, String>,
    /// Whether it is that of PodTap.
    pub is_own: bool,
    /// Opted out by label or annotation.
    pub excluded: bool,
    /// See [`unknown_keys`].
    pub unknown_keys: Vec<String>,
}

impl CachedNamespace {
    /// `own_namespace` is that of the controller.
    pub fn new(PartialObjectMeta { metadata, .. }: PartialObjectMeta<Namespace>, own_namespace: &str) -> Self {
        Self {
            is_own: metadata.name.as_deref() == Some(own_namespace),
            uid: names::uid(&metadata),
            excluded: is_excluded(&metadata),
            unknown_keys: unknown_keys(&metadata),
            name: metadata.name.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
        }
    }
}
