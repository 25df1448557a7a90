use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Deduplicate, Filter, Limit, Oversize, Truncate};

/// Everything that a node is to hold. An empty one is an order to remove all; no message at all is no order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Desired {
    /// Generation of the `NodeTap` that this comes from; the report that answers it carries the same number.
    pub generation: i64,
    /// Pods of this node whose traffic is copied, at most one entry per tap and pod.
    #[serde(default)]
    pub senders: Vec<Sender>,
    /// Devices of this node at which copies arrive.
    #[serde(default)]
    pub receivers: Vec<Receiver>,
}

/// One pod under one tap: a sender device in the pod's network namespace, and a filter per direction.
///
/// Identified by `tap` and `pod.uid`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sender {
    /// UID of the tap.
    pub tap: String,
    /// The pod that is tapped.
    pub pod: Pod,
    /// Interface inside the pod; empty for the device that carries the pod's primary address.
    #[serde(default)]
    pub interface: String,
    /// Which frames are copied.
    pub direction: Direction,
    /// Where each copy goes: one to four, all of one address family.
    pub destinations: Vec<Endpoint>,
    /// Which of these frames are copied.
    #[serde(default, skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    /// How much of each frame is copied; all of it if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<Truncate>,
    /// One of so many flows is copied, whole and in both directions, the same ones on every node. 0 and 1: all of them.
    #[serde(default, skip_serializing_if = "is_all")]
    pub one_in_flows: u32,
    /// How much is copied at most.
    #[serde(default, skip_serializing_if = "Limit::is_none")]
    pub limit: Limit,
    /// What becomes of copies that do not fit the path.
    #[serde(default)]
    pub oversize: Oversize,
    /// Leaves flows to the pod at their other end, where that is tapped too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplicate: Option<Deduplicate>,
    /// Largest IP packet that the path to the destinations carries; the MTU of the route counts if it is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_mtu: Option<u32>,
}

impl Sender {
    /// One that copies every frame as it is, from the device that carries the pod's primary address.
    #[must_use]
    pub fn of_everything(tap: String, pod: Pod, destinations: Vec<Endpoint>) -> Self {
        Self {
            tap,
            pod,
            interface: String::new(),
            direction: Direction::Both,
            destinations,
            filter: Filter::default(),
            truncate: None,
            one_in_flows: 1,
            limit: Limit::default(),
            oversize: Oversize::default(),
            deduplicate: None,
            underlay_mtu: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_all(one_in_flows: &u32) -> bool {
    *one_in_flows <= 1
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// UID of the API object.
    pub uid: String,
    /// UID by which the kubelet names the pod's cgroup, where it is another one: a static pod's is the
    /// annotation `kubernetes.io/config.hash` of its mirror pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_uid: Option<String>,
    /// Addresses from the pod's status, primary first. Empty while the kubelet has not reported any, which is
    /// the case until after the first container started: the tap must not wait for it.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// Which frames of an interface are copied, as seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Direction {
    /// Frames that enter the pod.
    Ingress,
    /// Frames that leave the pod.
    Egress,
    /// All frames.
    Both,
}

impl Direction {
    /// Whether frames that enter the pod are copied.
    #[must_use]
    pub fn has_ingress(self) -> bool {
        self != Self::Egress
    }

    /// Whether frames that leave the pod are copied.
    #[must_use]
    pub fn has_egress(self) -> bool {
        self != Self::Ingress
    }
}

/// A VXLAN endpoint (RFC 7348) that copies are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// Address in the node's own network.
    pub address: IpAddr,
    /// UDP port.
    pub port: u16,
    /// VXLAN network identifier, 1 to 2^24 - 1.
    pub vni: u32,
}

/// An interface at which copies arrive, on the node itself or inside one of its pods.
///
/// Identified by `vni`, which no other receiver of the node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Receiver {
    /// UID of the tap.
    pub tap: String,
    /// VXLAN network identifier, 1 to 2^24 - 1.
    pub vni: u32,
    /// UDP port, opened in the node's network namespace.
    pub port: u16,
    /// Whether copies arrive over IPv6: a VXLAN device has one socket, of one family
    /// (`vxlan_sock_add`, `drivers/net/vxlan/vxlan_core.c`).
    #[serde(default)]
    pub ipv6: bool,
    /// Name of the interface.
    pub interface_name: String,
    /// Whether it shows frames as the kernel has them: superframes, and checksums that are left to the device. Otherwise it
    /// shows them as on the wire.
    #[serde(default)]
    pub raw: bool,
    /// The pod in whose network namespace the interface stands; none for the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}
