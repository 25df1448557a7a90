//! Prometheus remote write, version 0.1.0: <https://prometheus.io/docs/specs/prw/remote_write_spec/>.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use podtap_runtime::http::{Bytes, StatusCode};
use prost::Message;
use serde::Deserialize;

use super::push::{Format, Push};
use crate::{
    http::{Client, HttpConfig},
    metrics::{
        Counted, MetricsConfig, TableFigures,
        scrape::prometheus,
        table::{BOUNDS, Kind, Metric, Shown, Value},
    },
};

/// Where, which metrics, and how often.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoteWriteConfig {
    #[serde(flatten)]
    server: HttpConfig,
    #[serde(flatten)]
    metrics: MetricsConfig,
    #[serde(default = "default_interval")]
    interval_seconds: u16,
    /// Further labels of all series. Two exporters must not write the same series.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

pub const fn default_interval() -> u16 {
    10
}

/// The interval between two requests, if it is one.
pub fn interval(seconds: u16) -> Result<Duration> {
    ensure!((1..=3600).contains(&seconds), "intervalSeconds must be from 1 to 3600");
    Ok(Duration::from_secs(seconds.into()))
}

/// The value of a series that has ended: a NaN that Prometheus knows by its bits.
const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

pub fn sink(config: RemoteWriteConfig, figures: TableFigures) -> Result<Push<RemoteWrite>> {
    let RemoteWriteConfig { server, metrics, interval_seconds, labels } = config;
    for name in labels.keys() {
        let mut characters = name.chars();
        let is_name = characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && characters.all(|c| c.is_ascii_alphanumeric() || c == '_');
        ensure!(is_name && !name.starts_with("__"), "{name:?} is no name of a label");
    }
    let (counted, client) = (Counted::new(&metrics, figures)?, Client::new(server, is_passing)?);
    Ok(Push::new(counted, client, RemoteWrite { labels }, interval(interval_seconds)?))
}

/// Other statuses from 400 to 499 must not be tried again, says the specification.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The format of requests.
#[derive(Debug)]
pub struct RemoteWrite {
    labels: BTreeMap<String, String>,
}

#[derive(Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<TimeSeries>,
}

#[derive(Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    /// In milliseconds since 1970.
    #[prost(int64, tag = "2")]
    at: i64,
}

impl Format for RemoteWrite {
    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("content-type", "application/x-protobuf"),
            ("content-encoding", "snappy"),
            ("x-prometheus-remote-write-version", "0.1.0"),
        ]
    }

    fn request<'a>(
        &self,
        metrics: impl Iterator<Item = (&'static Metric, impl Iterator<Item = Shown<'a>>)>,
        now: u64,
    ) -> Option<Bytes> {
        let series =
            metrics.flat_map(|(metric, series)| series.flat_map(move |shown| self.all_of(metric, &shown, now)));
        let request = WriteRequest { series: series.collect() }.encode_to_vec();
        // It fails for more than 4 GiB only.
        snap::raw::Encoder::new().compress_vec(&request).ok().map(Bytes::from)
    }
}

impl RemoteWrite {
    /// What Prometheus makes of a metric.
    fn all_of(&self, metric: &Metric, shown: &Shown<'_>, now: u64) -> Vec<TimeSeries> {
        let name = prometheus(metric.name);
        match shown.value {
            Value::Count(count) => {
                let suffix = if matches!(metric.kind, Kind::Counter(_)) { "_total" } else { "" };
                vec![self.series(format!("{name}{suffix}"), shown, None, float(count), now)]
            }
            Value::Histogram(histogram) => {
                let (mut all, mut count) = (Vec::with_capacity(BOUNDS.len() + 3), 0);
                let bounds = BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
                for (bound, bucket) in bounds.zip(histogram.buckets) {
                    count += bucket;
                    all.push(self.series(format!("{name}_bucket"), shown, Some(bound), float(count), now));
                }
                all.push(self.series(format!("{name}_count"), shown, None, float(count), now));
                all.push(self.series(format!("{name}_sum"), shown, None, histogram.sum, now));
                all
            }
        }
    }

