//! Flows as JSON lines, with the names that `NetObserv` gives to the fields of its flows. What is unknown is missing.

pub mod restricted;

use std::io::{self, Write};

use podtap_flow::{
    Counts, End, Endpoint, Opener, Record, StreamTotals, Timestamp,
    map::failure_name,
    named::{NamedRecord, TranslatedBy},
    names::{Names, Network, Owner, Pod},
    packet,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::analysis::Output;

/// Bytes of an Ethernet header: `NetObserv` counts frames.
const ETHERNET: u64 = 14;

/// A flow in one direction.
pub type Object = Map<String, Value>;

/// Takes the fields of a flow in one direction, each once.
trait Fields {
    /// A field of an end.
    fn set_of(&mut self, end: &str, name: &str, value: impl Serialize);

    fn set(&mut self, name: &str, value: impl Serialize) {
        self.set_of("", name, value);
    }
}

impl Fields for Object {
    fn set_of(&mut self, end: &str, name: &str, value: impl Serialize) {
        self.insert(format!("{end}{name}"), serde_json::to_value(value).unwrap_or_default());
    }
}

/// The text of an object, without its end. Objects that are only written are not built: that takes four times as long.
struct Line(Vec<u8>);

impl Line {
    /// Bytes of most lines.
    const LENGTH: usize = 1024;

    fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(b"}\n");
        self.0
    }
}

impl Default for Line {
    fn default() -> Self {
        Self(Vec::with_capacity(Self::LENGTH))
    }
}

impl Fields for Line {
    /// No name has a character that JSON escapes.
    fn set_of(&mut self, end: &str, name: &str, value: impl Serialize) {
        let first = if self.0.is_empty() { b"{\"" } else { b",\"" };
        for part in [first, end.as_bytes(), name.as_bytes(), b"\":"] {
            self.0.extend_from_slice(part);
        }
        if serde_json::to_writer(&mut self.0, &value).is_err() {
            self.0.extend_from_slice(b"null");
        }
    }
}

/// Names of fields without the names of an end.
const FIELDS: [&str; 40] = [
    "TimeFlowStartMs",
    "TimeFlowEndMs",
    "Etype",
    "Proto",
    "Bytes",
    "Packets",
    "Flags",
    "IcmpType",
    "IcmpCode",
    "TimeFlowRttNs",
    "DnsId",
    "DnsName",
    "DnsFlagsResponseCode",
    "DnsLatencyMs",
    "SrcSubnetLabel",
    "DstSubnetLabel",
    "SrcCountry",
    "DstCountry",
    "PayloadBytes",
    "MirrorMissingBytes",
    "CollectorMissingBytes",
    "RetransBytes",
    "FlowEndReason",
    "Opener",
    "Preexisting",
    "Degraded",
    "Reply",
    "Failure",
    "ConnId",
    "XlatBy",
    "ZoneId",
    "DstDnsName",
    "TlsSni",
    "DstServiceName",
    "DstServiceNamespace",
    "DstServicePort",
    "SrcDnsName",
    "SrcServiceName",
    "SrcServiceNamespace",
    "SrcServicePort",
];
/// Prefixes of the fields of an end.
const ENDS: [&str; 4] = ["Src", "Dst", "XlatSrc", "XlatDst"];
/// Fields of an end.
const OF_END: [&str; 11] = [
    "Addr",
    "Port",
    "K8S_Name",
    "K8S_Namespace",
    "K8S_Type",
    "K8S_OwnerName",
    "K8S_OwnerType",
    "K8S_HostName",
    "K8S_HostIP",
    "K8S_Zone",
    "Taps",
];

/// All fields that an object may have.
pub fn fields() -> impl Iterator<Item = String> {
    let of_ends = ENDS.iter().flat_map(|end| OF_END.iter().map(move |field| format!("{end}{field}")));
    FIELDS.iter().map(|field| (*field).to_owned()).chain(of_ends)
}

/// Writes a line per flow and direction, each by one call; nothing after the first error.
pub struct FlowLines<Out> {
    /// Each gets all lines.
    pub outs: Vec<Out>,
    pub result: io::Result<()>,
}

impl<Out: Write> FlowLines<Out> {
    pub fn new(outs: impl IntoIterator<Item = Out>) -> Self {
        Self { outs: outs.into_iter().collect(), result: Ok(()) }
    }
}

