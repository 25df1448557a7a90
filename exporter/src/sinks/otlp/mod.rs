//! OTLP over HTTP, with messages of protobuf: <https://opentelemetry.io/docs/specs/otlp/>.

mod logs;
mod messages;
mod metrics;

use std::{collections::BTreeMap, io::Write as _};

use anyhow::{Result, ensure};
use flate2::write::GzEncoder;
use podtap_runtime::http::{Bytes, StatusCode};
use prost::Message;
use serde::Deserialize;

use self::{
    logs::Logs,
    messages::{Answer, KeyValue, Resource, Scope},
    metrics::OtlpMetrics,
};
use super::{
    Failure, Sinks,
    push::Push,
    remote_write::{default_interval, interval},
};
use crate::{
    figures::Figures,
    http::{Client, HttpConfig},
    metrics::{Counted, MetricsConfig, Profile},
};

/// Where, and what.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OtlpConfig {
    /// Its URL is that of the server, without the path of a signal.
    #[serde(flatten)]
    server: HttpConfig,
    signals: Vec<Signal>,
    #[serde(default)]
    compression: Compression,
    /// Attributes of the resource, in addition to `service.name`.
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    #[serde(default = "default_metrics")]
    metrics: MetricsConfig,
    #[serde(default = "default_interval")]
    interval_seconds: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Signal {
    Logs,
    Metrics,
}

/// How requests are compressed: servers must support both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Compression {
    #[default]
    Gzip,
    None,
}

/// Requests become 18 to 22 times smaller. The usual level 6 makes them smaller by 3 to 16%, and takes twice the time.
const LEVEL: u32 = 3;

impl Compression {
    const fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Gzip => &[("content-type", "application/x-protobuf"), ("content-encoding", "gzip")],
            Self::None => &[("content-type", "application/x-protobuf")],
        }
    }

    fn encode(self, request: &impl Message) -> Bytes {
        let plain = request.encode_to_vec();
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(LEVEL));
                let compressed = encoder.write_all(&plain).and_then(|()| encoder.finish());
                compressed.expect("writing to memory does not fail").into()
            }
            Self::None => plain.into(),
        }
    }
}

fn default_metrics() -> MetricsConfig {
    MetricsConfig::of(Profile::Obi)
}

/// Starts a sink for each signal: metrics do not wait for logs.
pub fn start(config: OtlpConfig, name: &str, capacity: usize, figures: &Figures, sinks: &mut Sinks) -> Result<()> {
    let OtlpConfig { server, mut signals, compression, attributes, metrics, interval_seconds } = config;
    signals.sort_unstable();
    signals.dedup();
    ensure!(!signals.is_empty(), "signals must have logs, metrics, or both");
    let interval = interval(interval_seconds)?;
    let mut resource = attributes;
    resource.entry("service.name".to_owned()).or_insert_with(|| "podtap-exporter".to_owned());
    let resource =
        Resource { attributes: resource.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect() };
    for signal in signals {
        let path = match signal {
            Signal::Logs => "v1/logs",
            Signal::Metrics => "v1/metrics",
        };
        let url = format!("{}/{path}", server.url.trim_end_matches('/'));
        let client = Client::new(HttpConfig { url, ..server.clone() }, is_passing)?;
        // No sink of the file has a name with a slash.
        let name = format!("{name}/{}", path.trim_start_matches("v1/"));
        match signal {
            Signal::Logs => sinks.start(&name, capacity, figures, Logs::new(client, resource.clone(), compression)),
            Signal::Metrics => {
                let counted = Counted::new(&metrics, figures.of_table(&name))?;
                let format = OtlpMetrics::new(resource.clone(), compression);
                sinks.start(&name, capacity, figures, Push::new(counted, client, format, interval));
            }
        }
    }
    Ok(())
}

/// Others must not be sent again: <https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes>.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

