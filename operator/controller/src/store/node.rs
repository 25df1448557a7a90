//! Projections of nodes and namespaces.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1::{Namespace, Node},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::core::PartialObjectMeta;
use podtap_api::EXCLUDE;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedNode {
    pub name: String,
    pub ready: bool,
    /// Opted out by label or annotation.
    pub excluded: bool,
    /// Whether it can run a helper pod.
    pub linux: bool,
    /// `InternalIP`s in the order of the node's status.
    pub addresses: Vec<IpAddr>,
}

impl From<Node> for CachedNode {
    fn from(node: Node) -> Self {
        let excluded = is_excluded(&node.metadata);
        let os = node.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
        let linux = os.is_none_or(|os| os == "linux");
        let status = node.status.unwrap_or_default();
        Self {
            excluded,
            linux,
            name: node.metadata.name.unwrap_or_default(),
            ready: status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
            addresses: status
                .addresses
                .into_iter()
                .flatten()
                .filter(|a| a.type_ == "InternalIP")
                .filter_map(|a| a.address.parse().ok())
                .collect(),
        }
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedNamespace {
    pub name: String,
    /// Opted out by label or annotation.
    pub excluded: bool,
}

impl From<PartialObjectMeta<Namespace>> for CachedNamespace {
    fn from(PartialObjectMeta { metadata, .. }: PartialObjectMeta<Namespace>) -> Self {
        Self { excluded: is_excluded(&metadata), name: metadata.name.unwrap_or_default() }
    }
}

/// Whether the object's label or annotation opts it out of every tap.
pub fn is_excluded(meta: &ObjectMeta) -> bool {
    [&meta.labels, &meta.annotations]
        .into_iter()
        .any(|map| map.as_ref().and_then(|m| m.get(EXCLUDE)).is_some_and(|value| value == "true"))
}
