//! Flows as log records: one for each direction.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    Compression,
    messages::{Any, AnyValue, KeyValue, List, LogRecord, LogsRequest, Resource, ResourceLogs, ScopeLogs},
    nanoseconds, rejected, scope,
};
use crate::{
    http::Client,
    metrics::now,
    record::{Line, Record},
    sinks::{Failure, Sink},
};

/// Sends log records.
#[derive(Debug)]
pub struct Logs {
    client: Client,
    resource: Resource,
    compression: Compression,
}

impl Logs {
    pub const fn new(client: Client, resource: Resource, compression: Compression) -> Self {
        Self { client, resource, compression }
    }
}

/// `INFO`.
const SEVERITY: i32 = 9;

impl Sink for Logs {
    const MOST: usize = 512;

    fn servers(&self) -> Vec<(String, u16)> {
        vec![self.client.server()]
    }

    fn disconnect(&mut self) {
        self.client.disconnect();
    }

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        let observed = nanoseconds(now());
        let logs = records.iter().flat_map(|record| record.lines()).map(|line| log_record(line, observed)).collect();
        let scope_logs = vec![ScopeLogs { scope: Some(scope()), records: logs }];
        let resource_logs = vec![ResourceLogs { resource: Some(self.resource.clone()), scope_logs }];
        let body = self.compression.encode(&LogsRequest { resource_logs });
        let answer = self.client.post(body, self.compression.headers()).await?;
        // Which ones were rejected is not told, and a record has two log records at most.
        rejected(&answer).map_or(Ok(()), |(count, failure)| {
            let refused = usize::try_from(count).unwrap_or(usize::MAX).min(records.len());
            Err(failure.after(records.len() - refused))
        })
    }
}

fn log_record(line: &Line, observed: u64) -> LogRecord {
    // It was parsed as a flow: it is an object.
    let fields: Map<String, Value> = serde_json::from_str(&line.text).unwrap_or_default();
    let attributes = fields.into_iter().filter_map(|(name, value)| {
        let value = Some(AnyValue { value: Some(any(value)?) });
        Some(KeyValue { key: attribute(&name)?, value })
    });
    LogRecord {
        time: nanoseconds(line.flow.end),
        observed,
        severity: SEVERITY,
        body: Some(AnyValue { value: Some(Any::Text(line.text.to_string())) }),
        attributes: attributes.collect(),
    }
}

fn any(value: Value) -> Option<Any> {
    Some(match value {
        Value::String(text) => Any::Text(text),
        Value::Bool(is) => Any::Bool(is),
        Value::Number(number) => number.as_i64().map(Any::Int).or_else(|| number.as_f64().map(Any::Double))?,
        Value::Array(values) => {
            let values = values.into_iter().map(|value| AnyValue { value: any(value) });
            Any::List(List { values: values.collect() })
        }
        Value::Null | Value::Object(_) => return None,
    })
}

/// The attribute of a field: as `NetObserv` calls it, and in its style what it does not have.
fn attribute(field: &str) -> Option<String> {
    let of_flow = FLOW.iter().find(|(name, _)| *name == field);
    of_flow.map(|(_, attribute)| (*attribute).to_owned()).or_else(|| {
        let (end, rest) = ENDS.iter().find_map(|(prefix, end)| Some((*end, field.strip_prefix(prefix)?)))?;
        let (_, attribute) = END.iter().find(|(name, _)| *name == rest)?;
        Some(format!("{end}.{attribute}"))
    })
}

const ENDS: [(&str, &str); 4] =
    [("Src", "source"), ("Dst", "destination"), ("XlatSrc", "xlat.source"), ("XlatDst", "xlat.destination")];

const END: [(&str, &str); 17] = [
    ("Addr", "address"),
    ("Port", "port"),
    ("K8S_Name", "k8s.name"),
    ("K8S_Namespace", "k8s.namespace.name"),
    ("K8S_Type", "k8s.kind"),
    ("K8S_OwnerName", "k8s.owner.name"),
    ("K8S_OwnerType", "k8s.owner.kind"),
    ("K8S_HostName", "k8s.host.name"),
    ("K8S_HostIP", "k8s.host.address"),
    ("K8S_Zone", "zone"),
    ("SubnetLabel", "subnet.label"),
    ("Taps", "taps"),
    ("Country", "country"),
    ("DnsName", "dns.name"),
    ("ServiceName", "service.name"),
    ("ServiceNamespace", "service.namespace"),
    ("ServicePort", "service.port"),
];

const FLOW: [(&str, &str); 28] = [
    ("TimeFlowStartMs", "timeflowstart"),
    ("TimeFlowEndMs", "timeflowend"),
    ("Etype", "ethertype"),
    ("Proto", "protocol"),
    ("Bytes", "bytes"),
    ("Packets", "packets"),
    ("Flags", "flags"),
    ("IcmpType", "icmp.type"),
    ("IcmpCode", "icmp.code"),
    ("TimeFlowRttNs", "tcp.rtt"),
    ("DnsId", "dns.id"),
    ("DnsName", "dns.name"),
    ("DnsFlagsResponseCode", "dns.responsecode"),
    ("DnsLatencyMs", "dns.latency"),
    ("PayloadBytes", "payload.bytes"),
    ("MirrorMissingBytes", "missing.mirror.bytes"),
    ("CollectorMissingBytes", "missing.collector.bytes"),
    ("RetransBytes", "tcp.retransmitted.bytes"),
    ("FlowEndReason", "endreason"),
    ("Opener", "opener"),
    ("Preexisting", "preexisting"),
    ("Degraded", "degraded"),
    ("Reply", "reply"),
    ("Failure", "failure"),
    ("ConnId", "connection.id"),
    ("TlsSni", "tls.sni"),
    ("XlatBy", "xlat.by"),
    ("ZoneId", "xlat.zone.id"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{flow::fixtures, record::fixtures::line};

    #[test]
    fn each_field_of_a_flow_is_an_attribute_of_its_own() {
        let mut attributes = std::collections::BTreeSet::new();
        for field in fixtures::documented_fields() {
            let name = attribute(&field).unwrap_or_else(|| panic!("{field} has no attribute"));
            assert!(attributes.insert(name), "{field}");
        }
    }

    #[test]
    fn a_direction_is_a_log_record() {
        let record = log_record(&line(40_000, true), 7);
        let attribute = |name: &str| {
            let found = record.attributes.iter().find(|attribute| attribute.key == name)?;
            found.value.clone()?.value
        };
        assert_eq!((record.time, record.observed), (2_000_000_000, 7));
        assert_eq!(attribute("source.port"), Some(Any::Int(80)));
        assert_eq!(attribute("destination.address"), Some(Any::Text("10.0.0.1".to_owned())));
        assert_eq!(attribute("reply"), Some(Any::Bool(true)));
        assert_eq!(record.attributes.len(), 11);
    }
}
