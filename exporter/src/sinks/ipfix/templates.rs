//! Which information elements flows have, and records that are made of them.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    field::{Family, Field, REVERSE, types_template},
    messages::SetRecord,
    report::{Report, antrea_type, application, direction, end_reason, flow_id, octets, pod, service, station},
};
use crate::{flow::Flow, record::Record};

/// Enterprise number of Antrea.
const ANTREA: u32 = 56506;
/// The set of templates.
const TEMPLATES: u16 = 2;
/// ID of the first template of flows.
const FIRST: u16 = 257;

/// Which elements have names of Kubernetes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Elements of IANA.
    #[default]
    Native,
    /// Those of `NetObserv`, with an enterprise number that the user chooses.
    NetObserv,
    /// Those of Antrea.
    Antrea,
}

/// What records have.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub profile: Profile,
    /// Enterprise number of `NetObserv`'s elements.
    pub enterprise: u32,
    /// Both directions are in one record.
    pub biflow: bool,
}

/// Makes records of flows.
#[derive(Debug)]
pub struct Encoder {
    format: Format,
    templates: Vec<Template>,
}

#[derive(Debug)]
struct Template {
    id: u16,
    shape: Shape,
    fields: Vec<Field>,
}

impl Encoder {
    pub fn new(format: Format) -> Self {
        let template = |(id, shape): (u16, Shape)| Template { id, shape, fields: shape.fields(format) };
        Self { format, templates: (FIRST..).zip(Shape::all()).map(template).collect() }
    }

    /// All templates, and the types of elements that IANA has not registered.
    pub fn templates(&self) -> Vec<SetRecord> {
        let mut types: Vec<&Field> = Vec::new();
        for field in self.templates.iter().flat_map(|template| &template.fields) {
            // Those of the other direction have the types of this one's.
            let is_known = [0, REVERSE].contains(&field.enterprise) || types.iter().any(|known| known.id == field.id);
            if !is_known {
                types.push(field);
            }
        }
        let types_template = (!types.is_empty()).then(types_template);
        let types = types.into_iter().map(Field::type_record);
        self.templates.iter().map(Template::record).chain(types_template).chain(types).collect()
    }

    /// The data records of a flow: one, or one for each direction.
    pub fn encode(&self, record: &Record) -> Vec<SetRecord> {
        let mut flows = record.lines().map(|line| &line.flow);
        let mut records = Vec::new();
        while let Some(flow) = flows.next() {
            let reverse = if self.format.biflow { flows.next() } else { None };
            records.extend(self.data_record(&Report { flow, reverse }));
        }
        records
    }

    /// Each shape has a template.
    fn data_record(&self, report: &Report<'_>) -> Option<SetRecord> {
        let shape = Shape::of(report, self.format.profile);
        let template = self.templates.iter().find(|template| template.shape == shape)?;
        let mut bytes = Vec::with_capacity(256);
        for field in &template.fields {
            field.write(report, &mut bytes);
        }
        Some(SetRecord { set: template.id, bytes })
    }
}

impl Template {
    /// A template record (RFC 7011, section 3.4.1).
    fn record(&self) -> SetRecord {
        let count = u16::try_from(self.fields.len()).unwrap_or(u16::MAX);
        let mut bytes = [self.id, count].map(u16::to_be_bytes).concat();
        for field in &self.fields {
            field.specify(&mut bytes);
        }
        SetRecord { set: TEMPLATES, bytes }
    }
}

/// What a protocol has beside addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Ports,
    Icmp,
    Other,
}

/// Flows that have the same elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    family: Family,
    transport: Transport,
    /// Addresses were translated; of Antrea, the client has called a service.
    translated: bool,
}

impl Shape {
    fn all() -> impl Iterator<Item = Self> {
        let families = [Family::V4, Family::V6].into_iter();
        let both = families.flat_map(|family| {
            [Transport::Ports, Transport::Icmp, Transport::Other].map(|transport| (family, transport))
        });
        both.flat_map(|(family, transport)| [false, true].map(|translated| Self { family, transport, translated }))
    }

    fn of(report: &Report<'_>, profile: Profile) -> Self {
        let Flow { source, destination, icmp_type, .. } = report.flow;
        let transport = match (source.port, icmp_type) {
            (Some(_), _) => Transport::Ports,
            (None, Some(_)) => Transport::Icmp,
            (None, None) => Transport::Other,
        };
        let family = Family::of([source, destination].map(|end| end.address));
        let translated = match profile {
            Profile::Antrea => report.is_to_service(),
            Profile::Native | Profile::NetObserv => {
                report.translated().is_some_and(|ends| Family::of(ends.map(|end| end.address)) == family)
            }
        };
        Self { family, transport, translated }
    }

