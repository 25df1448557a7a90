//! `flows`: the newest flows that the collector has seen.

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{
    collector::{Collector, CollectorFlags, of_namespace},
    connection::Connection,
    console::{Console, bytes, data},
    exit::{Exit, Failure, Outcome},
    table::Columns,
};

/// Arguments of `flows`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Only flows with these values: FIELD=VALUE, or with !=, ~= (contains), >= or <=. A FIELD may be several, separated by |, or *
    #[arg(value_name = "FIELD=VALUE", value_parser = filter)]
    filters: Vec<Filter>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Flows at most, each direction of one being one: the newest
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    /// Form of the flows
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    collector: CollectorFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns, the oldest flow first
    Table,
    /// All fields: an object per line, the newest flow first
    Json,
}

/// A field with its operator, and the value that it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    key: String,
    value: String,
}

/// The operator's first character is the end of the key, as the collector's API has it.
fn filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
        format!("{text:?} is not a filter such as DstPort=443, Bytes>=1000000 or SrcK8S_Name|DstK8S_Name=web-0")
    })?;
    if key == "limit" {
        return Err("limit is no field: use --limit".to_owned());
    }
    Ok(Filter { key: key.to_owned(), value: value.to_owned() })
}

/// Prints flows.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let cluster = connection.open().await?;
    let collector = Collector::find(&cluster, &arguments.collector).await?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &arguments.limit.to_string());
    query.extend_pairs(arguments.filters.iter().map(|Filter { key, value }| (key, value)));
    let namespace = of_namespace(&cluster, arguments.all_namespaces);
    let lines = collector.get(&format!("{namespace}/flows?{}", query.finish())).await?;
    if lines.is_empty() {
        console.progress("no flows found");
    } else if arguments.output == Format::Json {
        bytes(&lines);
    } else {
        let flows = serde_json::Deserializer::from_slice(&lines).into_iter().collect::<Result<Vec<Value>, _>>();
        let flows = flows.map_err(|error| Failure::error(format!("the collector sent no flows: {error}")))?;
        data(&Columns::default().text(&rows(&flows)));
    }
    Ok(Exit::Done)
}

fn rows(flows: &[Value]) -> Vec<Vec<String>> {
    let heading = ["TIME", "SOURCE", "DESTINATION", "BACKEND", "PROTO", "BYTES", "PACKETS", "STATE"].map(str::to_owned);
    let row = |flow: &Value| {
        let number = |field: &str| flow[field].as_u64().unwrap_or_default().to_string();
        vec![
            time(flow),
            end(flow, "Src"),
            end(flow, "Dst"),
            text(flow, &["XlatDstK8S_Name", "XlatDstK8S_OwnerName", "XlatDstAddr"]),
            protocol(flow),
            number("Bytes"),
            number("Packets"),
            text(flow, &["Failure", "FlowEndReason"]),
        ]
    };
    std::iter::once(heading.to_vec()).chain(flows.iter().rev().map(row)).collect()
}

/// The first of these fields that the flow has.
fn text(flow: &Value, fields: &[&str]) -> String {
    fields.iter().find_map(|field| flow[*field].as_str()).unwrap_or_default().to_owned()
}

/// When it ended, in UTC.
fn time(flow: &Value) -> String {
    let milliseconds = flow["TimeFlowEndMs"].as_i64().unwrap_or_default();
    let time = k8s_openapi::jiff::Timestamp::from_millisecond(milliseconds);
    time.map(|time| time.strftime("%H:%M:%S%.3f").to_string()).unwrap_or_default()
}

/// An end by the best name that is known, with its port.
fn end(flow: &Value, end: &str) -> String {
    let text = |field: &str| flow[format!("{end}{field}")].as_str();
    let name = match (text("K8S_Namespace"), text("K8S_Name")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.to_owned(),
        _ => ["DnsName", "SubnetLabel", "Addr"].iter().find_map(|field| text(field)).unwrap_or("-").to_owned(),
    };
    match flow[format!("{end}Port")].as_u64() {
        // An IPv6 address.
        Some(port) if name.contains(':') => format!("[{name}]:{port}"),
        Some(port) => format!("{name}:{port}"),
        None => name,
    }
}

fn protocol(flow: &Value) -> String {
    match flow["Proto"].as_u64() {
        Some(6) => "TCP".to_owned(),
        Some(17) => "UDP".to_owned(),
        Some(132) => "SCTP".to_owned(),
        Some(1 | 58) => "ICMP".to_owned(),
        other => other.unwrap_or_default().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_have_a_field_an_operator_and_a_value() {
        let parsed = |text: &str| filter(text).map(|filter| (filter.key, filter.value));
        let of = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        for (text, expected) in [
            ("DstPort=443", of("DstPort", "443")),
            ("Bytes>=1000", of("Bytes>", "1000")),
            ("SrcK8S_Name|DstK8S_Name=a=b", of("SrcK8S_Name|DstK8S_Name", "a=b")),
            ("*~=web", of("*~", "web")),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
        for wrong in ["DstPort", "=443", "limit=3"] {
            assert!(filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_flow_is_a_row_with_the_best_names() {
        let flow = json!({"TimeFlowEndMs": 86_399_001, "Proto": 6, "Bytes": 660, "Packets": 10, "FlowEndReason": "endOfFlow",
            "SrcAddr": "10.0.0.1", "SrcPort": 40_000, "SrcK8S_Name": "web-0", "SrcK8S_Namespace": "shop",
            "DstAddr": "10.96.0.5", "DstPort": 443, "DstK8S_Name": "pay", "DstK8S_Namespace": "shop", "XlatDstK8S_Name": "pay-1"});
        let failed = json!({"Proto": 1, "Failure": "unreachable", "SrcK8S_Name": "n1", "DstAddr": "192.0.2.1", "DstDnsName": "pay.example"});
        let rows = rows(&[flow, failed]);
        assert_eq!(rows[1][1..], ["n1", "pay.example", "", "ICMP", "0", "0", "unreachable"]);
        assert_eq!(
            rows[2],
            ["23:59:59.001", "shop/web-0:40000", "shop/pay:443", "pay-1", "TCP", "660", "10", "endOfFlow"]
        );
    }
}
