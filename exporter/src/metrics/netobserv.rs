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
                help: "Time from the first question of a flow to its answer",
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
    // Lines of all reports of a flow have its times. Of TCP, both directions do; the answer of DNS is in the client's only.
    if let Some(time) = flow.handshake.filter(|_| flow.has_syn() && !flow.reply) {
        updates.push((5, Update::Observe(std::time::Duration::from_nanos(time).as_secs_f64())));
    }
    if let Some(time) = flow.dns.latency.filter(|_| flow.has_ended()) {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{
        metrics::table::Value,
        record::{Line, Pairs},
    };

    /// Both lines of a report, each with more.
    fn report(number: u16, of_client: &Json, of_server: &Json) -> Vec<Line> {
        let sent = json!({"TimeFlowStartMs": number, "TimeFlowEndMs": number, "SrcAddr": "10.0.0.1", "SrcPort": 40_000,
            "DstAddr": "10.0.0.2", "DstPort": 53, "SrcK8S_Namespace": "shop"});
        let received = json!({"TimeFlowStartMs": number, "TimeFlowEndMs": number, "SrcAddr": "10.0.0.2", "SrcPort": 53,
            "DstAddr": "10.0.0.1", "DstPort": 40_000, "DstK8S_Namespace": "shop", "Reply": true});
        let line = |(mut line, more): (Json, &Json)| {
            line.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let text = line.to_string();
            Line { flow: serde_json::from_str(&text).expect("a flow"), text: text.into() }
        };
        [(sent, of_client), (received, of_server)].map(line).into()
    }

    /// The count and the sum of a histogram, over all its series.
    fn observed(table: &Table, name: &str) -> (u64, f64) {
        let found = table.metrics(0).filter(|(metric, _)| metric.name == name).flat_map(|(_, series)| series);
        found.fold((0, 0.0), |(count, sum), shown| match shown.value {
            Value::Histogram(histogram) => (count + histogram.count(), sum + histogram.sum),
            Value::Count(_) => panic!("{shown:?}"),
        })
    }

    #[test]
    fn times_of_a_flow_count_once_however_often_it_is_reported() {
        let mut lines = Vec::new();
        for number in 0..60 {
            let reason = if number == 59 { "endOfFlow" } else { "activeTimeout" };
            let [of_client, of_server] = if number == 0 { [0x1a, 0x1a] } else { [0x18, 0x18] }.map(
                |flags| json!({"Proto": 6, "Flags": flags, "TimeFlowRttNs": 500_000_000, "FlowEndReason": reason}),
            );
            lines.extend(report(number, &of_client, &of_server));
            let reason = if number == 59 { "idleTimeout" } else { "activeTimeout" };
            let asked = json!({"Proto": 17, "FlowEndReason": reason, "DnsId": 1, "DnsLatencyMs": 250});
            lines.extend(report(number, &asked, &json!({"Proto": 17, "FlowEndReason": reason})));
        }
        let (mut table, mut pairs) = (Table::new(FAMILIES, 1000), Pairs::default());
        for line in lines {
            pairs.push(line, &mut |record| count(&record, &mut table, 0));
        }
        assert_eq!(observed(&table, "netobserv_namespace_rtt_seconds"), (1, 0.5));
        assert_eq!(observed(&table, "netobserv_namespace_dns_latency_seconds"), (1, 0.25));
    }
}
