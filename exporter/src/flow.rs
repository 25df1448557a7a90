//! A line of the collector's flows: `docs/collector.md` lists its fields.

use std::{fmt, net::IpAddr};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};

/// A flow in one direction. What is unknown is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The first and the last frame of this report, in milliseconds since 1970.
    pub start: u64,
    pub end: u64,
    pub ether_type: u16,
    /// Number of the IP protocol.
    pub protocol: u8,
    /// With Ethernet headers.
    pub bytes: u64,
    pub packets: u64,
    /// All TCP flags.
    pub flags: Option<u16>,
    pub icmp_type: Option<u8>,
    pub icmp_code: Option<u8>,
    /// From the SYN to the acknowledgment of its answer, in nanoseconds.
    pub handshake: Option<u64>,
    pub dns: Dns,
    pub payload: Option<u64>,
    /// Of the whole flow so far, as the next two.
    pub missing_by_mirror: Option<u64>,
    pub missing_by_collector: Option<u64>,
    pub retransmitted: Option<u64>,
    pub end_reason: Option<String>,
    pub opener: Option<String>,
    pub preexisting: bool,
    pub degraded: bool,
    /// From the server to the client.
    pub reply: bool,
    pub failure: Option<String>,
    pub connection: Option<String>,
    pub sni: Option<String>,
    pub translated_by: Option<String>,
    pub zone: Option<u16>,
    pub source: End,
    pub destination: End,
    /// As after address translation.
    pub translated_source: Option<End>,
    pub translated_destination: Option<End>,
}

/// What a client asked a DNS server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    pub id: Option<u16>,
    pub name: Option<String>,
    pub response_code: Option<String>,
    /// In milliseconds.
    pub latency: Option<u64>,
}

/// An end of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub name: Option<String>,
    pub namespace: Option<String>,
    /// `Pod`, `Service` or `Node`.
    pub kind: Option<String>,
    pub owner: Option<String>,
    pub owner_kind: Option<String>,
    pub node: Option<String>,
    pub node_address: Option<IpAddr>,
    pub zone: Option<String>,
    pub taps: Vec<String>,
    /// Name of a network outside of the cluster.
    pub network: Option<String>,
    /// ISO 3166-1.
    pub country: Option<String>,
    /// As what the client looked it up.
    pub dns_name: Option<String>,
    pub service: Option<String>,
    pub service_namespace: Option<String>,
    pub service_port: Option<u16>,
}

/// A bit of [`Flow::flags`].
const SYN: u16 = 0x02;

impl Flow {
    /// Whether a SYN is in this report.
    pub fn has_syn(&self) -> bool {
        self.flags.is_some_and(|flags| flags & SYN != 0)
    }

    /// Whether this is its last report.
    pub fn has_ended(&self) -> bool {
        self.end_reason.as_deref() != Some("activeTimeout")
    }

    /// Whether both are directions of one report.
    pub fn is_reply_to(&self, sent: &Self) -> bool {
        let ends = |flow: &Self| [&flow.source, &flow.destination].map(|end| (end.address, end.port));
        let [from, to] = ends(sent);
        self.reply
            && !sent.reply
            && (self.protocol, self.start, self.end) == (sent.protocol, sent.start, sent.end)
            && ends(self) == [to, from]
    }

    fn set<'de, Map: MapAccess<'de>>(&mut self, field: &str, map: &mut Map) -> Result<(), Map::Error> {
        match field {
            "TimeFlowStartMs" => self.start = map.next_value()?,
            "TimeFlowEndMs" => self.end = map.next_value()?,
            "Etype" => self.ether_type = map.next_value()?,
            "Proto" => self.protocol = map.next_value()?,
            "Bytes" => self.bytes = map.next_value()?,
            "Packets" => self.packets = map.next_value()?,
            "Flags" => self.flags = map.next_value()?,
            "IcmpType" => self.icmp_type = map.next_value()?,
            "IcmpCode" => self.icmp_code = map.next_value()?,
            "TimeFlowRttNs" => self.handshake = map.next_value()?,
            "DnsId" => self.dns.id = map.next_value()?,
            "DnsName" => self.dns.name = map.next_value()?,
            "DnsFlagsResponseCode" => self.dns.response_code = map.next_value()?,
            "DnsLatencyMs" => self.dns.latency = map.next_value()?,
            "PayloadBytes" => self.payload = map.next_value()?,
            "MirrorMissingBytes" => self.missing_by_mirror = map.next_value()?,
            "CollectorMissingBytes" => self.missing_by_collector = map.next_value()?,
            "RetransBytes" => self.retransmitted = map.next_value()?,
            "FlowEndReason" => self.end_reason = map.next_value()?,
            "Opener" => self.opener = map.next_value()?,
            "Preexisting" => self.preexisting = map.next_value()?,
            "Degraded" => self.degraded = map.next_value()?,
            "Reply" => self.reply = map.next_value()?,
            "Failure" => self.failure = map.next_value()?,
            "ConnId" => self.connection = map.next_value()?,
            "TlsSni" => self.sni = map.next_value()?,
            "XlatBy" => self.translated_by = map.next_value()?,
            "ZoneId" => self.zone = map.next_value()?,
            _ => {
                let (end, of_end) = if let Some(of_end) = field.strip_prefix("XlatSrc") {
                    (self.translated_source.get_or_insert_default(), of_end)
                } else if let Some(of_end) = field.strip_prefix("XlatDst") {
                    (self.translated_destination.get_or_insert_default(), of_end)
                } else if let Some(of_end) = field.strip_prefix("Src") {
                    (&mut self.source, of_end)
                } else if let Some(of_end) = field.strip_prefix("Dst") {
                    (&mut self.destination, of_end)
                } else {
                    return Err(unknown(field));
                };
                if !end.set(of_end, map)? {
                    return Err(unknown(field));
                }
            }
        }
        Ok(())
    }
}