fn scope() -> Scope {
    Scope { name: env!("CARGO_PKG_NAME").to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
}

/// How many were rejected, and why.
fn rejected(answer: &[u8]) -> Option<(u64, Failure)> {
    let partial = Answer::decode(answer).ok()?.partial_success?;
    let count = u64::try_from(partial.rejected).ok().filter(|count| *count > 0)?;
    Some((count, Failure::refused(format!("{count} were rejected: {}", partial.message))))
}

/// Nanoseconds, of milliseconds.
const fn nanoseconds(milliseconds: u64) -> u64 {
    milliseconds.saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, time::Duration};

    use flate2::read::GzDecoder;
    use podtap_runtime::http::Server;

    use super::{
        messages::{Data, LogsRequest, MetricsRequest, PartialSuccess},
        *,
    };
    use crate::{
        http::fixtures::{ANY, Answering},
        policy::Policy,
        record::fixtures::record,
        sinks::WhenFull,
    };

    /// Sends two records to a server. Returns what did not arrive, and which paths were asked for.
    async fn send(server: Answering, signals: &str) -> (Vec<(String, u64)>, Vec<String>) {
        let missing = deliver(&server, &format!(r#""signals":[{signals}]"#)).await;
        let mut paths: Vec<_> =
            server.got.lock().expect("no panic").iter().map(|request| request.uri().path().to_owned()).collect();
        paths.sort();
        (missing, paths)
    }

    async fn deliver(server: &Answering, settings: &str) -> Vec<(String, u64)> {
        let listening = Server::spawn(ANY, server.clone()).await.expect("it listens");
        let text = format!(r#"{{"url":"http://{}/otlp/",{settings}}}"#, listening.address());
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        let config = serde_json::from_str(&text).expect("it is valid");
        start(config, "o", 1 << 20, &figures, &mut sinks).expect("it starts");
        sinks.push(&mut vec![record(1), record(2)], WhenFull::DropOldest).await;
        sinks.finish(Duration::from_secs(60)).await
    }

    fn partial(rejected: i64, message: &str) -> Answering {
        let partial_success = Some(PartialSuccess { rejected, message: message.to_owned() });
        let body = Bytes::from(Answer { partial_success }.encode_to_vec());
        Answering::new([]).with(body)
    }

    #[tokio::test]
    async fn each_signal_has_a_path() {
        let (missing, mut paths) = send(partial(0, "slow down"), r#""logs","metrics","logs""#).await;
        paths.dedup();
        assert_eq!((missing, paths), (vec![], vec!["/otlp/v1/logs".to_owned(), "/otlp/v1/metrics".to_owned()]));
    }

    #[tokio::test]
    async fn requests_are_compressed_unless_that_is_turned_off() {
        for (setting, encoding) in
            [("", Some("gzip")), (r#","compression":"gzip""#, Some("gzip")), (r#","compression":"none""#, None)]
        {
            let server = Answering::new([]).with(Bytes::new());
            assert_eq!(deliver(&server, &format!(r#""signals":["logs","metrics"]{setting}"#)).await, []);
            let (mut logs, mut points) = (0, 0);
            for request in &*server.got.lock().expect("no panic") {
                let found = request.headers().get("content-encoding").map(|value| value.to_str().expect("text"));
                assert_eq!(found, encoding);
                assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                let mut body = request.body().to_vec();
                if encoding.is_some() {
                    body.clear();
                    GzDecoder::new(&**request.body()).read_to_end(&mut body).expect("it is of gzip");
                }
                if request.uri().path() == "/otlp/v1/logs" {
                    let logs_request = LogsRequest::decode(&*body).expect("a request");
                    logs += logs_request.resource_logs[0].scope_logs[0].records.len();
                } else {
                    let metrics_request = MetricsRequest::decode(&*body).expect("a request");
                    for metric in &metrics_request.resource_metrics[0].scope_metrics[0].metrics {
                        let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?} is no sum") };
                        points += sum.points.len();
                    }
                }
            }
            // Both directions of two records, and of them bytes and packets.
            assert_eq!((logs, points), (4, 4), "{setting}");
        }
        let config = r#"{"url":"http://x/","signals":["logs"],"compression":"zstd"}"#;
        let error = serde_json::from_str::<OtlpConfig>(config).expect_err("it is none that servers must support");
        assert!(error.to_string().contains("expected `gzip` or `none`"), "{error}");
    }

    #[tokio::test]
    async fn what_is_rejected_is_refused() {
        assert_eq!(send(partial(1, "too old"), r#""logs""#).await.0, [("o/logs".to_owned(), 1)]);
        assert_eq!(send(partial(4, "too old"), r#""logs""#).await.0, [("o/logs".to_owned(), 2)]);
        assert_eq!(send(partial(1, "too old"), r#""metrics""#).await.0, [("o/metrics".to_owned(), 2)]);
    }

    #[tokio::test]
    async fn only_what_may_be_taken_later_is_sent_again() {
        for status in [StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR] {
            let (missing, paths) = send(Answering::new([status]), r#""logs""#).await;
            assert_eq!((missing, paths.len()), (vec![("o/logs".to_owned(), 2)], 1), "{status}");
        }
        let busy = Answering::new([StatusCode::TOO_MANY_REQUESTS]).with(Bytes::new());
        let (missing, paths) = send(busy, r#""logs""#).await;
        assert_eq!((missing, paths.len()), (vec![], 2));
        let passing = (400..600).filter(|status| is_passing(StatusCode::from_u16(*status).expect("a status")));
        assert_eq!(passing.collect::<Vec<_>>(), [429, 502, 503, 504]);
    }
}
