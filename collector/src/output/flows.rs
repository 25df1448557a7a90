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
use serde_json::{Map, Value};

use crate::analysis::Output;

/// Bytes of an Ethernet header: `NetObserv` counts frames.
const ETHERNET: u64 = 14;

/// A flow in one direction.
pub type Object = Map<String, Value>;

/// Names of fields without the names of an end.
const FIELDS: [&str; 39] = [
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
    /// `None`: nothing is written.
    pub out: Option<Out>,
    pub result: io::Result<()>,
}

impl<Out: Write> Output for FlowLines<Out> {
    fn record(&mut self, flow: &NamedRecord<'_>, names: &Names) {
        if let (Some(out), Ok(())) = (&mut self.out, &self.result) {
            self.result = lines(flow, names).try_for_each(|line| out.write_all(&line));
        }
    }
}

fn lines<'a>(flow: &'a NamedRecord<'_>, names: &'a Names) -> impl Iterator<Item = Vec<u8>> + use<'a> {
    objects(flow, names).map(|object| line(&object))
}

/// An object in a line.
pub fn line(object: &Object) -> Vec<u8> {
    let mut line = serde_json::to_vec(object).unwrap_or_default();
    line.push(b'\n');
    line
}

/// An object for each direction that has frames or payload in this record.
pub fn objects<'a>(flow: &'a NamedRecord<'_>, names: &'a Names) -> impl Iterator<Item = Object> + use<'a> {
    let seen = [false, true]
        .into_iter()
        .zip(flow.directions())
        .filter(|(_, (counts, _))| counts.frames > 0 || counts.payload > 0);
    seen.map(|(is_reply, (counts, totals))| direction(flow, names, counts, totals, is_reply))
}

fn direction(flow: &NamedRecord<'_>, names: &Names, counts: Counts, totals: StreamTotals, is_reply: bool) -> Object {
    let record = flow.record;
    let mut object = Object::new();
    let mut set = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    set("TimeFlowStartMs", record.from.milliseconds().into());
    set("TimeFlowEndMs", record.to.milliseconds().into());
    set("Etype", if flow.client.address.is_ipv4() { 0x0800 } else { 0x86dd }.into());
    set("Proto", record.protocol.into());
    set("Bytes", (counts.octets + ETHERNET * counts.frames).into());
    set("Packets", counts.frames.into());
    if let Some((kind, code)) = record.icmp.filter(|_| !is_reply) {
        set("IcmpType", kind.into());
        set("IcmpCode", code.into());
    }
    let is_tcp = record.protocol == packet::TCP;
    if is_tcp {
        set("Flags", counts.flags.into());
        set("MirrorMissingBytes", totals.missing.by_mirror.into());
        set("CollectorMissingBytes", totals.missing.by_collector.into());
        set("RetransBytes", totals.retransmitted.into());
    }
    if matches!(record.protocol, packet::TCP | packet::UDP) {
        set("PayloadBytes", counts.payload.into());
    }
    if let Some(handshake) = record.handshake {
        set("TimeFlowRttNs", u64::try_from(handshake.as_nanos()).unwrap_or(u64::MAX).into());
    }
    let ends = [("Src", flow.client, flow.client_owner), ("Dst", flow.server, flow.server_owner)];
    let (first, second) = if is_reply { ("Dst", "Src") } else { ("Src", "Dst") };
    for ((_, end, owner), side) in ends.into_iter().zip([first, second]) {
        endpoint(&mut object, side, end, record.protocol);
        owned(&mut object, side, owner, names, record.to);
    }
    about_flow(&mut object, flow);
    about_server(&mut object, second, flow);
    if !is_reply {
        if let Some(name) = &record.sni {
            object.insert("TlsSni".to_owned(), (**name).into());
        }
        dns(&mut object, record);
        translation(&mut object, flow, names);
    }
    object
}

fn endpoint(object: &mut Object, prefix: &str, end: Endpoint, protocol: u8) {
    object.insert(format!("{prefix}Addr"), end.address.to_string().into());
    if matches!(protocol, packet::TCP | packet::UDP | packet::SCTP) {
        object.insert(format!("{prefix}Port"), end.port.into());
    }
}

/// Names of an end.
fn owned(object: &mut Object, prefix: &str, owner: Owner<'_>, names: &Names, at: Timestamp) {
    let mut set = |key: &str, value: &str| {
        object.insert(format!("{prefix}K8S_{key}"), value.into());
    };
    match owner {
        Owner::Pod(pod) => pod_names(object, prefix, pod, names, at),
        Owner::Service(service) => {
            set("Name", &service.name);
            set("Namespace", &service.namespace);
            set("Type", "Service");
            set("OwnerName", &service.name);
            set("OwnerType", "Service");
        }
        Owner::Node(node) => {
            set("Name", &node.name);
            set("Type", "Node");
            set("OwnerName", &node.name);
            set("OwnerType", "Node");
            set("HostName", &node.name);
            if let Some(zone) = &node.zone {
                set("Zone", zone);
            }
        }
        Owner::External(Some(Network::Named(name))) => {
            object.insert(format!("{prefix}SubnetLabel"), name.into());
        }
        Owner::External(Some(Network::Country(country))) => {
            object.insert(format!("{prefix}Country"), country.to_string().into());
        }
        Owner::External(None) => {}
    }
}