fn unknown<E: Error>(field: &str) -> E {
    E::custom(format_args!("no flow has the field {field}"))
}

impl End {
    /// Whether there is such a field.
    fn set<'de, Map: MapAccess<'de>>(&mut self, field: &str, map: &mut Map) -> Result<bool, Map::Error> {
        match field {
            "Addr" => self.address = map.next_value()?,
            "Port" => self.port = map.next_value()?,
            "K8S_Name" => self.name = map.next_value()?,
            "K8S_Namespace" => self.namespace = map.next_value()?,
            "K8S_Type" => self.kind = map.next_value()?,
            "K8S_OwnerName" => self.owner = map.next_value()?,
            "K8S_OwnerType" => self.owner_kind = map.next_value()?,
            "K8S_HostName" => self.node = map.next_value()?,
            "K8S_HostIP" => self.node_address = map.next_value()?,
            "K8S_Zone" => self.zone = map.next_value()?,
            "Taps" => self.taps = map.next_value()?,
            "SubnetLabel" => self.network = map.next_value()?,
            "Country" => self.country = map.next_value()?,
            "DnsName" => self.dns_name = map.next_value()?,
            "ServiceName" => self.service = map.next_value()?,
            "ServiceNamespace" => self.service_namespace = map.next_value()?,
            "ServicePort" => self.service_port = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl<'de> Deserialize<'de> for Flow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Flow;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object with the fields of a flow")
            }

            fn visit_map<Map: MapAccess<'de>>(self, mut map: Map) -> Result<Flow, Map::Error> {
                let mut flow = Flow::default();
                // Field names have no escapes, and are borrowed.
                while let Some(field) = map.next_key::<&str>()? {
                    flow.set(field, &mut map)?;
                }
                Ok(flow)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_two_ends() {
        let line = r#"{"TimeFlowStartMs":1000,"TimeFlowEndMs":2000,"Etype":2048,"Proto":6,"Bytes":54,"Packets":1,"SrcAddr":"10.0.0.2",
            "SrcPort":80,"DstAddr":"10.0.0.1","DstPort":40000,"Reply":true,"SrcServiceName":"cart","DstK8S_Name":"web",
            "SrcTaps":["PodTap shop/web"],"XlatDstAddr":"fd00::1"}"#;
        let flow: Flow = serde_json::from_str(line).expect("a flow");
        assert_eq!(flow.source.port, Some(80));
        assert_eq!(flow.source.service.as_deref(), Some("cart"));
        assert_eq!(flow.source.taps, ["PodTap shop/web"]);
        assert_eq!(flow.destination.name.as_deref(), Some("web"));
        assert_eq!(flow.translated_source, None);
        let translated = flow.translated_destination.clone().expect("it is there");
        assert_eq!(translated.address, Some("fd00::1".parse().expect("an address")));
        let sent =
            Flow { reply: false, source: flow.destination.clone(), destination: flow.source.clone(), ..flow.clone() };
        assert!(flow.is_reply_to(&sent));
        assert!(!sent.is_reply_to(&flow));
        assert!(!flow.is_reply_to(&Flow { end: 2001, ..sent }));
    }

    #[test]
    fn a_field_that_no_flow_has_is_an_error() {
        for line in [r#"{"Sent":1}"#, r#"{"SrcName":1}"#, r#"{"Bytes":-1}"#, r#"["Bytes"]"#] {
            assert!(serde_json::from_str::<Flow>(line).is_err(), "{line}");
        }
    }

    #[test]
    fn all_documented_fields_are_known() {
        let fields = fixtures::documented_fields();
        assert!(fields.len() > 70, "{}", fields.len());
        for field in fields {
            let error =
                serde_json::from_str::<Flow>(&format!(r#"{{"{field}":{{}}}}"#)).expect_err("no field is an object");
            assert!(
                !error.to_string().contains("no flow has the field"),
                "{field} is documented, and unknown to the exporter"
            );
        }
    }
}

#[cfg(test)]
pub mod fixtures {
    use std::{collections::BTreeSet, fs, path::Path};

    /// All that docs/collector.md lists; the collector's own test holds its lines to this list.
    pub fn documented_fields() -> BTreeSet<String> {
        let documents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/collector.md");
        let documents = fs::read_to_string(documents).expect("text");
        let section = documents.split("\n## Fields of flows\n").nth(1).and_then(|rest| rest.split("\n## ").next());
        let values = ["syn", "idleTimeout", "PodTap"];
        let mut fields = BTreeSet::new();
        for name in section.expect("a section").split('`').skip(1).step_by(2) {
            // A value, or `SrcK8S_*`.
            if !name.starts_with(|first: char| first.is_ascii_uppercase())
                || name.contains([' ', '*'])
                || values.contains(&name)
            {
                continue;
            }
            // What follows `SrcK8S_*`.
            if OF_KUBERNETES.contains(&name) {
                fields.extend(["Src", "Dst", "XlatSrc", "XlatDst"].map(|end| format!("{end}K8S_{name}")));
            } else {
                fields.insert(name.to_owned());
            }
        }
        fields
    }

    const OF_KUBERNETES: [&str; 8] =
        ["Name", "Namespace", "Type", "OwnerName", "OwnerType", "HostName", "HostIP", "Zone"];
}
