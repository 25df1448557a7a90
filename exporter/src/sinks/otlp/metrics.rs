//! Metrics as sums and histograms.

use podtap_runtime::http::Bytes;

use super::{
    Compression,
    messages::{
        CUMULATIVE, Data, Histogram, HistogramPoint, KeyValue, Metric, MetricsRequest, NumberPoint, Resource,
        ResourceMetrics, ScopeMetrics, Sum,
    },
    nanoseconds, rejected, scope,
};
use crate::{
    metrics::table::{self, BOUNDS, Kind, Shown, Value},
    sinks::{Failure, push::Format},
};

/// The format of requests.
#[derive(Debug)]
pub struct OtlpMetrics {
    resource: Resource,
    compression: Compression,
}

impl OtlpMetrics {
    pub const fn new(resource: Resource, compression: Compression) -> Self {
        Self { resource, compression }
    }
}

impl Format for OtlpMetrics {
    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        self.compression.headers()
    }

    fn request<'a>(
        &self,
        metrics: impl Iterator<Item = (&'static table::Metric, impl Iterator<Item = Shown<'a>>)>,
        now: u64,
    ) -> Option<Bytes> {
        let metrics = metrics.filter_map(|(metric, series)| {
            let mut series = series.filter(|shown| !shown.has_ended).peekable();
            series.peek().is_some().then(|| message(metric, series, now))
        });
        let metrics: Vec<_> = metrics.collect();
        if metrics.is_empty() {
            return None;
        }
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics }];
        let resource_metrics = vec![ResourceMetrics { resource: Some(self.resource.clone()), scope_metrics }];
        Some(self.compression.encode(&MetricsRequest { resource_metrics }))
    }

    fn check(answer: &[u8]) -> Result<(), Failure> {
        rejected(answer).map_or(Ok(()), |(_, failure)| Err(failure))
    }
}

fn message<'a>(metric: &table::Metric, series: impl Iterator<Item = Shown<'a>>, now: u64) -> Metric {
    let (mut sums, mut histograms) = (Vec::new(), Vec::new());
    let time = nanoseconds(now);
    for Shown { labels, value, since, .. } in series {
        let start = nanoseconds(since);
        let attributes = labels.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect();
        match value {
            Value::Count(count) => {
                let value = Some(i64::try_from(count).unwrap_or(i64::MAX));
                sums.push(NumberPoint { start, time, value, attributes });
            }
            Value::Histogram(histogram) => histograms.push(HistogramPoint {
                start,
                time,
                count: histogram.count(),
                sum: Some(histogram.sum),
                buckets: histogram.buckets.to_vec(),
                bounds: BOUNDS.to_vec(),
                attributes,
            }),
        }
    }
    let (unit, data) = match metric.kind {
        Kind::Counter(unit) | Kind::Plain(unit) => {
            (unit, Data::Sum(Sum { points: sums, temporality: CUMULATIVE, is_monotonic: true }))
        }
        Kind::Histogram => ("s", Data::Histogram(Histogram { points: histograms, temporality: CUMULATIVE })),
    };
    Metric {
        name: metric.name.to_owned(),
        description: metric.help.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
    }
}
