//! Metrics of the exporter itself.

use podtap_runtime::http::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use crate::metrics::TableFigures;

/// What was read, and what became of it in each sink.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub lines: Counter,
    pub invalid: Counter,
    sent: Family<OfSink, Counter>,
    dropped: Family<Dropped, Counter>,
    failures: Family<OfSink, Counter>,
    up: Family<OfSink, Gauge>,
    queued: Family<OfSink, Gauge>,
    series: Family<OfSink, Gauge>,
    folded: Family<OfSink, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSink {
    sink: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    sink: String,
    reason: &'static str,
}

/// Those of a sink.
#[derive(Clone, Debug)]
pub struct SinkFigures {
    pub sent: Counter,
    /// Found no room while the sink was slow or down.
    pub queue_full: Counter,
    /// The sink does not take them.
    pub refused: Counter,
    /// Still waited at the end.
    pub unsent: Counter,
    /// The sink took them, and lost them later.
    pub lost: Counter,
    pub failures: Counter,
    pub up: Up,
    pub queued: Gauge,
}

/// Whether the last attempt to send succeeded. Before the first one, it has no series: 0 would be a sink that is down.
#[derive(Clone, Debug)]
pub struct Up {
    labels: OfSink,
    family: Family<OfSink, Gauge>,
}

impl Up {
    pub fn set(&self, is_up: bool) {
        self.family.get_or_create(&self.labels).set(is_up.into());
    }

    #[cfg(test)]
    pub fn get(&self) -> Option<i64> {
        self.family.get(&self.labels).map(|gauge| gauge.get())
    }
}

impl Figures {
    pub fn new(metrics: &Metrics) -> Self {
        let figures = Self::default();
        metrics.register(|registry| {
            registry.register("exporter_lines", "Lines of the collector that were read", figures.lines.clone());
            registry.register("exporter_lines_invalid", "Lines that are no flows", figures.invalid.clone());
            registry.register("exporter_records_sent", "Records of flows that the sink took", figures.sent.clone());
            registry.register(
                "exporter_records_dropped",
                "Records of flows that the sink did not get",
                figures.dropped.clone(),
            );
            registry.register("exporter_failures", "Attempts to send that failed", figures.failures.clone());
            registry.register("exporter_sink_up", "Whether the last attempt to send succeeded", figures.up.clone());
            registry.register(
                "exporter_queue_bytes",
                "Memory of records that wait for the sink",
                figures.queued.clone(),
            );
            registry.register("exporter_series", "Series that were made of flows", figures.series.clone());
            registry.register(
                "exporter_series_folded",
                "How often labels became `other` because there were too many series",
                figures.folded.clone(),
            );
        });
        figures
    }

    /// Those of the series of a sink.
    pub fn of_table(&self, sink: &str) -> TableFigures {
        let labels = OfSink { sink: sink.to_owned() };
        TableFigures {
            series: self.series.get_or_create_owned(&labels),
            folded: self.folded.get_or_create_owned(&labels),
        }
    }

    /// Those of a sink. Their series exist from now on, but for [`Up`].
    pub fn of_sink(&self, sink: &str) -> SinkFigures {
        let labels = OfSink { sink: sink.to_owned() };
        let dropped = |reason| self.dropped.get_or_create_owned(&Dropped { sink: sink.to_owned(), reason });
        SinkFigures {
            sent: self.sent.get_or_create_owned(&labels),
            queue_full: dropped("queueFull"),
            refused: dropped("refused"),
            unsent: dropped("unsent"),
            lost: dropped("lost"),
            failures: self.failures.get_or_create_owned(&labels),
            up: Up { labels: labels.clone(), family: self.up.clone() },
            queued: self.queued.get_or_create_owned(&labels),
        }
    }
}
