use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::bounds::{MAX_EXPRESSION, MAX_MATCHES, MAX_RULES};

/// Which frames are mirrored: those that match any entry of include (or all, if it is empty), no entry of exclude, and the
/// expression (or all, if it is unset). A frame that is not mirrored costs next to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(
    feature = "schema",
    derive(kube::KubeSchema),
    x_kube(validation = Rule::new("has(self.include) || has(self.exclude) || has(self.expression)")
        .message("set at least one of filter.include, filter.exclude and filter.expression, or leave filter out to mirror everything"))
)]
pub struct Filter {
    /// Only frames that match one of these entries are mirrored. Empty: all frames. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic")))]
    pub include: Vec<Match>,

    /// Frames that match one of these entries are not mirrored. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic")))]
    pub exclude: Vec<Match>,

    /// Only frames that match this expression are mirrored. The language is that of tcpdump (man 7 pcap-filter), for example
    /// "tcp[tcpflags] & tcp-syn != 0". Hosts, ports and protocols are numbers; names are not resolved. If libpcap rejects the
    /// expression, the tap is Ready=False with the reason InvalidSpec and libpcap's message; a tap that is already mirroring
    /// keeps its previous expression.
    #[allow(
        rustdoc::broken_intra_doc_links,
        reason = "`kubectl explain` shows the brackets of the example as they are"
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(length(max = 1024)),
        x_kube(validation = Rule::new(r"self.matches('^[ -~\\t\\n]*[!-~][ -~\\t\\n]*$')")
            .message("filter.expression must be a pcap-filter expression in ASCII, for example: tcp port 443 and not host 192.0.2.1; leave it out to match every frame"))
    )]
    pub expression: Option<String>,
}

/// Matches a frame that matches all fields that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(
    feature = "schema",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("has(self.protocol) || has(self.ports) || has(self.cidrs)")
            .message("set at least one of protocol, ports and cidrs in each entry of filter.include and filter.exclude"),
        validation = Rule::new("!has(self.ports) || !has(self.protocol) || self.protocol in ['TCP', 'UDP', 'SCTP']")
            .message("ICMP and ICMPv6 have no ports: leave ports out, or set protocol to TCP, UDP or SCTP"),
        validation = Rule::new("!has(self.protocol) || !has(self.cidrs) || !(self.protocol in ['ICMP', 'ICMPv6']) || self.cidrs.exists(c, c.contains(':') == (self.protocol == 'ICMPv6'))")
            .message("ICMP runs over IPv4 and ICMPv6 over IPv6, so these cidrs match nothing: use cidrs of the other family, or the other protocol"),
    )
)]
pub struct Match {
    /// Protocol above IP; IPv6 extension headers are skipped. Unset: any protocol, and frames that are not IP if ports and
    /// cidrs are unset, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,

    /// Source or destination ports of TCP, UDP or SCTP. Empty: any. At most 16 ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic")))]
    pub ports: Vec<PortRange>,

    /// CIDRs of the peer: the source of frames that enter the pod, the destination of frames that leave it. For example
    /// 10.0.0.0/8; a single host is 192.0.2.10/32. Empty: any. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Vec<String>", length(min = 1, max = 16), inner(length(max = 64)), extend("x-kubernetes-list-type" = "atomic")),
        x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
            .message("each entry of cidrs must be a network such as 192.0.2.0/24 or 2001:db8::/32; a single host is 192.0.2.10/32"))
    )]
    pub cidrs: Vec<IpNet>,
}

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// ICMP over IPv4.
    #[serde(rename = "ICMP")]
    Icmp,
    /// ICMPv6 over IPv6.
    #[serde(rename = "ICMPv6")]
    Icmpv6,
}

/// A port, or a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(
    feature = "schema",
    derive(kube::KubeSchema),
    x_kube(
        validation = Rule::new("self.port >= 1 && self.port <= 65535").message("port must be between 1 and 65535"),
        validation = Rule::new("!has(self.endPort) || (self.endPort >= self.port && self.endPort <= 65535)")
            .message("endPort must be between port and 65535; leave it out for a single port"),
    )
)]
pub struct PortRange {
    /// The port, or the first port of a range.
    #[cfg_attr(feature = "schema", schemars(with = "i32"))]
    pub port: u16,

    /// The last port of the range. Unset: port alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<i32>"))]
    pub end_port: Option<u16>,
}

/// Why a filter is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A list is too long.
    #[error("set at most {MAX_MATCHES} {what}, not {count}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
    },
    /// An entry without fields.
    #[error("set at least one of protocol, ports and cidrs in each entry of filter.include and filter.exclude")]
    EmptyMatch,
    /// Ports of a protocol without ports.
    #[error("ICMP and ICMPv6 have no ports: leave ports out, or set protocol to TCP, UDP or SCTP")]
    NoPorts,
    /// A port range that is none.
    #[error("{0} to {1} is not a port range: port must be between 1 and 65535, and endPort between port and 65535")]
    PortRange(u16, u16),
    /// Only CIDRs of the family that the protocol does not run over.
    #[error(
        "ICMP runs over IPv4 and ICMPv6 over IPv6, so these cidrs match nothing: use cidrs of the other family, or the other protocol"
    )]
    Family,
    /// Too many rules.
    #[error(
        "the filter has {0} combinations of ports and cidrs, and {MAX_RULES} are allowed: merge neighboring ports and networks, or use filter.expression"
    )]
    TooManyRules(usize),
    /// Not an expression.
    #[error("filter.expression must be a pcap-filter expression of 1 to {MAX_EXPRESSION} ASCII characters")]
    Expression,
}

