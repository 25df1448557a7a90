use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    direction::Direction,
    endpoint::{Endpoint, FrameFormat, Vni},
    ether_type::EtherType,
    identity::{InterfaceName, Pod, PodDetails, TapReference, Uid},
    options::MirrorOptions,
    program::{Program, ProgramId},
    unix_time::UnixTime,
};

/// The desired state of a node: what a `NodeTap` asks for. An empty one asks to remove everything; no message at all asks for
/// nothing.
///
/// This is how it is stored: what the senders of a tap share is in `taps`, compiled expressions are in `programs`.
/// [`NodeState::decode`] resolves the references.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodeState {
    /// The taps that have a sender on this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["uid"])))]
    pub taps: Vec<Tap>,
    /// Pods of this node whose traffic is mirrored, at most one entry per tap and pod.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub senders: Vec<Sender>,
    /// Interfaces of this node, or of pods on it, that receive mirrored frames.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["vni"])))]
    pub receivers: Vec<Receiver>,
    /// Networks from which the receivers accept mirrored frames: the addresses of the nodes that may send to them. VXLAN
    /// packets with the UDP port and VNI of a receiver from other addresses are dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>", extend("x-kubernetes-list-type" = "atomic")))]
    pub sources: Vec<IpNet>,
    /// The compiled filter expressions of the taps, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["id"])))]
    pub programs: Vec<Program>,
    /// Largest IP packet, in bytes, that the network between the nodes carries. Unset: the MTU of the routes.
    #[serde(default, rename = "underlayMTU", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<i32>"))]
    pub underlay_mtu: Option<u32>,
    /// Seconds after which a sender stops mirroring, in the kernel, unless the agent renews it with the API server's confirmation.
    /// Unset: 3600. The API allows no less than 60; the tap-helper applies any value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<i32>", range(min = 60, max = 2_592_000)))]
    pub orphan_timeout_seconds: Option<u32>,
    /// EtherType of the probes that senders send and receivers expect. Unset: 0x88B5 (34997). Pods' own frames with it are not mirrored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<i32>", range(min = 0x0600, max = 0xffff)))]
    pub probe_ether_type: Option<EtherType>,
    /// Addresses of other nodes at which no probe of this one arrives, sorted; up to 16. The agent finds out which of them answer to
    /// TCP; the tap-helper ignores them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Vec<String>", length(max = 16), extend("x-kubernetes-list-type" = "atomic"))
    )]
    pub checked_addresses: Vec<IpAddr>,
}

/// What all senders of a tap have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tap {
    /// Namespace of the PodTap; empty for a ClusterPodTap.
    pub namespace: String,
    /// Name of the tap.
    pub name: String,
    /// UID of the tap.
    pub uid: Uid,
    /// Interface inside the pods. Unset: the one with the pod's primary address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
    /// Which frames are mirrored, as seen from the pod.
    pub direction: Direction,
    /// Where each mirrored frame is sent: one to four endpoints, all of one address family.
    #[cfg_attr(feature = "schema", schemars(extend("x-kubernetes-list-type" = "atomic")))]
    pub destinations: Vec<Endpoint>,
    /// Which of these frames are mirrored, and how.
    #[serde(default, skip_serializing_if = "MirrorOptions::is_default")]
    pub options: MirrorOptions,
    /// The compiled filter expression, if the filter has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramId>,
    /// When its senders stop mirroring, by the API server's clock. Unset: when they are no longer requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<UnixTime>,
    /// With deduplicate: addresses of the pods whose senders of this tap are Active, on any node, sorted. A flow with one of them
    /// may be left to its sender.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>", extend("x-kubernetes-list-type" = "atomic")))]
    pub peers: Vec<IpAddr>,
    /// Whether its senders send probes, which prove to the receivers that mirrored frames arrive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probe: bool,
    /// Whether its senders send metadata besides mirrored frames: whose frames they are, and how the node translates the pod's
    /// connections.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub metadata: bool,
}

/// One pod under one tap: a sender device in the pod's network namespace, and a filter for each direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Sender {
    /// UID of the tap, which is in taps.
    pub tap: Uid,
    /// The tapped pod.
    pub pod: Pod,
    /// If the tap sends metadata: what else it tells of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<PodDetails>,
}

/// An interface that receives mirrored frames, on the node itself or inside one of its pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Receiver {
    /// The tap.
    pub tap: TapReference,
    /// VXLAN network identifier, unique among the receivers of the node.
    pub vni: Vni,
    /// UDP port, opened in the node's network namespace.
    #[cfg_attr(feature = "schema", schemars(with = "i32", range(min = 1, max = 65535)))]
    pub port: u16,
    /// Whether mirrored frames arrive over IPv6. A VXLAN device has one socket, of one family (`vxlan_sock_add`,
    /// `drivers/net/vxlan/vxlan_core.c`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
    /// Name of the interface.
    pub interface_name: InterfaceName,
    /// How the interface shows the frames.
    #[serde(default, skip_serializing_if = "FrameFormat::is_wire")]
    pub frame_format: FrameFormat,
    /// Whether the interface shows frames with metadata, too. Otherwise they are dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub metadata: bool,
    /// Whether a packet socket for the interface is [handed over](crate::PacketSocket) to the pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packet_socket: bool,
    /// The pod that gets the interface. Unset: the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

impl Tap {
    /// How other objects refer to it.
    #[must_use]
    pub fn reference(&self) -> TapReference {
        TapReference { namespace: self.namespace.clone(), name: self.name.clone(), uid: self.uid.clone() }
    }
}