    /// Its elements, in this order.
    fn fields(self, Format { profile, enterprise, biflow }: Format) -> Vec<Field> {
        let mut fields = vec![
            Field::milliseconds(152, "flowStartMilliseconds", |report| report.flow.start),
            Field::milliseconds(153, "flowEndMilliseconds", |report| report.flow.end),
        ];
        fields.extend(self.addresses(profile));
        fields.push(Field::unsigned8(4, "protocolIdentifier", |report| report.flow.protocol));
        fields.extend(self.transport(profile));
        fields.extend([
            Field::unsigned64(1, "octetDeltaCount", |report| octets(report.flow)),
            Field::unsigned64(2, "packetDeltaCount", |report| report.flow.packets),
        ]);
        if biflow {
            fields.extend(reverse().map(|field| field.of(REVERSE)));
        }
        fields.extend([
            Field::unsigned64(231, "initiatorOctets", |report| report.payload(false)),
            Field::unsigned64(232, "responderOctets", |report| report.payload(true)),
            Field::unsigned8(136, "flowEndReason", end_reason),
            Field::unsigned8(239, "biflowDirection", direction),
            Field::unsigned64(148, "flowId", flow_id),
        ]);
        match profile {
            Profile::Native => {
                fields.extend(self.translation());
                fields.extend(native());
            }
            Profile::NetObserv => {
                fields.extend(self.translation());
                fields.push(Field::unsigned16(256, "ethernetType", |report| report.flow.ether_type));
                fields.extend(netobserv().map(|field| field.of(enterprise)));
            }
            Profile::Antrea => {
                fields.extend(antrea().map(|field| field.of(ANTREA)));
                fields.extend(self.antrea_service().into_iter().map(|field| field.of(ANTREA)));
            }
        }
        fields
    }

    fn addresses(self, profile: Profile) -> [Field; 2] {
        let (source, destination) = ((8, "sourceIPv4Address"), (12, "destinationIPv4Address"));
        let (source_v6, destination_v6) = ((27, "sourceIPv6Address"), (28, "destinationIPv6Address"));
        [
            Field::address(self.family, source, source_v6, |report| report.flow.source.address),
            match profile {
                Profile::Native | Profile::NetObserv => {
                    Field::address(self.family, destination, destination_v6, |report| report.flow.destination.address)
                }
                Profile::Antrea => {
                    Field::address(self.family, destination, destination_v6, |report| report.final_destination().0)
                }
            },
        ]
    }

    fn transport(self, profile: Profile) -> Vec<Field> {
        match self.transport {
            Transport::Ports => vec![
                Field::unsigned16(7, "sourceTransportPort", |report| report.flow.source.port.unwrap_or_default()),
                match profile {
                    Profile::Native | Profile::NetObserv => {
                        Field::unsigned16(11, "destinationTransportPort", called_port)
                    }
                    Profile::Antrea => {
                        Field::unsigned16(11, "destinationTransportPort", |report| report.final_destination().1)
                    }
                },
                Field::unsigned16(6, "tcpControlBits", |report| report.flow.flags.unwrap_or_default()),
            ],
            Transport::Icmp => self.icmp().into(),
            Transport::Other => Vec::new(),
        }
    }

