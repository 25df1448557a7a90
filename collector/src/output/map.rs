//! The map as JSON, with all that is known of each edge.

use std::{
    io::{self, Write},
    time::Duration,
};

use podtap_flow::{
    map::{Handshakes, Map, Party, Traffic},
    named::protocol_name,
};
use serde_json::{Value, json};

/// Writes `{"edges": [..]}`, edge by edge: all together would take several times the memory of the map.
pub fn write(out: &mut impl Write, map: &Map) -> io::Result<()> {
    write!(out, "{{\n  \"edges\": [")?;
    for (number, (edge, traffic)) in map.edges().enumerate() {
        let mut value = describe(traffic);
        value["client"] = party(&edge.client);
        value["server"] = party(&edge.server);
        let text = serde_json::to_string_pretty(&value)?.replace('\n', "\n    ");
        write!(out, "{}\n    {text}", if number == 0 { "" } else { "," })?;
    }
    writeln!(out, "{}]\n}}", if map.is_empty() { "" } else { "\n  " })
}

fn party(party: &Party) -> Value {
    match party {
        Party::Workload { namespace, workload } => {
            json!({"namespace": namespace, "kind": workload.kind, "name": workload.name})
        }
        Party::Service { namespace, name } => json!({"namespace": namespace, "kind": "Service", "name": name}),
        Party::Node { name } => json!({"kind": "Node", "name": name}),
        Party::External { name } => json!({"kind": "External", "name": name}),
        Party::AnotherNamespace => json!({"kind": "AnotherNamespace"}),
        Party::Other => json!({"kind": "Other"}),
    }
}

fn describe(traffic: &Traffic) -> Value {
    let ports: Vec<Value> = traffic
        .ports
        .iter()
        .map(|((protocol, port), flows)| json!({"protocol": protocol_name(*protocol), "port": port, "flows": flows}))
        .collect();
    let services: Vec<Value> = traffic
        .services
        .iter()
        .map(|((namespace, name), flows)| json!({"namespace": namespace, "name": name, "flows": flows}))
        .collect();
    let mut value = json!({
        "firstSeenMs": traffic.first.milliseconds(),
        "lastSeenMs": traffic.last.milliseconds(),
        "connections": traffic.connections,
        "preexisting": traffic.preexisting,
        "failed": traffic.failed,
        "bytesSent": traffic.sent,
        "bytesReceived": traffic.received,
        "ports": ports,
        "services": services,
        "known": traffic.known,
    });
    if let Some(mean) = traffic.handshakes.mean() {
        let Handshakes { min, max, .. } = traffic.handshakes;
        let count = traffic.handshakes.count();
        value["handshakes"] = json!({
            "count": count,
            "meanUs": microseconds(mean),
            "minUs": microseconds(min),
            "maxUs": microseconds(max),
        });
    }
    value
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
