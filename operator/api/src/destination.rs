use std::net::IpAddr;

use kube::KubeSchema;
use podtap_model::{FrameFormat, InterfaceName};
use serde::{Deserialize, Deserializer, Serialize};

use crate::ObjectSelector;

/// A receiver of the mirrored frames.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.node), has(self.pod), has(self.external), has(self.collector)].filter(x, x).size() == 1")
        .message("set exactly one of node, pod, external and collector in each destination, for example: node: {name: worker-3}"),
    validation = Rule::new("!(has(self.frameFormat) && self.frameFormat == 'Raw' && has(self.external))")
        .message("frameFormat is about the interface on a node or in a pod: leave it out of an external destination, which always gets frames as on the wire"),
)]
pub struct Destination {
    /// Name of the destination, unique within the tap. A single destination does not need one.
    #[serde(default = "default_name")]
    #[schemars(default = "default_name", length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of a destination must consist of lower-case letters, digits and hyphens, and begin and end with a letter or a digit"))]
    pub name: String,

    /// A network interface on a node of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeDestination>,

    /// A network interface inside a pod: of the same namespace, or in a ClusterPodTap of the namespace that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodDestination>,

    /// A VXLAN endpoint that PodTap does not manage. A PodTapPolicy must allow its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalDestination>,

    /// PodTap's own collector, which tells who calls whom: {}. One of its ready pods gets the frames, as the kernel has them (Raw), or if it
    /// sends them to sensors, as on the wire (Wire). A tap whose only destinations are collectors mirrors no more than they need: if it has
    /// no deduplicate, that is {handshakes: Both}, and if it has no truncate, that is {headersOnly: true, exemptBytes: 4096}.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collector: Option<CollectorDestination>,

    /// How the interface on a node or in a pod shows the frames. Wire: as on the wire. Raw: as the kernel has them, with several
    /// TCP segments in one frame (GSO) and checksums not yet computed, which is faster but which many tools cannot read.
    #[serde(default, skip_serializing_if = "FrameFormat::is_wire")]
    pub frame_format: FrameFormat,
}

pub(crate) fn default_name() -> String {
    "main".to_owned()
}

/// A network interface on a node of the cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeDestination {
    /// Name of the node, as in `kubectl get nodes`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Name of the interface on the node. Empty: ptap followed by the VXLAN network identifier.
    #[serde(default, deserialize_with = "empty_is_unset", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]{0,15}$') && !self.matches('[/:%]') && !(self in ['.', '..', 'lo', 'all', 'default'])")
        .message("interfaceName must be a valid interface name of Linux: at most 15 characters of printable ASCII, without slash, colon, percent sign or space, and not lo, all or default; leave it empty for a name made from the VNI"))]
    pub interface_name: Option<InterfaceName>,
}

/// A network interface inside a pod.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.podSelector)")
    .message("set exactly one of name and podSelector in a pod destination"))]
pub struct PodDestination {
    /// Namespace of the pod. Required in a ClusterPodTap, and not allowed in a PodTap, whose pods are in its own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,

    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,

    /// Labels of the pod. If several pods match, the oldest ready one gets the frames, and another one when it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<ObjectSelector>,

    /// Name of the interface inside the pod. Empty: ptap followed by the VXLAN network identifier.
    #[serde(default, deserialize_with = "empty_is_unset", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]{0,15}$') && !self.matches('[/:%]') && !(self in ['.', '..', 'lo', 'all', 'default'])")
        .message("interfaceName must be a valid interface name of Linux: at most 15 characters of printable ASCII, without slash, colon, percent sign or space, and not lo, all or default; leave it empty for a name made from the VNI"))]
    pub interface_name: Option<InterfaceName>,

    /// Whether the pod is handed a packet socket of the interface, by which a program without capabilities can capture from it:
    /// it listens on the abstract Unix socket podtap-packet-socket. It gets metadata as well, as the collector does. Who sets it needs the
    /// right to create pods/packetsocket in the namespace of the pod.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packet_socket: bool,
}

/// A VXLAN endpoint that PodTap does not manage.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalDestination {
    /// IPv4 or IPv6 address of one host, which is no node or pod of the cluster.
    #[schemars(with = "String", length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).isGlobalUnicast()")
        .message("external.address must be the IPv4 or IPv6 address of one host, for example 192.0.2.10 (a host name is not resolved)"))]
    pub address: IpAddr,

    /// UDP port. IANA assigned 4789 to VXLAN.
    #[serde(default = "default_external_port")]
    #[schemars(with = "i32", default = "default_external_port")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 65535").message("external.port must be between 1 and 65535"))]
    pub port: u16,

    /// Whether probes are sent to it, one per second and pod: frames of the EtherType 0x88B5 that prove to receivers in the cluster
    /// that mirrored frames arrive. Without, a tap with an external destination sends none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probe: bool,

    /// Whether metadata is sent to it, as to the collector: frames of the same EtherType that tell which pod the mirrored frames are of,
    /// more and more seldom until it is once a minute, and how its node translates the pod's connections. Without, a tap with an external
    /// destination sends none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub metadata: bool,
}

/// A ready pod of PodTap's collector: {}.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorDestination {}

/// UDP port of an external destination, unless its spec has another one: IANA assigned it to VXLAN.
pub const DEFAULT_EXTERNAL_PORT: u16 = 4789;

fn default_external_port() -> u16 {
    DEFAULT_EXTERNAL_PORT
}

/// An interface name; the empty string, which templates write, is none.
pub(crate) fn empty_is_unset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<InterfaceName>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}