    /// In both forms: collectors read one or the other.
    fn icmp(self) -> [Field; 3] {
        let kind = |report: &Report<'_>| report.flow.icmp_type.unwrap_or_default();
        let code = |report: &Report<'_>| report.flow.icmp_code.unwrap_or_default();
        let both = |report: &Report<'_>| {
            u16::from_be_bytes([&report.flow.icmp_type, &report.flow.icmp_code].map(|byte| byte.unwrap_or_default()))
        };
        match self.family {
            Family::V4 => [
                Field::unsigned8(176, "icmpTypeIPv4", kind),
                Field::unsigned8(177, "icmpCodeIPv4", code),
                Field::unsigned16(32, "icmpTypeCodeIPv4", both),
            ],
            Family::V6 => [
                Field::unsigned8(178, "icmpTypeIPv6", kind),
                Field::unsigned8(179, "icmpCodeIPv6", code),
                Field::unsigned16(139, "icmpTypeCodeIPv6", both),
            ],
        }
    }

    /// Addresses and ports after translation.
    fn translation(self) -> Vec<Field> {
        let (source, destination) = ((225, "postNATSourceIPv4Address"), (226, "postNATDestinationIPv4Address"));
        let (source_v6, destination_v6) = ((281, "postNATSourceIPv6Address"), (282, "postNATDestinationIPv6Address"));
        let addresses = [
            Field::address(self.family, source, source_v6, |report| report.translated()?[0].address),
            Field::address(self.family, destination, destination_v6, |report| report.translated()?[1].address),
        ];
        let ports = [
            Field::unsigned16(227, "postNAPTSourceTransportPort", |report| translated_port(report, 0)),
            Field::unsigned16(228, "postNAPTDestinationTransportPort", |report| translated_port(report, 1)),
        ];
        match (self.translated, self.transport) {
            (false, _) => Vec::new(),
            (true, Transport::Ports) => [addresses, ports].concat(),
            (true, _) => addresses.into(),
        }
    }

    /// What the client has called.
    fn antrea_service(self) -> Vec<Field> {
        if !self.translated {
            return Vec::new();
        }
        let (v4, v6) = ((106, "destinationClusterIPv4"), (107, "destinationClusterIPv6"));
        vec![
            Field::address(self.family, v4, v6, |report| report.flow.destination.address),
            Field::unsigned16(108, "destinationServicePort", called_port),
            Field::text(109, "destinationServicePortName", |report| {
                service(&report.flow.destination).unwrap_or_default().into()
            }),
        ]
    }
}

fn called_port(report: &Report<'_>) -> u16 {
    report.flow.destination.port.unwrap_or_default()
}

fn translated_port(report: &Report<'_>, end: usize) -> u16 {
    report.translated().and_then(|ends| ends[end].port).unwrap_or_default()
}

/// Of the other direction, if both are in one record.
fn reverse() -> [Field; 3] {
    [
        Field::unsigned64(1, "reverseOctetDeltaCount", |report| report.reverse.map_or(0, octets)),
        Field::unsigned64(2, "reversePacketDeltaCount", |report| report.reverse.map_or(0, |flow| flow.packets)),
        Field::unsigned16(6, "reverseTcpControlBits", |report| {
            report.reverse.and_then(|flow| flow.flags).unwrap_or_default()
        }),
    ]
}

/// IANA's name of a station is that of the source. In the other direction, that is the destination.
fn native() -> [Field; 3] {
    [
        Field::text(350, "virtualStationName", |report| station(&report.flow.source)),
        Field::text(350, "reverseVirtualStationName", |report| station(report.server())).of(REVERSE),
        Field::text(96, "applicationName", application),
    ]
}

/// As its flowlogs-pipeline exports them.
fn netobserv() -> [Field; 7] {
    [
        Field::text(7733, "sourcePodNamespace", |report| text(report.flow.source.namespace.as_deref())),
        Field::text(7734, "sourcePodName", |report| text(report.flow.source.name.as_deref())),
        Field::text(7735, "destinationPodNamespace", |report| text(report.flow.destination.namespace.as_deref())),
        Field::text(7736, "destinationPodName", |report| text(report.flow.destination.name.as_deref())),
        Field::text(7737, "sourceNodeName", |report| text(report.flow.source.node.as_deref())),
        Field::text(7738, "destinationNodeName", |report| text(report.flow.destination.node.as_deref())),
        Field::unsigned64(7740, "timeFlowRttNs", |report| report.flow.handshake.unwrap_or_default()),
    ]
}

/// Of pods only, also of those behind a service.
fn antrea() -> [Field; 7] {
    [
        Field::text(100, "sourcePodNamespace", |report| {
            text(pod(&report.flow.source).and_then(|pod| pod.namespace.as_deref()))
        }),
        Field::text(101, "sourcePodName", |report| text(pod(&report.flow.source).and_then(|pod| pod.name.as_deref()))),
        Field::text(102, "destinationPodNamespace", |report| {
            text(pod(report.server()).and_then(|pod| pod.namespace.as_deref()))
        }),
        Field::text(103, "destinationPodName", |report| text(pod(report.server()).and_then(|pod| pod.name.as_deref()))),
        Field::text(104, "sourceNodeName", |report| text(report.flow.source.node.as_deref())),
        Field::text(105, "destinationNodeName", |report| text(report.server().node.as_deref())),
        Field::unsigned8(137, "flowType", antrea_type),
    ]
}

