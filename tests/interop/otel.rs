//! An OpenTelemetry collector.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use podtap_tests::{
    child::Killed,
    collector::{binary, pod},
    exporter::export,
    frames::connection,
    net::Network,
    pcap::{self, File},
    wait::{PATIENCE, until},
};
use serde_json::{Value, json};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PORT: u16 = 4318;

/// Its receiver, by HTTP in a network namespace. Killed when dropped.
struct OpenTelemetry {
    network: Network,
    _child: Killed,
    /// What it got, in the JSON form of OTLP.
    got: Arc<Mutex<Vec<Value>>>,
}

impl OpenTelemetry {
    fn start() -> Self {
        let network = Network::new();
        network.ip("link set lo up\n");
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/interop/otel/otel");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.path().display())).arg(program);
        command.arg(format!("127.0.0.1:{PORT}"));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("tests/interop/prepare.sh has built it");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let got = Arc::<Mutex<Vec<Value>>>::default();
        thread::spawn({
            let got = Arc::clone(&got);
            move || {
                for line in output.lines().map_while(Result::ok) {
                    got.lock().expect("no panic").push(serde_json::from_str(&line).expect("a line is an object"));
                }
            }
        });
        until("it listens", PATIENCE, || network.within(|| TcpStream::connect(("127.0.0.1", PORT)).map(drop)));
        Self { network, _child: Killed(child), got }
    }

    /// All objects of a list in what it got, for example `resourceLogs`, `scopeLogs`, `logRecords`.
    fn all(&self, path: [&str; 3]) -> Vec<Value> {
        let mut found = self.got.lock().expect("no panic").clone();
        for list in path {
            found = found.iter().filter_map(|object| object[list].as_array()).flatten().cloned().collect();
        }
        found
    }
}

/// Attributes of an object.
fn attributes(of: &Value) -> BTreeMap<String, Value> {
    let attributes = of["attributes"].as_array().expect("attributes").iter();
    let value = |attribute: &Value| attribute["value"].as_object().and_then(|value| value.values().next()).cloned();
    attributes
        .map(|attribute| (attribute["key"].as_str().expect("text").to_owned(), value(attribute).expect("a value")))
        .collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn an_opentelemetry_collector_takes_logs_and_metrics() {
    check("gzip");
}

#[test]
fn an_opentelemetry_collector_takes_what_is_not_compressed() {
    check("none");
}

fn check(compression: &str) {
    const CONNECTIONS: u16 = 2000;
    let frames: Vec<_> =
        (0..CONNECTIONS).flat_map(|number| connection((CLIENT, 20_000 + number), (SERVER, 80))).collect();
    let file = File::timed((0..).map(Duration::from_millis).zip(frames));
    let names = file.path().with_extension("names.json");
    let pods = [pod("client-1", "client", CLIENT), pod("web-1", "web", SERVER)];
    fs::write(&names, json!({"pods": pods}).to_string()).expect("a file");
    let mut command = Command::new(binary());
    command.arg("--read").arg(file.path()).arg("--names").arg(&names).args(["--print", "flows"]);
    let lines = String::from_utf8(pcap::output(&mut command)).expect("text");
    fs::remove_file(names).expect("it exists");
    let flows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(flows.len(), 2 * usize::from(CONNECTIONS));

    let otel = OpenTelemetry::start();
    let sinks = format!(
        "sinks: [{{name: otel, otlp: {{url: 'http://127.0.0.1:{PORT}', signals: [logs, metrics],\n\
           compression: {compression}, intervalSeconds: 1, attributes: {{k8s.cluster.name: lab}}}}}}]"
    );
    let exported = export(&otel.network, &lines, &sinks);
    assert!(exported.status.success(), "{}", exported.errors);

    let records = until("all log records are printed", PATIENCE, || {
        let records = otel.all(["resourceLogs", "scopeLogs", "logRecords"]);
        if records.len() >= flows.len() { Ok(records) } else { Err(records.len()) }
    });
    assert_eq!(records.len(), flows.len());
    for (record, (flow, line)) in records.iter().zip(flows.iter().zip(lines.lines())) {
        assert_eq!(record["body"]["stringValue"], line);
        assert_eq!(record["timeUnixNano"], format!("{}000000", flow["TimeFlowEndMs"]), "{record}");
        assert_eq!(record["severityNumber"], 9);
        let attributes = attributes(record);
        assert_eq!(attributes.len(), flow.as_object().expect("an object").len(), "{record}\n{line}");
        for (attribute, field) in [
            ("source.address", "SrcAddr"),
            ("destination.address", "DstAddr"),
            ("source.k8s.name", "SrcK8S_Name"),
            ("source.k8s.namespace.name", "SrcK8S_Namespace"),
            ("destination.k8s.owner.name", "DstK8S_OwnerName"),
            ("destination.k8s.owner.kind", "DstK8S_OwnerType"),
            ("destination.k8s.host.name", "DstK8S_HostName"),
        ] {
            assert_eq!(attributes[attribute], flow[field], "{record}");
        }
        for (attribute, field) in
            [("source.port", "SrcPort"), ("bytes", "Bytes"), ("packets", "Packets"), ("protocol", "Proto")]
        {
            assert_eq!(number(&attributes[attribute]), number(&flow[field]), "{record}");
        }
    }
    let resources = otel.got.lock().expect("no panic").clone();
    for resource in resources
        .iter()
        .filter_map(|got| got["resourceLogs"].as_array().or(got["resourceMetrics"].as_array()))
        .flatten()
    {
        let attributes = attributes(&resource["resource"]);
        assert_eq!(attributes["service.name"], "podtap-exporter");
        assert_eq!(attributes["k8s.cluster.name"], "lab");
    }

    for (name, field) in [("obi.network.flow.bytes", "Bytes"), ("obi.network.flow.packets", "Packets")] {
        let of = |reply: bool| flows.iter().filter(move |flow| flow["Reply"].as_bool().unwrap_or_default() == reply);
        let expected = [false, true].map(|reply| of(reply).map(|flow| number(&flow[field])).sum::<u64>());
        until(name, PATIENCE, || {
            // The last values.
            let mut last = BTreeMap::new();
            for metric in otel.all(["resourceMetrics", "scopeMetrics", "metrics"]) {
                if metric["name"] == name {
                    let sum = &metric["sum"];
                    assert_eq!(
                        (&sum["isMonotonic"], &sum["aggregationTemporality"]),
                        (&json!(true), &json!(2)),
                        "{metric}"
                    );
                    for point in sum["dataPoints"].as_array().expect("points") {
                        let attributes = attributes(point);
                        assert_eq!(attributes["k8s.src.namespace"], "shop");
                        assert_eq!(attributes["transport"], "TCP");
                        assert!(number(&point["startTimeUnixNano"]) <= number(&point["timeUnixNano"]), "{point}");
                        let ends = ["k8s.src.owner.name", "k8s.dst.owner.name", "direction"]
                            .map(|name| attributes[name].as_str().expect("text").to_owned());
                        last.insert(ends, number(&point["asInt"]));
                    }
                }
            }
            let series = |ends: [&str; 3]| last.get(&ends.map(str::to_owned)).copied();
            let found = [series(["client", "web", "request"]), series(["web", "client", "response"])];
            if found == expected.map(Some) && last.len() == 2 {
                Ok(())
            } else {
                Err(format!("{last:?}, not {expected:?}"))
            }
        });
    }
}
