//! Metrics as `NetObserv` has them: frames between nodes, namespaces and workloads, with Ethernet headers.

use super::{
    table::{Detail, Family, Kind, Label, Metric, Table, Update},
    text,
};
use crate::{
    flow::{End, Flow},
    record::Record,
};

/// Labels of both ends.
macro_rules! labels {
    ($($name:literal),*) => {
        &[$(
            Label { name: concat!("Src", $name), detail: Detail::Coarse },
            Label { name: concat!("Dst", $name), detail: Detail::Coarse },
        )*]
    };
}

/// What there is of each level.
macro_rules! metrics {
    ($level:literal) => {
        &[
            Metric {
                name: concat!("netobserv_", $level, "_ingress_bytes"),
                help: "Bytes of frames to what is in the cluster",
                kind: Kind::Counter("By"),
            },
            Metric {
                name: concat!("netobserv_", $level, "_ingress_packets"),
                help: "Frames to what is in the cluster",
                kind: Kind::Counter("{packet}"),
            },
            Metric {
                name: concat!("netobserv_", $level, "_egress_bytes"),
                help: "Bytes of frames from what is in the cluster",
                kind: Kind::Counter("By"),
            },
            Metric {
                name: concat!("netobserv_", $level, "_egress_packets"),
                help: "Frames from what is in the cluster",
                kind: Kind::Counter("{packet}"),
            },
            Metric {
                name: concat!("netobserv_", $level, "_flows"),
                help: "Reports of flows, one for each direction",
                kind: Kind::Counter("{flow}"),
            },
            Metric {
                name: concat!("netobserv_", $level, "_rtt_seconds"),
                help: "Time from the SYN of a client to its acknowledgment of the answer",
                kind: Kind::Histogram,
            },
            Metric {
                name: concat!("netobserv_", $level, "_dns_latency_seconds"),
                help: "Time from a question to its answer",
                kind: Kind::Histogram,
            },
        ]
    };
}

pub const FAMILIES: &[Family] = &[
    Family { labels: labels!["K8S_HostName"], metrics: metrics!("node") },
    Family { labels: labels!["K8S_Namespace", "SubnetLabel"], metrics: metrics!("namespace") },
    Family {
        labels: labels!["K8S_Namespace", "SubnetLabel", "K8S_OwnerName", "K8S_OwnerType", "K8S_Type"],
        metrics: metrics!("workload"),
    },
];

pub fn count(record: &Record, table: &mut Table, now: u64) {
    for line in record.lines() {
        count_line(&line.flow, table, now);
    }
}

fn count_line(flow: &Flow, table: &mut Table, now: u64) {
    let Flow { source, destination, bytes, packets, .. } = flow;
    let mut updates = Vec::with_capacity(7);
    for (end, first) in [(destination, 0), (source, 2)] {
        if end.kind.is_some() {
            updates.extend([(first, Update::Add(*bytes)), (first + 1, Update::Add(*packets))]);
        }
    }
    updates.push((4, Update::Add(1)));
    if let Some(time) = flow.handshake {
        updates.push((5, Update::Observe(std::time::Duration::from_nanos(time).as_secs_f64())));
    }
    if let Some(time) = flow.dns.latency {
        updates.push((6, Update::Observe(std::time::Duration::from_millis(time).as_secs_f64())));
    }
    let nodes = [source, destination].map(node);
    if nodes != ["", ""] {
        table.count(0, &[&nodes[0], &nodes[1]], &updates, now);
    }
    let of = |field: fn(&End) -> &Option<String>| [source, destination].map(|end| text(field(end).as_ref()));
    let namespaces = of(|end| &end.namespace);
    let networks = of(|end| &end.network);
    let owners = of(|end| &end.owner);
    if namespaces != ["", ""] {
        table.count(1, &[&namespaces[0], &namespaces[1], &networks[0], &networks[1]], &updates, now);
    }
    if owners != ["", ""] {
        let labels = [namespaces, networks, owners, of(|end| &end.owner_kind), of(|end| &end.kind)];
        let labels: Vec<&dyn std::fmt::Display> =
            labels.iter().flatten().map(|label| label as &dyn std::fmt::Display).collect();
        table.count(2, &labels, &updates, now);
    }
}

/// The node of a pod, or the node itself.
fn node(end: &End) -> &str {
    match end.kind.as_deref() {
        Some("Node") => text(end.name.as_ref()),
        _ => text(end.node.as_ref()),
    }
}
