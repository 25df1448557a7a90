//! The metrics of the collector, as Prometheus reads them.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    path::{Path as File, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use podtap_tests::{
    child::Killed,
    collector::{Collector, binary},
    http,
    net::Network,
    wait::{PATIENCE, uninterrupted, until},
};
use serde_json::Value;

use crate::network::{CLIENT, Path, SERVICE, SERVICE_PORT, names, servers};

const METRICS: &str = "127.0.0.1:8080";
/// Where Prometheus listens in its namespace.
pub const PROMETHEUS: &str = "127.0.0.1:9091";

/// A program of the package prometheus, which tests/prerequisites.sh has unpacked if it is not installed.
fn program(name: &str) -> PathBuf {
    let target = binary().ancestors().nth(2).expect("it is in a profile's directory").to_owned();
    let unpacked = target.join("prometheus/usr/bin").join(name);
    if unpacked.exists() { unpacked } else { name.into() }
}

/// Prometheus in a network namespace, with a directory for its data, which is removed when this is dropped.
pub struct Prometheus {
    child: Killed,
    directory: PathBuf,
}

impl Prometheus {
    /// It reads metrics each second from an address, and takes those that are written. Rules are in files.
    pub fn start(network: &Network, target: &str, rules: &[&File]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("podtap-prometheus-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory");
        let settings = directory.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: {rules:?}\n\
             scrape_configs: [{{job_name: podtap, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        fs::write(&settings, text).expect("it can be written");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.path().display())).arg(program("prometheus"));
        command.arg(format!("--config.file={}", settings.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.arg(format!("--web.listen-address={PROMETHEUS}")).arg("--web.enable-remote-write-receiver");
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("prometheus runs");
        Self { child: Killed(child), directory }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It writes until it has ended.
        let _ = self.child.0.kill();
        let _ = self.child.0.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn get(network: &Network, address: &str, path: &str) -> Result<String, String> {
    let address: SocketAddr = address.parse().expect("an address");
    network.within(|| http::body(address, path))
}

/// The series of an expression: labels, and a value.
pub fn series(network: &Network, expression: &str) -> Result<Vec<(Value, f64)>, String> {
    let mut path = "/api/v1/query?query=".to_owned();
    for byte in expression.bytes() {
        let _ = write!(path, "%{byte:02x}");
    }
    let answer = get(network, PROMETHEUS, &path)?;
    // The body is in chunks, each after a line with its length.
    let json: String = if answer.starts_with('{') { answer.clone() } else { dechunked(&answer) };
    let answer: Value = serde_json::from_str(&json).map_err(|error| format!("{error}: {answer}"))?;
    let result = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
    let parse = |series: &Value| Some((series["metric"].clone(), series["value"][1].as_str()?.parse().ok()?));
    result.iter().map(|series| parse(series).ok_or_else(|| series.to_string())).collect()
}

fn dechunked(body: &str) -> String {
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((length, after)) = rest.split_once("\r\n")
        && let Ok(length) = usize::from_str_radix(length, 16)
        && let Some(chunk) = after.get(..length)
        && length > 0
    {
        whole.push_str(chunk);
        rest = after[length..].trim_start_matches("\r\n");
    }
    whole
}

/// The value of an expression that has one series.
pub fn query(network: &Network, expression: &str) -> Result<f64, String> {
    match &series(network, expression)?[..] {
        [(_, value)] => Ok(*value),
        found => Err(format!("{expression}: {found:?}")),
    }
}

/// A DNS server that knows no name. Returns when the client has asked it so many times, and was answered.
fn ask(path: &Path, times: u16) {
    let server = path.server.within(|| UdpSocket::bind((servers()[0], 53))).expect("it can listen");
    let client = path.client.within(|| UdpSocket::bind((CLIENT, 0))).expect("a socket");
    client.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut question = [0; 512];
            for _ in 0..times {
                let (length, from) = uninterrupted(|| server.recv_from(&mut question)).expect("a question");
                // It is an answer: NXDOMAIN.
                (question[2], question[3]) = (0x81, 0x83);
                server.send_to(&question[..length], from).expect("it can be sent");
            }
        });
        for id in 0..times {
            let question = [&id.to_be_bytes()[..], b"\x01\0\0\x01\0\0\0\0\0\0\x02no\x07example\0\0\x01\0\x01"].concat();
            client.send_to(&question, (servers()[0], 53)).expect("it can be sent");
            uninterrupted(|| client.recv(&mut [0; 512])).expect("an answer");
        }
    });
}

#[test]
fn prometheus_reads_the_metrics_of_edges() {
    const CONNECTIONS: u32 = 20;
    const QUESTIONS: u16 = 7;
    let path = Path::new();
    path.serve();
    let directory = std::env::temp_dir();
    let file = directory.join(format!("podtap-prometheus-{}.names.json", std::process::id()));
    fs::write(&file, names(&servers()).to_string()).expect("it can be written");
    let collector = Collector::start(
        path.client.path(),
        &[
            "--interface",
            "eth0",
            "--probes",
            METRICS,
            "--open-metrics",
            "--metrics-level",
            "pod",
            "--names",
            file.to_str().expect("text"),
        ],
    );
    let prometheus = Prometheus::start(&path.client, METRICS, &[]);
    for _ in 0..CONNECTIONS {
        path.request((SERVICE, SERVICE_PORT), 1000);
    }
    ask(&path, QUESTIONS);
    let edge =
        r#"k8s_src_namespace="shop",k8s_src_owner_name="client",k8s_dst_namespace="shop",k8s_dst_owner_name="web""#;
    let pod = r#"k8s_namespace_name="shop",k8s_owner_name="client",role="client""#;
    // The flow of the questions is one, too. A comparison that is false has no series.
    for (expression, expected) in [
        (format!("podtap_connections_opened_total{{{edge},k8s_dst_owner_type=\"Deployment\"}} - 1"), CONNECTIONS),
        (format!("podtap_flow_payload_bytes_total{{{edge},direction=\"response\"}} > 20000"), 0),
        (format!("podtap_tcp_handshake_seconds_count{{{edge}}}"), CONNECTIONS),
        (format!("podtap_tcp_handshake_seconds_bucket{{{edge},le=\"+Inf\"}}"), CONNECTIONS),
        (format!("podtap_pod_connections_opened_total{{{pod}}} - 1"), CONNECTIONS),
        (format!("podtap_pod_payload_bytes_total{{{pod},direction=\"received\"}} > 20000"), 0),
        (r#"podtap_dns_responses_total{k8s_src_owner_name="client",rcode="NXDOMAIN"}"#.to_owned(), QUESTIONS.into()),
    ] {
        until(&expression, PATIENCE, || match query(&path.client, &expression)? {
            value if expected == 0 || (value - f64::from(expected)).abs() < 0.5 => Ok(()),
            value => Err(format!("{value}, not {expected}")),
        });
    }
    let time = format!("histogram_quantile(0.9, podtap_tcp_handshake_seconds_bucket{{{edge}}})");
    let time = query(&path.client, &time).expect("a histogram");
    assert!(time > 0.0 && time < 5.0, "{time}");
    let mean = format!("podtap_tcp_handshake_seconds_sum{{{edge}}} / podtap_tcp_handshake_seconds_count{{{edge}}}");
    let mean = query(&path.client, &mean).expect("both");
    assert!(mean > 0.0 && mean < 5.0, "{mean}");
    drop(prometheus);

    // In the older format, the name of a counter's type has its suffix.
    let text = get(&path.client, METRICS, "/metrics").expect("metrics");
    let counters: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    assert!(counters.len() >= 8, "{text}");
    let text: String = text
        .lines()
        .filter(|line| *line != "# EOF" && !line.starts_with("# UNIT"))
        .map(|line| {
            let name = line.strip_prefix("# ").and_then(|rest| rest.split(' ').nth(1)).unwrap_or_default();
            if counters.contains(&name) {
                line.replacen(name, &format!("{name}_total"), 1) + "\n"
            } else {
                format!("{line}\n")
            }
        })
        .collect();
    let mut promtool = Command::new(program("promtool"));
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool runs");
    promtool.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let messages = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && messages.is_empty(), "{messages}");
    collector.end();
    fs::remove_file(file).expect("it exists");
}
