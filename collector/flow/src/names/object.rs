//! The objects of a cluster, as far as names need them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
pub use podtap_model::Workload;
use serde::{Deserialize, Serialize};

use super::{ADDRESS_GRACE, CLOCK_ERROR};
use crate::Timestamp;

/// Backends of a service, also former ones.
const MOST_BACKENDS: usize = 5000;

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
    /// When its last container ended, or when it was noticed that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// Whether it may have ended before that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub end_is_estimate: bool,
    /// Its labels.
    #[serde(default, skip_serializing_if = "is_none")]
    pub labels: Arc<BTreeMap<String, String>>,
}

fn is_none(labels: &Arc<BTreeMap<String, String>>) -> bool {
    labels.is_empty()
}

impl Pod {
    /// Whether it had started by then.
    pub(super) fn has_started(&self, at: Timestamp) -> bool {
        self.started <= at
    }

    /// Whether it is known to have ended before.
    pub(super) fn has_ended(&self, at: Timestamp) -> bool {
        self.ended.is_some_and(|ended| ended < at)
    }

    /// Whether it ended so long before that it cannot have sent a frame then.
    pub(super) fn has_released_address(&self, at: Timestamp) -> bool {
        let longest = if self.end_is_estimate { ADDRESS_GRACE } else { CLOCK_ERROR };
        self.ended.is_some_and(|ended| ended.plus(longest) < at)
    }

    /// Whether it is certain that it had its address until it ended.
    pub(super) fn has_certain_end(&self) -> bool {
        self.ended.is_some() && !self.end_is_estimate
    }
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

impl Service {
    /// Adds the backends that it had before. One that it still has, it has had since then; any other one was removed by now.
    pub(super) fn remember(&mut self, before: &[Backend], now: Timestamp) {
        for backend in before {
            let is_same = |other: &Backend| other.address == backend.address && other.until.is_none();
            if backend.until.is_some() {
                if !self.backends.contains(backend) {
                    self.backends.push(backend.clone());
                }
            } else if let Some(current) = self.backends.iter_mut().find(|other| is_same(other)) {
                current.from = current.from.min(backend.from);
            } else {
                self.backends.push(Backend { until: Some(now), ..backend.clone() });
            }
        }
        // The last ones are those that it has, or had last.
        let surplus = self.backends.len().saturating_sub(MOST_BACKENDS);
        if surplus > 0 {
            self.backends.sort_by_key(|backend| backend.until.unwrap_or(Timestamp::MAX));
            self.backends.drain(..surplus);
        }
    }
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
    /// Of every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
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
