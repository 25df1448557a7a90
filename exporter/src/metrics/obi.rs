//! Metrics as OpenTelemetry's eBPF instrumentation has them: frames between workloads, with Ethernet headers.

use std::borrow::Cow;

use super::{
    table::{Detail, Family, Kind, Label, Metric, Table, Update},
    text,
};
use crate::{
    flow::{End, Flow},
    record::Record,
};

const fn label(name: &'static str) -> Label {
    Label { name, detail: Detail::Coarse }
}

pub const FAMILIES: &[Family] = &[Family {
    labels: &[
        label("k8s.src.namespace"),
        label("k8s.src.owner.name"),
        label("k8s.src.owner.type"),
        Label { name: "src.name", detail: Detail::Fine },
        label("k8s.dst.namespace"),
        label("k8s.dst.owner.name"),
        label("k8s.dst.owner.type"),
        Label { name: "dst.name", detail: Detail::Fine },
        label("direction"),
        label("transport"),
    ],
    metrics: &[
        Metric { name: "obi.network.flow.bytes", help: "Bytes of frames", kind: Kind::Counter("By") },
        Metric { name: "obi.network.flow.packets", help: "Frames", kind: Kind::Counter("{packet}") },
    ],
}];

pub fn count(record: &Record, table: &mut Table, now: u64) {
    // The workload that answers is known in the client's direction.
    let server = record.sent.as_ref().and_then(|line| line.flow.translated_destination.as_ref());
    for line in record.lines() {
        let flow = &line.flow;
        let (from, to) = if flow.reply {
            (server.unwrap_or(&flow.source), &flow.destination)
        } else {
            (&flow.source, server.unwrap_or(&flow.destination))
        };
        let (from, to) = (labels(from, &flow.source), labels(to, &flow.destination));
        let direction = if flow.reply { "response" } else { "request" };
        let transport = transport(flow);
        let labels = from.iter().chain(&to).map(|label| label as &dyn std::fmt::Display);
        let labels: Vec<_> = labels.chain([&direction as &dyn std::fmt::Display, &transport]).collect();
        table.count(0, &labels, &[(0, Update::Add(flow.bytes)), (1, Update::Add(flow.packets))], now);
    }
}

/// Labels of an end, and of one outside of the cluster its name: the frames may have had another address than the workload.
fn labels<'a>(end: &'a End, seen: &'a End) -> [&'a str; 4] {
    let outside = || seen.dns_name.as_ref().or(seen.network.as_ref()).or(seen.country.as_ref());
    let name = end.owner.as_ref().or(end.name.as_ref()).or_else(outside);
    [text(end.namespace.as_ref()), text(end.owner.as_ref()), text(end.owner_kind.as_ref()), text(name)]
}

/// Names of RFC 790 and its successors, in capitals as OBI has them.
fn transport(flow: &Flow) -> Cow<'static, str> {
    match flow.protocol {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "IPv6-ICMP".into(),
        132 => "SCTP".into(),
        other => other.to_string().into(),
    }
}
