//! The objects of a cluster, as far as names need them.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// By how much the clocks of two nodes may differ: that of a pod's kubelet, and that of the frames.
const CLOCK_ERROR: Duration = Duration::from_secs(2);

/// All objects: what a file of names has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Objects {
    /// Pods, also those that ended a short time ago.
    pub pods: Vec<Pod>,
    /// Services with their backends.
    pub services: Vec<Service>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Names of networks outside of the cluster.
    pub networks: Vec<(IpNet, String)>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Tells it from another pod of its name.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether its addresses are those of its node.
    #[serde(default)]
    pub host_network: bool,
    /// What it belongs to.
    pub workload: Workload,
    /// When the kubelet started it. Before, another pod may have had its address.
    #[serde(default)]
    pub started: Timestamp,
    /// When its last container ended, or when it was seen to be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Pod {
    pub(super) fn existed(&self, at: Timestamp) -> bool {
        self.started <= at.plus(CLOCK_ERROR) && self.ended.is_none_or(|ended| at <= ended)
    }
}

/// What a pod belongs to: the root of its owners, or the pod itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// Kind of the owner, for example `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// API group and version of the kind, for example `apps/v1`. Empty: unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub api_version: String,
}

/// A service and its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Virtual ones: of the cluster, of load balancers, and external ones.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// The addresses behind it.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port of its virtual addresses.
    pub port: u16,
    /// `TCP` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Of the backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
}

/// An address behind a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    /// The address of a pod, or of another endpoint.
    pub address: IpAddr,
    /// Since when the service used it.
    #[serde(default)]
    pub from: Timestamp,
    /// When the service stopped using it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Backend {
    pub(super) fn existed(&self, at: Timestamp) -> bool {
        self.from <= at && self.until.is_none_or(|until| at <= until)
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its zone (`topology.kubernetes.io/zone`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}