/// `at`: when frames of it were seen.
fn pod_names(object: &mut Object, prefix: &str, pod: &Pod, names: &Names, at: Timestamp) {
    let mut set = |key: &str, value: &str| {
        object.insert(format!("{prefix}K8S_{key}"), value.into());
    };
    set("Name", &pod.name);
    set("Namespace", &pod.namespace);
    set("Type", "Pod");
    set("OwnerName", &pod.workload.name);
    set("OwnerType", &pod.workload.kind);
    if let Some(node) = &pod.node {
        set("HostName", node);
        let node = names.node(node);
        if let Some(zone) = node.and_then(|node| node.zone.as_deref()) {
            set("Zone", zone);
        }
        if let Some(address) = node.and_then(|node| node.addresses.first()) {
            set("HostIP", &address.to_string());
        }
    }
    let taps: Vec<&str> = names.taps(pod, at).collect();
    if !taps.is_empty() {
        object.insert(format!("{prefix}Taps"), taps.into());
    }
}

/// What is the same in both directions.
fn about_flow(object: &mut Object, flow: &NamedRecord<'_>) {
    let record = flow.record;
    let mut set = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    set("FlowEndReason", end_reason(record.end).into());
    set("Opener", opener(record.opener).into());
    if record.preexisting {
        set("Preexisting", true.into());
    }
    if record.degraded {
        set("Degraded", true.into());
    }
    if let Some(failure) = record.failure {
        set("Failure", failure_name(failure).into());
    }
    if let Some(connection) = record.connection {
        set("ConnId", format!("{connection:016x}").into());
    }
}

/// How the client calls the server, which is this end.
fn about_server(object: &mut Object, prefix: &str, flow: &NamedRecord<'_>) {
    let mut set = |key: &str, value: Value| {
        object.insert(format!("{prefix}{key}"), value);
    };
    if let Some(name) = &flow.record.dns_name {
        set("DnsName", (**name).into());
    }
    if let Some((service, port)) = flow.service {
        set("ServiceName", service.name.as_str().into());
        set("ServiceNamespace", service.namespace.as_str().into());
        set("ServicePort", port.port.into());
    }
}

fn dns(object: &mut Object, record: &Record) {
    let Some(query) = &record.query else { return };
    object.insert("DnsId".to_owned(), query.id.into());
    object.insert("DnsName".to_owned(), (*query.name).into());
    if let Some(answer) = query.answer {
        object.insert("DnsFlagsResponseCode".to_owned(), response_code(answer.code).into());
        let latency = u64::try_from(answer.after.as_millis()).unwrap_or(u64::MAX);
        object.insert("DnsLatencyMs".to_owned(), latency.into());
    }
}

/// In the direction of the client's packets only, as in `NetObserv`: its address translation is known by them.
fn translation(object: &mut Object, flow: &NamedRecord<'_>, names: &Names) {
    let Some(translated) = flow.translated else { return };
    let by = match translated.by {
        TranslatedBy::Join => "join",
        TranslatedBy::Conntrack => "conntrack",
        TranslatedBy::Endpoints => "endpoints",
    };
    object.insert("XlatBy".to_owned(), by.into());
    if let Some(zone) = flow.record.zone {
        object.insert("ZoneId".to_owned(), zone.into());
    }
    if let Some((client, server)) = translated.ends {
        endpoint(object, "XlatSrc", client, flow.record.protocol);
        endpoint(object, "XlatDst", server, flow.record.protocol);
    }
    if let Some(pod) = translated.pod {
        pod_names(object, "XlatDst", pod, names, flow.record.to);
    } else if let Some((namespace, workload)) = translated.workload {
        object.insert("XlatDstK8S_Namespace".to_owned(), namespace.into());
        object.insert("XlatDstK8S_OwnerName".to_owned(), workload.name.as_str().into());
        object.insert("XlatDstK8S_OwnerType".to_owned(), workload.kind.as_str().into());
    }
    // After the translation of sources, it is another one than before.
    if let Some(pod) = translated.ends.and_then(|(client, _)| names.pod(client.address, flow.record.start)) {
        pod_names(object, "XlatSrc", pod, names, flow.record.to);
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

    use super::fields;

    /// This file says what the fields are, and so does the documentation.
    #[test]
    fn fields_are_those_that_are_written_and_documented() {
        let known: BTreeSet<String> = fields().collect();
        let source = include_str!("flows.rs");
        for call in ["set(\"", "object.insert(\""] {
            for name in source.split(call).skip(1).filter_map(|rest| rest.split('"').next()) {
                let is_of_end = ["SrcK8S_", "Src"].iter().any(|end| known.contains(&format!("{end}{name}")));
                assert!(
                    is_of_end || known.contains(name),
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
}