impl<Out: Write> Output for FlowLines<Out> {
    fn record(&mut self, flow: &NamedRecord<'_>, names: &Names) {
        if self.outs.is_empty() || self.result.is_err() {
            return;
        }
        self.result =
            lines(flow, names).try_for_each(|line| self.outs.iter_mut().try_for_each(|out| out.write_all(&line)));
    }
}

fn lines<'a>(flow: &'a NamedRecord<'_>, names: &'a Names) -> impl Iterator<Item = Vec<u8>> + use<'a> {
    directions::<Line>(flow, names).map(Line::finish)
}

/// An object in a line.
pub fn line(object: &Object) -> Vec<u8> {
    let mut line = serde_json::to_vec(object).unwrap_or_default();
    line.push(b'\n');
    line
}

/// An object for each direction that has frames or payload in this record.
pub fn objects<'a>(flow: &'a NamedRecord<'_>, names: &'a Names) -> impl Iterator<Item = Object> + use<'a> {
    directions(flow, names)
}

fn directions<'a, Direction: Fields + Default>(
    flow: &'a NamedRecord<'_>,
    names: &'a Names,
) -> impl Iterator<Item = Direction> + use<'a, Direction> {
    let seen = [false, true]
        .into_iter()
        .zip(flow.directions())
        .filter(|(_, (counts, _))| counts.frames > 0 || counts.payload > 0);
    seen.map(|(is_reply, (counts, totals))| {
        let mut fields = Direction::default();
        direction(&mut fields, flow, names, counts, totals, is_reply);
        fields
    })
}

fn direction(
    fields: &mut impl Fields,
    flow: &NamedRecord<'_>,
    names: &Names,
    counts: Counts,
    totals: StreamTotals,
    is_reply: bool,
) {
    let record = flow.record;
    fields.set("TimeFlowStartMs", record.from.milliseconds());
    fields.set("TimeFlowEndMs", record.to.milliseconds());
    fields.set("Etype", if flow.client.address.is_ipv4() { 0x0800 } else { 0x86dd });
    fields.set("Proto", record.protocol);
    fields.set("Bytes", counts.octets + ETHERNET * counts.frames);
    fields.set("Packets", counts.frames);
    if let Some((kind, code)) = record.icmp.filter(|_| !is_reply) {
        fields.set("IcmpType", kind);
        fields.set("IcmpCode", code);
    }
    let is_tcp = record.protocol == packet::TCP;
    if is_tcp {
        fields.set("Flags", counts.flags);
        fields.set("MirrorMissingBytes", totals.missing.by_mirror);
        fields.set("CollectorMissingBytes", totals.missing.by_collector);
        fields.set("RetransBytes", totals.retransmitted);
    }
    if matches!(record.protocol, packet::TCP | packet::UDP) {
        fields.set("PayloadBytes", counts.payload);
    }
    if let Some(handshake) = record.handshake {
        fields.set("TimeFlowRttNs", u64::try_from(handshake.as_nanos()).unwrap_or(u64::MAX));
    }
    let ends = [(flow.client, flow.client_owner), (flow.server, flow.server_owner)];
    let (client, server) = if is_reply { ("Dst", "Src") } else { ("Src", "Dst") };
    for ((address, owner), end) in ends.into_iter().zip([client, server]) {
        endpoint(fields, end, address, record.protocol);
        owned(fields, end, owner, names, record.to);
    }
    about_flow(fields, flow);
    if is_reply {
        fields.set("Reply", true);
    }
    about_server(fields, server, flow);
    if !is_reply {
        if let Some(name) = &record.sni {
            fields.set("TlsSni", &**name);
        }
        dns(fields, record);
        translation(fields, flow, names);
    }
}

fn endpoint(fields: &mut impl Fields, end: &str, endpoint: Endpoint, protocol: u8) {
    fields.set_of(end, "Addr", endpoint.address);
    if matches!(protocol, packet::TCP | packet::UDP | packet::SCTP) {
        fields.set_of(end, "Port", endpoint.port);
    }
}