    fn series(&self, name: String, shown: &Shown<'_>, bound: Option<String>, value: f64, now: u64) -> TimeSeries {
        let value = if shown.has_ended { STALE } else { value };
        let label = |name: &str, value: &str| Label { name: name.to_owned(), value: value.to_owned() };
        let mut labels = vec![Label { name: "__name__".to_owned(), value: name }];
        labels.extend(bound.map(|value| Label { name: "le".to_owned(), value }));
        labels.extend(shown.labels.iter().map(|(name, value)| label(&prometheus(name), value)));
        // A name twice would be refused.
        let known = labels.len();
        for (name, value) in &self.labels {
            if labels[..known].iter().all(|label| label.name != *name) {
                labels.push(label(name, value));
            }
        }
        labels.sort_unstable();
        TimeSeries { labels, samples: vec![Sample { value, at: i64::try_from(now).unwrap_or(i64::MAX) }] }
    }
}

/// Exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use podtap_runtime::http::Server;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::{
        figures::Figures,
        http::fixtures::{ANY, Answering},
        metrics::table::Position,
        policy::Policy,
        record::fixtures::named,
        sinks::{Sinks, WhenFull, push::encode},
    };

    fn config(text: &str) -> RemoteWriteConfig {
        serde_json::from_str(text).expect("it is valid")
    }

    /// Names and values of series in a request, in order.
    fn parse(body: &[u8]) -> Vec<(String, f64)> {
        let body = snap::raw::Decoder::new().decompress_vec(body).expect("a block of snappy");
        let request = WriteRequest::decode(&*body).expect("a request");
        let mut series: Vec<_> = request
            .series
            .iter()
            .map(|series| {
                assert!(series.labels.is_sorted(), "{series:?}");
                assert!(series.labels.iter().all(|label| !label.value.is_empty()), "{series:?}");
                assert_eq!(series.samples.len(), 1);
                let labels: Vec<_> =
                    series.labels.iter().map(|label| format!("{}={}", label.name, label.value)).collect();
                (labels.join(" "), series.samples[0].value)
            })
            .collect();
        series.sort_by(|(a, _), (b, _)| a.cmp(b));
        series
    }

    /// A server that fails is tried again with what was counted meanwhile, and at the end gets all.
    #[tokio::test]
    async fn counting_continues_while_the_server_fails() {
        let server = Answering::new([StatusCode::SERVICE_UNAVAILABLE, StatusCode::BAD_REQUEST]);
        let listening = Server::spawn(ANY, server.clone()).await.expect("it listens");
        let url = format!("http://{}/api/v1/write", listening.address());
        let config = config(&format!(
            r#"{{"url":"{url}","profile":"netobserv","intervalSeconds":1,"labels":{{"zone":"a","SrcK8S_Namespace":"b"}}}}"#
        ));
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, sink(config, figures.of_table("s")).expect("it is valid"));
        let condition = sinks.conditions().remove(0);
        let told = || serde_json::to_value(condition.told()).expect("JSON");
        let until_told = async |expected: &str| {
            let start = Instant::now();
            while !told()["message"].as_str().unwrap_or_default().contains(expected) {
                assert!(start.elapsed() < Duration::from_secs(60), "{}", told());
                sleep(Duration::from_millis(10)).await;
            }
        };
        sinks.push(&mut vec![named("web")], WhenFull::DropOldest).await;
        until_told("503 Service Unavailable: so it is").await;
        sinks.push(&mut vec![named("web")], WhenFull::DropOldest).await;
        until_told("400 Bad Request: so it is").await;
        sinks.push(&mut vec![named("web")], WhenFull::DropOldest).await;
        assert_eq!(sinks.finish(Duration::from_secs(60)).await, []);
        assert_eq!(told()["exporting"], true);
        let of_sink = figures.of_sink("s");
        assert_eq!((of_sink.sent.get(), of_sink.refused.get(), of_sink.unsent.get()), (3, 0, 0));
        let got = server.got.lock().expect("no panic");
        let last = got.last().expect("a request");
        let series: Vec<_> = got.iter().flat_map(|request| parse(request.body())).collect();
        let expected = "SrcK8S_Namespace=shop __name__=netobserv_namespace_egress_bytes_total zone=a";
        let found = series.iter().rfind(|(labels, _)| labels == expected);
        // Two series of one label are one more: those of the other direction.
        assert_eq!(found.map(|(_, value)| *value), Some(3.0 * 54.0), "{series:?}");
        assert_eq!(last.headers()["content-encoding"], "snappy");
        assert_eq!(last.headers()["x-prometheus-remote-write-version"], "0.1.0");
    }

    #[tokio::test]
    async fn what_a_server_never_took_is_missing_at_the_end() {
        let server = Answering::new([StatusCode::BAD_REQUEST; 9]);
        let listening = Server::spawn(ANY, server).await.expect("it listens");
        let config = config(&format!(r#"{{"url":"http://{}/","profile":"obi"}}"#, listening.address()));
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, sink(config, figures.of_table("s")).expect("it is valid"));
        sinks.push(&mut vec![named("web"), named("web")], WhenFull::DropOldest).await;
        assert_eq!(sinks.finish(Duration::from_secs(60)).await, [("s".to_owned(), 2)]);
    }

    #[test]
    fn many_series_are_several_requests() {
        let figures = Figures::default();
        let counted =
            Counted::new(&MetricsConfig::of(crate::metrics::Profile::Obi), figures.of_table("s")).expect("valid");
        let records: Vec<_> = (0..1500).map(|number: u16| named(&number.to_string())).collect();
        counted.count(&records);
        let (format, mut position) = (RemoteWrite { labels: BTreeMap::new() }, Position::default());
        let requests = std::iter::from_fn(|| encode(&format, &counted, &mut position));
        let sizes: Vec<_> = requests.map(|request| parse(&request).len()).collect();
        // Bytes and packets of both directions.
        assert_eq!(sizes, [2000, 2000, 2000]);
    }

    #[test]
    fn what_has_ended_is_stale() {
        let metrics = MetricsConfig::of(crate::metrics::Profile::Obi);
        let counted = Counted::new(&metrics, Figures::default().of_table("s")).expect("valid");
        counted.count(&[named("web")]);
        let format = RemoteWrite { labels: BTreeMap::new() };
        let now = crate::metrics::now();
        let bits = |now| {
            let request = format.request(counted.lock().table.metrics(now), now).expect("there are some");
            parse(&request).iter().map(|(_, value)| value.to_bits()).collect::<Vec<_>>()
        };
        // Bytes and packets of both directions.
        assert_eq!(bits(now), [54.0, 54.0, 1.0, 1.0].map(f64::to_bits));
        assert_eq!(bits(now + 10 * 60 * 1000), [0x7ff0_0000_0000_0002; 4]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, message) in [
            (r#"{"url":"http://x/","profile":"obi","series":10}"#, "series must be from 1000 to 200000"),
            (r#"{"url":"http://x/","profile":"obi","intervalSeconds":0}"#, "intervalSeconds must be from 1 to 3600"),
            (r#"{"url":"http://x/","profile":"obi","cities":"/x"}"#, "cities is for the profile convis only"),
            (r#"{"url":"http://x/","profile":"convis","cities":"/dev/null"}"#, "/dev/null is no database of places"),
            (r#"{"url":"http://x/","profile":"obi","labels":{"a-b":"c"}}"#, "\"a-b\" is no name of a label"),
            (r#"{"url":"http://x/","profile":"obi","labels":{"__a":"c"}}"#, "is no name of a label"),
            (r#"{"url":"x","profile":"obi"}"#, "must begin with http://"),
        ] {
            let error = sink(config(text), Figures::default().of_table("s")).expect_err(text);
            assert!(format!("{error:#}").contains(message), "{text}: {error:#}");
        }
        for text in
            [r#"{"url":"http://x/"}"#, r#"{"url":"http://x/","profile":"obi","password":"x"}"#, r#"{"profile":"obi"}"#]
        {
            serde_json::from_str::<RemoteWriteConfig>(text).expect_err(text);
        }
    }
}
