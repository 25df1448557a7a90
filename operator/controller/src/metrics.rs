//! What `/metrics` says of the controller.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

use podtap_runtime::http::Metrics;

/// Where an error happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Stage {
    Claims,
    Apply,
    Status,
    Cleanup,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TapLabels {
    ready: String,
}

/// Figures of the leader; a standby shows zeroes.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    passes: Counter,
    pass_seconds: Histogram,
    errors: Family<ErrorLabels, Counter>,
    taps: Family<TapLabels, Gauge>,
    nodes: Gauge,
    leader: Gauge,
}

impl ControllerMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self {
            passes: Counter::default(),
            // From a pass that changes nothing to one that writes to every node.
            pass_seconds: Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
            errors: Family::default(),
            taps: Family::default(),
            nodes: Gauge::default(),
            leader: Gauge::default(),
        };
        metrics.register(|registry| {
            let Self { passes, pass_seconds, errors, taps, nodes, leader } = this.clone();
            registry.register("passes", "Looks at the whole cluster", passes);
            registry.register("pass_seconds", "Duration of a pass, with its requests", pass_seconds);
            registry.register("errors", "Requests that failed and are tried again, by stage", errors);
            registry.register("taps", "PodTap objects by readiness", taps);
            registry.register("nodes", "Nodes with a NodeTap", nodes);
            registry.register("leader", "1 if this replica is the leader", leader);
        });
        this
    }

    pub fn set_leader(&self, is_leader: bool) {
        self.leader.set(i64::from(is_leader));
    }

    pub fn count_errors(&self, stage: Stage, count: usize) {
        if count > 0 {
            self.errors.get_or_create(&ErrorLabels { stage }).inc_by(count as u64);
        }
    }

    pub fn reconcile(&self, duration: Duration, ready: usize, not_ready: usize, nodes: usize) {
        self.passes.inc();
        self.pass_seconds.observe(duration.as_secs_f64());
        for (label, count) in [("true", ready), ("false", not_ready)] {
            let labels = TapLabels { ready: label.to_owned() };
            self.taps.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.nodes.set(i64::try_from(nodes).unwrap_or(i64::MAX));
    }
}