/// Names of an end.
fn owned(fields: &mut impl Fields, end: &str, owner: Owner<'_>, names: &Names, at: Timestamp) {
    match owner {
        Owner::Pod(pod) => pod_names(fields, end, pod, names, at),
        Owner::Service(service) => {
            fields.set_of(end, "K8S_Name", &service.name);
            fields.set_of(end, "K8S_Namespace", &service.namespace);
            fields.set_of(end, "K8S_Type", "Service");
            fields.set_of(end, "K8S_OwnerName", &service.name);
            fields.set_of(end, "K8S_OwnerType", "Service");
        }
        Owner::Node(node) => {
            fields.set_of(end, "K8S_Name", &node.name);
            fields.set_of(end, "K8S_Type", "Node");
            fields.set_of(end, "K8S_OwnerName", &node.name);
            fields.set_of(end, "K8S_OwnerType", "Node");
            fields.set_of(end, "K8S_HostName", &node.name);
            if let Some(zone) = &node.zone {
                fields.set_of(end, "K8S_Zone", zone);
            }
        }
        Owner::External(Some(Network::Named(name))) => fields.set_of(end, "SubnetLabel", name),
        Owner::External(Some(Network::Country(country))) => fields.set_of(end, "Country", country.to_string()),
        Owner::External(None) => {}
    }
}

/// `at`: when frames of it were seen.
fn pod_names(fields: &mut impl Fields, end: &str, pod: &Pod, names: &Names, at: Timestamp) {
    fields.set_of(end, "K8S_Name", &pod.name);
    fields.set_of(end, "K8S_Namespace", &pod.namespace);
    fields.set_of(end, "K8S_Type", "Pod");
    fields.set_of(end, "K8S_OwnerName", &pod.workload.name);
    fields.set_of(end, "K8S_OwnerType", &pod.workload.kind);
    if let Some(node) = &pod.node {
        fields.set_of(end, "K8S_HostName", node);
        let node = names.node(node);
        if let Some(zone) = node.and_then(|node| node.zone.as_deref()) {
            fields.set_of(end, "K8S_Zone", zone);
        }
        if let Some(address) = node.and_then(|node| node.addresses.first()) {
            fields.set_of(end, "K8S_HostIP", address);
        }
    }
    let taps: Vec<&str> = names.taps(pod, at).collect();
    if !taps.is_empty() {
        fields.set_of(end, "Taps", taps);
    }
}

/// What is the same in both directions.
fn about_flow(fields: &mut impl Fields, flow: &NamedRecord<'_>) {
    let record = flow.record;
    fields.set("FlowEndReason", end_reason(record.end));
    fields.set("Opener", opener(record.opener));
    if record.preexisting {
        fields.set("Preexisting", true);
    }
    if record.degraded {
        fields.set("Degraded", true);
    }
    if let Some(failure) = record.failure {
        fields.set("Failure", failure_name(failure));
    }
    if let Some(connection) = record.connection {
        fields.set("ConnId", format!("{connection:016x}"));
    }
}

/// How the client calls the server, which is this end.
fn about_server(fields: &mut impl Fields, end: &str, flow: &NamedRecord<'_>) {
    if let Some(name) = &flow.record.dns_name {
        fields.set_of(end, "DnsName", &**name);
    }
    if let Some((service, port)) = flow.service {
        fields.set_of(end, "ServiceName", &service.name);
        fields.set_of(end, "ServiceNamespace", &service.namespace);
        fields.set_of(end, "ServicePort", port.port);
    }
}

fn dns(fields: &mut impl Fields, record: &Record) {
    let Some(query) = &record.query else { return };
    fields.set("DnsId", query.id);
    fields.set("DnsName", &*query.name);
    if let Some(answer) = query.answer {
        fields.set("DnsFlagsResponseCode", response_code(answer.code));
        fields.set("DnsLatencyMs", u64::try_from(answer.after.as_millis()).unwrap_or(u64::MAX));
    }
}

/// In the direction of the client's packets only, as in `NetObserv`: its address translation is known by them.
fn translation(fields: &mut impl Fields, flow: &NamedRecord<'_>, names: &Names) {
    let Some(translated) = flow.translated else { return };
    let by = match translated.by {
        TranslatedBy::Join => "join",
        TranslatedBy::Conntrack => "conntrack",
        TranslatedBy::Endpoints => "endpoints",
    };
    fields.set("XlatBy", by);
    if let Some(zone) = flow.record.zone {
        fields.set("ZoneId", zone);
    }
    if let Some((client, server)) = translated.ends {
        endpoint(fields, "XlatSrc", client, flow.record.protocol);
        endpoint(fields, "XlatDst", server, flow.record.protocol);
    }
    if let Some(pod) = translated.pod {
        pod_names(fields, "XlatDst", pod, names, flow.record.to);
    } else if let Some((namespace, workload)) = translated.workload {
        fields.set("XlatDstK8S_Namespace", namespace);
        fields.set("XlatDstK8S_OwnerName", &workload.name);
        fields.set("XlatDstK8S_OwnerType", &workload.kind);
    }
    // After the translation of sources, it is another one than before.
    if let Some(pod) = translated.ends.and_then(|(client, _)| names.pod(client.address, flow.record.start)) {
        pod_names(fields, "XlatSrc", pod, names, flow.record.to);
    }
}