/// An unknown name is empty.
fn text(name: Option<&str>) -> Cow<'_, str> {
    name.unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        record::{Line, fixtures},
        sinks::ipfix::field::LONGEST_TEXT,
    };

    const FORMAT: Format = Format { profile: Profile::Native, enterprise: 0, biflow: true };
    const PROFILES: [Format; 3] = [
        FORMAT,
        Format { profile: Profile::NetObserv, enterprise: 9, ..FORMAT },
        Format { profile: Profile::Antrea, ..FORMAT },
    ];

    /// A connection of a pod to a service, with these fields beside its ends.
    fn record(more: &str, reply: Option<&str>) -> Record {
        let line = |text: String| Line { flow: serde_json::from_str(&text).expect("a flow"), text: "".into() };
        let text = format!(
            r#"{{"TimeFlowStartMs":1000,"TimeFlowEndMs":2000,"Etype":2048,"Proto":6,"Bytes":954,"Packets":6,"Flags":27,
            "PayloadBytes":500,"FlowEndReason":"endOfFlow","ConnId":"00000000deadbeef","TimeFlowRttNs":300,
            "SrcAddr":"10.1.0.2","SrcPort":40000,"SrcK8S_Name":"client-1","SrcK8S_Namespace":"shop","SrcK8S_Type":"Pod",
            "SrcK8S_HostName":"n1","DstAddr":"10.96.0.5","DstPort":80,"DstK8S_Name":"web","DstK8S_Namespace":"shop",
            "DstK8S_Type":"Service","DstServiceName":"web","DstServiceNamespace":"shop"{more}}}"#
        );
        Record { sent: Some(line(text)), received: reply.map(|text| line(text.to_owned())) }
    }

    const TRANSLATED: &str = r#","XlatBy":"join","XlatSrcAddr":"10.1.0.2","XlatSrcPort":40000,"XlatDstAddr":"10.2.0.3",
        "XlatDstPort":8080,"XlatDstK8S_Name":"web-3","XlatDstK8S_Namespace":"shop","XlatDstK8S_Type":"Pod","XlatDstK8S_HostName":"n2""#;
    const REPLY: &str = r#"{"TimeFlowStartMs":1000,"TimeFlowEndMs":2000,"Etype":2048,"Proto":6,"Bytes":10070,"Packets":5,
        "Flags":19,"PayloadBytes":9000,"SrcAddr":"10.96.0.5","SrcPort":80,"DstAddr":"10.1.0.2","DstPort":40000,"Reply":true}"#;

    /// The values of a record, by enterprise and ID, as its template says.
    fn decoded(encoder: &Encoder, record: &SetRecord) -> BTreeMap<(u32, u16), Vec<u8>> {
        let templates = encoder.templates();
        let is_template = |template: &&SetRecord| template.set == 2 && template.bytes[..2] == record.set.to_be_bytes();
        let mut specifiers = &templates.iter().find(is_template).expect("a template").bytes[4..];
        let mut take = |count: usize| {
            let (bytes, rest) = specifiers.split_at(count);
            specifiers = rest;
            bytes.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte))
        };
        let (mut values, mut rest) = (BTreeMap::new(), &*record.bytes);
        while !rest.is_empty() {
            let (id, length) = (take(2), take(2));
            let enterprise = if id >> 15 == 1 { take(4) } else { 0 };
            let (start, length) = if length == 0xffff { (1, rest[0].into()) } else { (0, length as usize) };
            let id = u16::try_from(id & 0x7fff).expect("15 bits");
            assert_eq!(
                values.insert((enterprise, id), rest[start..start + length].to_vec()),
                None,
                "{id} is there twice"
            );
            rest = &rest[start + length..];
        }
        assert!(specifiers.is_empty());
        values
    }

    fn only(encoder: &Encoder, record: &Record) -> BTreeMap<(u32, u16), Vec<u8>> {
        let records = encoder.encode(record);
        assert_eq!(records.len(), 1);
        decoded(encoder, &records[0])
    }

    #[test]
    fn a_record_has_what_its_template_says() {
        let encoder = Encoder::new(FORMAT);
        let template = &encoder.templates()[0];
        let own = |id: u16, length: u16| [id, length].map(u16::to_be_bytes).concat();
        let reverse = |id: u16, length: u16| [own(id | 1 << 15, length), vec![0, 0, 0x72, 0x79]].concat();
        let expected = [
            vec![1, 1, 0, 21],
            own(152, 8),
            own(153, 8),
            own(8, 4),
            own(12, 4),
            own(4, 1),
            own(7, 2),
            own(11, 2),
            own(6, 2),
            own(1, 8),
            own(2, 8),
            reverse(1, 8),
            reverse(2, 8),
            reverse(6, 2),
            own(231, 8),
            own(232, 8),
            own(136, 1),
            own(239, 1),
            own(148, 8),
            own(350, 0xffff),
            reverse(350, 0xffff),
            own(96, 0xffff),
        ];
        assert_eq!((template.set, &template.bytes), (2, &expected.concat()));
        let records = encoder.encode(&record("", Some(REPLY)));
        let expected = [
            &1000_u64.to_be_bytes()[..],
            &2000_u64.to_be_bytes(),
            &[10, 1, 0, 2],
            &[10, 96, 0, 5],
            &[6],
            &[0x9c, 0x40],
            &[0, 80],
            &[0, 27],
            // Without 14 bytes for each packet.
            &870_u64.to_be_bytes(),
            &6_u64.to_be_bytes(),
            &10_000_u64.to_be_bytes(),
            &5_u64.to_be_bytes(),
            &[0, 19],
            &500_u64.to_be_bytes(),
            &9000_u64.to_be_bytes(),
            &[3],
            &[1],
            &0xdead_beef_u64.to_be_bytes(),
            b"\x0dshop/client-1",
            b"\0",
            b"\x08shop/web",
        ];
        assert_eq!(records, [SetRecord { set: 257, bytes: expected.concat() }]);
    }

    #[test]
    fn flows_without_translation_have_a_template_of_their_own() {
        let encoder = Encoder::new(FORMAT);
        let values = only(&encoder, &record(TRANSLATED, Some(REPLY)));
        assert_eq!([225, 226].map(|id| &*values[&(0, id)]), [[10, 1, 0, 2], [10, 2, 0, 3]]);
        assert_eq!([227, 228].map(|id| &*values[&(0, id)]), [[0x9c, 0x40], [0x1f, 0x90]]);
        assert_eq!((&*values[&(0, 12)], &*values[&(REVERSE, 350)]), (&[10, 96, 0, 5][..], &b"shop/web-3"[..]));
        assert!(!only(&encoder, &record("", None)).contains_key(&(0, 225)));
        // A workload is known, and no address.
        let workload = record(r#","XlatBy":"endpoints","XlatDstK8S_OwnerName":"web""#, None);
        assert!(!only(&encoder, &workload).contains_key(&(0, 225)));
    }

    #[test]
    fn ipv6_and_other_protocols_have_templates_of_their_own() {
        let encoder = Encoder::new(FORMAT);
        let one = |text: &str| {
            let flow = serde_json::from_str(text).expect("a flow");
            let record = Record { sent: Some(Line { text: "".into(), flow }), received: None };
            only(&encoder, &record)
        };
        let values = one(r#"{"Proto":58,"IcmpType":128,"IcmpCode":1,"SrcAddr":"fd00::1","DstAddr":"fd00::2"}"#);
        assert_eq!(values[&(0, 27)], [[0xfd].as_slice(), &[0; 14], &[1]].concat());
        assert_eq!([178, 179, 139].map(|id| &*values[&(0, id)]), [&[128][..], &[1], &[128, 1]]);
        assert!(!values.contains_key(&(0, 7)) && !values.contains_key(&(0, 8)));
        let values = one(r#"{"Proto":1,"IcmpType":8,"IcmpCode":0,"SrcAddr":"10.0.0.1","DstAddr":"10.0.0.2"}"#);
        assert_eq!([176, 177, 32].map(|id| &*values[&(0, id)]), [&[8][..], &[0], &[8, 0]]);
        let values = one(r#"{"Proto":47,"SrcAddr":"10.0.0.1","DstAddr":"10.0.0.2"}"#);
        assert!(!values.contains_key(&(0, 7)) && !values.contains_key(&(0, 176)));
    }

    #[test]
    fn a_direction_alone_says_which_one_it_is() {
        let reply = Record { sent: None, received: record("", Some(REPLY)).received };
        let values = only(&Encoder::new(FORMAT), &reply);
        assert_eq!((&*values[&(0, 8)], &*values[&(0, 239)]), (&[10, 96, 0, 5][..], &[2][..]));
        assert_eq!(
            [231, 232].map(|id| values[&(0, id)].clone()),
            [0_u64, 9000].map(|count| count.to_be_bytes().to_vec())
        );
        // A record for each direction.
        let encoder = Encoder::new(Format { biflow: false, ..FORMAT });
        let records = encoder.encode(&record(TRANSLATED, Some(REPLY)));
        let [sent, received] = [&records[0], &records[1]].map(|record| decoded(&encoder, record));
        assert_eq!([&sent, &received].map(|values| &*values[&(0, 239)]), [[1], [2]]);
        assert_eq!(
            [&sent, &received].map(|values| u64::from_be_bytes(*values[&(0, 2)].first_chunk().expect("8"))),
            [6, 5]
        );
        assert!(!sent.contains_key(&(REVERSE, 1)) && !received.contains_key(&(0, 225)));
    }

    #[test]
    fn netobserv_has_the_names_of_both_ends() {
        let values = only(&Encoder::new(PROFILES[1]), &record(TRANSLATED, None));
        let names = (7733..7739).map(|id| str::from_utf8(&values[&(9, id)]).expect("text"));
        assert_eq!(names.collect::<Vec<_>>(), ["shop", "client-1", "shop", "web", "n1", ""]);
        assert_eq!(values[&(9, 7740)], 300_u64.to_be_bytes());
        assert_eq!((&*values[&(0, 226)], &*values[&(0, 256)]), (&[10, 2, 0, 3][..], &[8, 0][..]));
    }

    #[test]
    fn antrea_has_the_pod_that_answers_and_what_was_called() {
        let encoder = Encoder::new(PROFILES[2]);
        let values = only(&encoder, &record(TRANSLATED, Some(REPLY)));
        assert_eq!((&*values[&(0, 12)], &*values[&(0, 11)]), (&[10, 2, 0, 3][..], &[0x1f, 0x90][..]));
        assert_eq!((&*values[&(ANTREA, 106)], &*values[&(ANTREA, 108)]), (&[10, 96, 0, 5][..], &[0, 80][..]));
        let names = |values: &BTreeMap<_, Vec<u8>>| {
            (100..106).map(|id| String::from_utf8(values[&(ANTREA, id)].clone()).expect("text")).collect::<Vec<_>>()
        };
        assert_eq!(names(&values), ["shop", "client-1", "shop", "web-3", "n1", "n2"]);
        assert_eq!((&*values[&(ANTREA, 109)], &*values[&(ANTREA, 137)]), (&b"shop/web"[..], &[2][..]));
        assert!(!values.contains_key(&(0, 226)));
        // Which pod answers is unknown.
        let values = only(&encoder, &record("", None));
        assert_eq!((&*values[&(0, 12)], &*values[&(ANTREA, 106)]), (&[10, 96, 0, 5][..], &[10, 96, 0, 5][..]));
        assert_eq!((names(&values)[3].as_str(), &*values[&(ANTREA, 137)]), ("", &[0][..]));
        // No service was called.
        let values = only(&encoder, &fixtures::record(40_000));
        assert!(!values.contains_key(&(ANTREA, 106)));
    }

    #[test]
    fn all_records_fit_into_a_datagram() {
        for format in PROFILES {
            let encoder = Encoder::new(format);
            let records = encoder.templates();
            let types: Vec<_> = records.iter().filter(|record| record.set == 256).map(|record| &record.bytes).collect();
            assert_eq!(types.len(), [0, 7, 11][format.profile as usize], "{types:?}");
            assert!(
                types
                    .iter()
                    .all(|bytes| bytes[..4] == [0, format.enterprise, ANTREA][format.profile as usize].to_be_bytes())
            );
            let flow = Flow::default();
            let longest = encoder.templates.iter().map(|template| {
                let mut bytes = Vec::new();
                let texts = template.fields.iter().filter(|field| {
                    let mut specifier = Vec::new();
                    field.specify(&mut specifier);
                    field.write(&Report { flow: &flow, reverse: None }, &mut bytes);
                    specifier[2..4] == [0xff, 0xff]
                });
                texts.count() * LONGEST_TEXT + bytes.len()
            });
            let longest = longest.chain(records.iter().map(|record| record.bytes.len())).max();
            // Behind the headers of message and set.
            assert!(longest.is_some_and(|length| length + 20 <= 1400), "{format:?}: {longest:?}");
        }
    }
}
