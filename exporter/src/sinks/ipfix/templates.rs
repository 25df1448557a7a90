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
pub struct Encoder {
    format: Format,
    templates: Vec<Template>,
}

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
