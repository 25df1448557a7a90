use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which frames are copied. A frame is copied if it matches any entry of include (or there is none), no entry of exclude, and
/// the expression (or there is none). What is not copied costs next to nothing.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.include) || has(self.exclude) || has(self.expression)")
    .message("set at least one of filter.include, filter.exclude and filter.expression, or leave filter out to copy everything"))]
pub struct Filter {
    /// Only frames that match one of these are copied. Empty: all frames. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub include: Vec<FilterMatch>,

    /// Frames that match one of these are not copied. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub exclude: Vec<FilterMatch>,

    /// Only frames that match this expression are copied, too: the language of tcpdump, see `man 7 pcap-filter`, for example
    /// "tcp[tcpflags] & tcp-syn != 0". Hosts, ports and protocols are numbers; names of hosts and services are not looked up.
    /// One that libpcap does not take makes the tap Ready=False with the reason InvalidSpec and libpcap's message; a tap that
    /// copies already goes on with the expression before.
    #[allow(
        rustdoc::broken_intra_doc_links,
        reason = "`kubectl explain` shows the brackets of the example as they are"
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new(r"self.matches('^[ -~\\t\\n]*[!-~][ -~\\t\\n]*$')")
        .message("filter.expression must be a pcap-filter expression in ASCII, for example: tcp port 443 and not host 192.0.2.1; leave it out to match every frame"))]
    pub expression: Option<String>,
}

/// Matches a frame for which all of its parts hold.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.protocol) || has(self.ports) || has(self.cidrs)")
        .message("set at least one of protocol, ports and cidrs in each entry of filter.include and filter.exclude"),
    validation = Rule::new("!has(self.ports) || !has(self.protocol) || self.protocol in ['TCP', 'UDP', 'SCTP']")
        .message("ICMP and ICMPv6 have no ports: leave ports out, or set protocol to TCP, UDP or SCTP"),
    validation = Rule::new("!has(self.protocol) || !has(self.cidrs) || !(self.protocol in ['ICMP', 'ICMPv6']) || self.cidrs.exists(c, c.contains(':') == (self.protocol == 'ICMPv6'))")
        .message("ICMP is of IPv4, and ICMPv6 of IPv6, so that these cidrs match nothing: use cidrs of the other family, or the other protocol"),
)]
pub struct FilterMatch {
    /// The protocol above IPv4 or IPv6. Unset: any, also what is not IP, as long as ports and cidrs are unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,

    /// Ports of TCP, UDP or SCTP, one of which either side has. Empty: any. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub ports: Vec<FilterPort>,

    /// Networks, one of which has the other side: the sender of frames that enter the pod, the receiver of those that leave
    /// it. For example 10.0.0.0/8; a single host is 192.0.2.10/32. Empty: any. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(max = 64)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("each entry of cidrs must be a network such as 192.0.2.0/24 or 2001:db8::/32; a single host is 192.0.2.10/32"))]
    pub cidrs: Vec<String>,
}

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
    /// ICMP, which is of IPv4.
    #[serde(rename = "ICMP")]
    Icmp,
    /// ICMPv6, which is of IPv6.
    #[serde(rename = "ICMPv6")]
    Icmpv6,
}

/// A port, or a range of ports.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.port >= 1 && self.port <= 65535").message("port must be between 1 and 65535"),
    validation = Rule::new("!has(self.endPort) || (self.endPort >= self.port && self.endPort <= 65535)")
        .message("endPort must be between port and 65535; leave it out for a single port"),
)]
pub struct FilterPort {
    /// The port, or the first one of a range.
    pub port: i32,

    /// The last port of the range. Unset: port alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<i32>,
}
