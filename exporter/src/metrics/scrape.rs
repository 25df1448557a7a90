//! Metrics of flows for Prometheus, which fetches them.

use std::{fmt, sync::Arc};

use podtap_runtime::http::{EncodeError, Metrics, MetricsSource, text};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Registry,
};

use super::{
    Counted, now,
    table::{BOUNDS, Kind, Value},
};
use crate::{
    record::Record,
    sinks::{Failure, Sink},
};

/// Counts what `/metrics` shows.
#[derive(Debug)]
pub struct Scraped(pub Counted);

impl Sink for Scraped {
    const MOST: usize = 1024;

    fn servers(&self) -> Vec<(String, u16)> {
        Vec::new()
    }

    fn disconnect(&mut self) {}

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        self.0.count(records);
        Ok(())
    }

    async fn idle(&mut self) -> Result<(), Failure> {
        self.0.count(&[]);
        Ok(())
    }
}

/// Metrics of the exporter, and of flows.
#[derive(Clone, Debug)]
pub struct Source {
    own: Metrics,
    flows: Option<Arc<Registry>>,
}

impl Source {
    pub fn new(own: Metrics, flows: Option<Counted>) -> Self {
        let flows = flows.map(|counted| {
            let mut registry = Registry::default();
            registry.register_collector(Box::new(counted));
            Arc::new(registry)
        });
        Self { own, flows }
    }
}

/// The last line.
const END: &str = "# EOF\n";

impl MetricsSource for Source {
    type Error = EncodeError;

    async fn text(&self) -> Result<String, EncodeError> {
        let mut own = self.own.text().await?;
        if let Some(registry) = &self.flows {
            own.truncate(own.strip_suffix(END).map_or(own.len(), str::len));
            own.push_str(&text(registry)?);
        }
        Ok(own)
    }
}

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counting = self.lock();
        for (metric, series) in counting.table.metrics(now()) {
            let kind = match metric.kind {
                Kind::Counter(_) => MetricType::Counter,
                Kind::Plain(_) => MetricType::Unknown,
                Kind::Histogram => MetricType::Histogram,
            };
            let name = prometheus(metric.name);
            let mut series = series.filter(|shown| !shown.has_ended).peekable();
            if series.peek().is_none() {
                continue;
            }
            let mut family = encoder.encode_descriptor(&name, metric.help, None, kind)?;
            for shown in series {
                let labels: Vec<_> = shown.labels.iter().map(|(name, value)| (prometheus(name), *value)).collect();
                let mut encoder = family.encode_family(&labels)?;
                match shown.value {
                    Value::Count(count) if matches!(metric.kind, Kind::Plain(_)) => encoder.encode_gauge(&count)?,
                    Value::Count(count) => encoder.encode_counter::<NoLabelSet, _, u64>(&count, None)?,
                    Value::Histogram(histogram) => {
                        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
                        let buckets: Vec<_> = bounds.zip(histogram.buckets).collect();
                        encoder.encode_histogram::<NoLabelSet>(histogram.sum, histogram.count(), &buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A name as Prometheus has it.
pub fn prometheus(name: &str) -> String {
    name.replace('.', "_")
}