/// Names of the values of flowEndReason (IANA).
const fn end_reason(end: End) -> &'static str {
    match end {
        End::ActiveTimeout => "activeTimeout",
        End::IdleTimeout => "idleTimeout",
        End::Finished | End::Reset => "endOfFlow",
        End::Forced => "forcedEnd",
        End::LackOfResources => "lackOfResources",
    }
}

const fn opener(opener: Opener) -> &'static str {
    match opener {
        Opener::Syn => "syn",
        Opener::SynAck => "synAck",
        Opener::FirstFrame => "firstFrame",
        Opener::Port => "port",
        Opener::Conntrack => "conntrack",
    }
}

/// Names of response codes (RFC 1035, RFC 2136).
fn response_code(code: u8) -> String {
    const NAMES: [&str; 11] = [
        "NoError", "FormErr", "ServFail", "NXDomain", "NotImp", "Refused", "YXDomain", "YXRRSet", "NXRRSet", "NotAuth",
        "NotZone",
    ];
    NAMES.get(usize::from(code)).map_or_else(|| code.to_string(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use podtap_flow::{Failure, names::Objects};
    use serde_json::json;

    use super::*;
    use crate::fixtures::record;

    /// This file says what the fields are, and so does the documentation.
    #[test]
    fn fields_are_those_that_are_written_and_documented() {
        let known: BTreeSet<String> = fields().collect();
        let source = include_str!("flows.rs");
        for (call, end) in [("fields.set(\"", ""), ("fields.set_of(end, \"", "Src")] {
            for name in source.split(call).skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(
                    known.contains(&format!("{end}{name}")),
                    "{name} is not among the fields that /flows can be filtered by"
                );
            }
        }
        let documents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/collector.md");
        let documents = fs::read_to_string(documents).expect("text");
        for field in known {
            let name = field.split_once("K8S_").map_or(&*field, |(_, name)| name);
            assert!(documents.contains(&format!("`{name}`")), "docs/collector.md has no {name}");
        }
    }

    /// A field that is set twice would be in the line twice.
    #[test]
    fn a_line_is_the_text_of_its_object() {
        let pod = |name: &str, last: u8| {
            json!({"namespace": "shop", "name": name, "uid": name, "node": "n1", "addresses": [format!("10.0.0.{last}")],
                   "workload": {"kind": "Deployment", "name": "we\"b", "apiVersion": "apps/v1"}})
        };
        let objects_of_cluster = json!({
            "pods": [pod("web", 1), pod("cart", 2)],
            "nodes": [{"name": "n1", "addresses": ["10.1.0.1"], "zone": "a"}],
        });
        let cluster: Objects = serde_json::from_value(objects_of_cluster).expect("objects");
        let names = Names::new(cluster);
        let connection = Record {
            received: Counts { frames: 1, payload: 7, octets: 47, flags: 0x18 },
            failure: Some(Failure::Refused),
            preexisting: true,
            degraded: true,
            translated: Some((record(1).client, record(1).server)),
            zone: Some(3),
            dns_name: Some("cart.example".into()),
            sni: Some("\u{1}\u{e9}".into()),
            connection: Some(0xfe),
            ..record(1)
        };
        for record in [connection, record(2), Record { protocol: packet::ICMP, icmp: Some((8, 0)), ..record(3) }] {
            let flow = NamedRecord::new(&record, &names);
            let mut count = 0;
            for (written, object) in lines(&flow, &names).zip(objects(&flow, &names)) {
                assert_eq!(serde_json::from_slice::<Object>(&written).expect("an object"), object);
                assert_eq!(written.len(), line(&object).len(), "{object:?}");
                count += 1;
            }
            assert!(count > 0, "{record:?}");
        }
    }
}