impl Filter {
    /// How many rules it takes, of which there can be [`MAX_RULES`].
    #[must_use]
    pub fn rules(&self) -> usize {
        self.include.iter().chain(&self.exclude).map(Match::rules).sum()
    }

    /// Whether it is within the bounds and can match something.
    pub fn check(&self) -> Result<(), FilterError> {
        let Self { include, exclude, expression } = self;
        at_most("entries in filter.include", include.len())?;
        at_most("entries in filter.exclude", exclude.len())?;
        include.iter().chain(exclude).try_for_each(Match::check)?;
        if self.rules() > MAX_RULES {
            return Err(FilterError::TooManyRules(self.rules()));
        }
        if expression.as_ref().is_some_and(|text| !is_expression(text)) {
            return Err(FilterError::Expression);
        }
        Ok(())
    }
}

/// Whether libpcap is asked what the text means: anything else is refused without asking.
fn is_expression(text: &str) -> bool {
    let is_printable = |byte: u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n');
    !text.trim().is_empty() && text.len() <= MAX_EXPRESSION && text.bytes().all(is_printable)
}

impl Match {
    /// One rule for each combination of a port range and a CIDR.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.ports.len().max(1) * self.cidrs.len().max(1)
    }

    fn check(&self) -> Result<(), FilterError> {
        let Self { protocol, ports, cidrs } = self;
        if *self == Self::default() {
            return Err(FilterError::EmptyMatch);
        }
        at_most("ports in an entry of a filter", ports.len())?;
        at_most("cidrs in an entry of a filter", cidrs.len())?;
        if !ports.is_empty() && protocol.is_some_and(|protocol| !protocol.has_ports()) {
            return Err(FilterError::NoPorts);
        }
        if let Some(range) = ports.iter().find(|range| range.port == 0 || range.last() < range.port) {
            return Err(FilterError::PortRange(range.port, range.last()));
        }
        let is_other_family = |cidr: &IpNet| match protocol {
            Some(Protocol::Icmp) => matches!(cidr, IpNet::V6(_)),
            Some(Protocol::Icmpv6) => matches!(cidr, IpNet::V4(_)),
            _ => false,
        };
        if !cidrs.is_empty() && cidrs.iter().all(is_other_family) {
            return Err(FilterError::Family);
        }
        Ok(())
    }
}

impl Protocol {
    /// Its number, as assigned by IANA.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp => 1,
            Self::Icmpv6 => 58,
        }
    }

    /// Whether its packets have ports.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }
}

impl PortRange {
    /// The last port: `end_port`, or else `port`.
    #[must_use]
    pub fn last(self) -> u16 {
        self.end_port.unwrap_or(self.port)
    }
}

fn at_most(what: &'static str, count: usize) -> Result<(), FilterError> {
    if count > MAX_MATCHES { Err(FilterError::TooMany { what, count }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(json: &str) -> Filter {
        serde_json::from_str(json).expect("a filter")
    }

    #[test]
    fn rules_are_combinations() {
        let filter = filter(
            r#"{"include": [{"protocol": "TCP", "ports": [{"port": 80}, {"port": 8000, "endPort": 8099}], "cidrs": ["10.0.0.0/8", "fd00::/8"]}],
                "exclude": [{"protocol": "ICMP"}]}"#,
        );
        assert_eq!(filter.rules(), 5);
        assert_eq!(filter.check(), Ok(()));
    }

    #[test]
    fn invalid_filters() {
        let error = |json: &str| filter(json).check().expect_err(json);
        assert_eq!(error(r#"{"include": [{}]}"#), FilterError::EmptyMatch);
        assert_eq!(error(r#"{"include": [{"protocol": "ICMP", "ports": [{"port": 1}]}]}"#), FilterError::NoPorts);
        assert_eq!(error(r#"{"include": [{"ports": [{"port": 0}]}]}"#), FilterError::PortRange(0, 0));
        assert_eq!(error(r#"{"exclude": [{"ports": [{"port": 9, "endPort": 8}]}]}"#), FilterError::PortRange(9, 8));
        assert_eq!(error(r#"{"include": [{"protocol": "ICMPv6", "cidrs": ["10.0.0.0/8"]}]}"#), FilterError::Family);
        assert_eq!(error(r#"{"expression": "  "}"#), FilterError::Expression);
        let many = Match { protocol: Some(Protocol::Tcp), ..Match::default() };
        let filter = Filter { include: vec![many; 17], ..Filter::default() };
        assert_eq!(filter.check(), Err(FilterError::TooMany { what: "entries in filter.include", count: 17 }));
        let ports: Vec<_> = (1..=9).map(|port| PortRange { port, end_port: None }).collect();
        let cidrs = (0..8).map(|n| format!("10.{n}.0.0/16").parse().expect("a CIDR")).collect();
        let filter = Filter { include: vec![Match { protocol: None, ports, cidrs }], ..Filter::default() };
        assert_eq!(filter.check(), Err(FilterError::TooManyRules(72)));
    }

    #[test]
    fn unknown_fields_are_errors() {
        assert!(serde_json::from_str::<Filter>(r#"{"include": [{"protocol": "TCP", "vlan": 5}]}"#).is_err());
        assert!(serde_json::from_str::<Filter>(r#"{"includes": []}"#).is_err());
    }
}
