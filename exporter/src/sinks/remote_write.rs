//! Prometheus remote write, version 0.1.0: <https://prometheus.io/docs/specs/prw/remote_write_spec/>.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use podtap_runtime::http::Bytes;
use prost::Message;
use serde::Deserialize;

use super::push::{Format, Push};
use crate::{
    http::{Client, HttpConfig},
    metrics::{
        Counted, MetricsConfig, TableFigures,
        scrape::prometheus,
        table::{BOUNDS, Kind, Shown, Table, Value},
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

/// Series of a request, as Prometheus sends them.
const SERIES: usize = 2000;

pub fn sink(config: RemoteWriteConfig, figures: TableFigures) -> Result<Push<RemoteWrite>> {
    let RemoteWriteConfig { server, metrics, interval_seconds, labels } = config;
    for name in labels.keys() {
        let mut characters = name.chars();
        let is_name = characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
            && characters.all(|c| c.is_ascii_alphanumeric() || c == '_');
        ensure!(is_name && !name.starts_with("__"), "{name:?} is no name of a label");
    }
    let (counted, client) = (Counted::new(&metrics, figures)?, Client::new(server)?);
    Ok(Push::new(counted, client, RemoteWrite { labels }, interval(interval_seconds)?))
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
    const HEADERS: &[(&'static str, &'static str)] = &[
        ("content-type", "application/x-protobuf"),
        ("content-encoding", "snappy"),
        ("x-prometheus-remote-write-version", "0.1.0"),
    ];

    fn requests(&self, table: &Table, now: u64) -> Vec<Bytes> {
        let mut all = Vec::new();
        for (metric, series) in table.metrics() {
            let name = prometheus(metric.name);
            for shown in series {
                match shown.value {
                    Value::Count(count) => {
                        let suffix = if matches!(metric.kind, Kind::Counter(_)) { "_total" } else { "" };
                        all.push(self.series(format!("{name}{suffix}"), &shown, None, float(count), now));
                    }
                    Value::Histogram(histogram) => {
                        let mut count = 0;
                        let bounds = BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
                        for (bound, bucket) in bounds.zip(histogram.buckets) {
                            count += bucket;
                            all.push(self.series(format!("{name}_bucket"), &shown, Some(bound), float(count), now));
                        }
                        all.push(self.series(format!("{name}_count"), &shown, None, float(count), now));
                        all.push(self.series(format!("{name}_sum"), &shown, None, histogram.sum, now));
                    }
                }
            }
        }
        let mut requests = Vec::new();
        while !all.is_empty() {
            let series = all.drain(..all.len().min(SERIES)).collect();
            // It fails for more than 4 GiB only.
            let body = snap::raw::Encoder::new().compress_vec(&WriteRequest { series }.encode_to_vec());
            requests.extend(body.map(Bytes::from));
        }
        requests
    }
}

impl RemoteWrite {
    fn series(&self, name: String, shown: &Shown<'_>, bound: Option<String>, value: f64, now: u64) -> TimeSeries {
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
