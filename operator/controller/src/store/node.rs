//! Projections of nodes, namespaces and service networks.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node},
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::core::PartialObjectMeta;
use podtap_api::EXCLUDE;

use podtap_model::IpNet;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedNode {
    pub name: String,
    pub ready: bool,
    /// Opted out by label or annotation.
    pub excluded: bool,
    /// `InternalIP`s in the order of the node's status.
    pub addresses: Vec<IpAddr>,
    /// The addresses of every type, sorted.
    pub all_addresses: BTreeSet<IpAddr>,
    /// `spec.podCIDRs`: the addresses of its pods, if the CNI uses that field.
    pub pod_networks: Vec<IpNet>,
}

impl From<Node> for CachedNode {
    fn from(node: Node) -> Self {
        let excluded = is_excluded(&node.metadata);
        let status = node.status.unwrap_or_default();
        // One of the type Hostname may be an IP address, too.
        let addresses = status.addresses.unwrap_or_default().into_iter();
        let addresses: Vec<(String, IpAddr)> =
            addresses.filter_map(|address| Some((address.type_, address.address.parse().ok()?))).collect();
        let pod_cidrs = node.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
        Self {
            pod_networks: networks(&pod_cidrs),
            excluded,
            name: node.metadata.name.unwrap_or_default(),
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
    /// Opted out by label or annotation.
    pub excluded: bool,
}

impl From<PartialObjectMeta<Namespace>> for CachedNamespace {
    fn from(PartialObjectMeta { metadata, .. }: PartialObjectMeta<Namespace>) -> Self {
        Self { excluded: is_excluded(&metadata), name: metadata.name.unwrap_or_default() }
    }
}

/// The networks of a `ServiceCIDR`.
pub fn service_networks(object: ServiceCIDR) -> Vec<IpNet> {
    let cidrs = object.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
    networks(&cidrs)
}

/// The CIDRs without host bits; those that cannot be parsed are left out.
fn networks(cidrs: &[String]) -> Vec<IpNet> {
    cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()).map(|network| network.trunc()).collect()
}

/// Whether the object's label or annotation opts it out of every tap.
pub fn is_excluded(meta: &ObjectMeta) -> bool {
    [&meta.labels, &meta.annotations]
        .into_iter()
        .any(|map| map.as_ref().and_then(|m| m.get(EXCLUDE)).is_some_and(|value| value == "true"))
}
