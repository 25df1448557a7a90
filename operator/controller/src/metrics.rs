//! The metrics of the controller.

use std::{fmt, time::Duration};

use podtap_runtime::http::Metrics;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Unit,
};

use crate::plan::rollout::Rollout;

/// The stage of a reconcile in which an error happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    Expressions,
    Sweep,
    Finalizers,
    Apply,
    Cleanup,
    Status,
}

impl EncodeLabelValue for Stage {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let label = match self {
            Self::Expressions => "expressions",
            Self::Sweep => "sweep",
            Self::Finalizers => "finalizers",
            Self::Apply => "apply",
            Self::Cleanup => "cleanup",
            Self::Status => "status",
        };
        EncodeLabelValue::encode(&label, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TapLabels {
    ready: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HelperLabels {
    state: &'static str,
}

/// The leader's figures; a standby shows zeros.
#[derive(Clone, Debug)]
pub struct ControllerMetrics {
    reconciles: Counter,
    reconcile_seconds: Histogram,
    errors: Family<ErrorLabels, Counter>,
    taps: Family<TapLabels, Gauge>,
    nodes: Gauge,
    helpers: Family<HelperLabels, Gauge>,
    rollout_stopped: Gauge,
    leader: Gauge,
}

impl ControllerMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self {
            reconciles: Counter::default(),
            // From a reconcile that changes nothing to one that writes to every node.
            reconcile_seconds: Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
            errors: Family::default(),
            taps: Family::default(),
            nodes: Gauge::default(),
            helpers: Family::default(),
            rollout_stopped: Gauge::default(),
            leader: Gauge::default(),
        };
        metrics.register(|registry| {
            let Self { reconciles, reconcile_seconds, errors, taps, nodes, helpers, rollout_stopped, leader } =
                this.clone();
            registry.register("reconciles", "Reconciles of the whole cluster", reconciles);
            let help = "Duration of a reconcile, with its requests";
            registry.register_with_unit("reconcile", help, Unit::Seconds, reconcile_seconds);
            registry.register("errors", "Errors that are retried, by stage of the reconcile", errors);
            registry.register("taps", "PodTap objects by readiness", taps);
            registry.register("nodes", "Nodes with a NodeTap", nodes);
            registry.register("helpers", "Nodes that are to have a helper pod, by the state of the pod", helpers);
            registry.register(
                "helper_rollout_stopped",
                "1 if nodes keep helper pods of an outdated template because a new one fails",
                rollout_stopped,
            );
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

    pub fn reconciled(&self, duration: Duration, ready: usize, not_ready: usize, nodes: usize) {
        self.reconciles.inc();
        self.reconcile_seconds.observe(duration.as_secs_f64());
        for (label, count) in [("true", ready), ("false", not_ready)] {
            let labels = TapLabels { ready: label.to_owned() };
            self.taps.get_or_create(&labels).set(gauge(count));
        }
        self.nodes.set(gauge(nodes));
    }

    pub fn rolled_out(&self, rollout: &Rollout) {
        let counts = [
            ("current", rollout.current),
            ("starting", rollout.starting),
            ("failing", rollout.failing.len()),
            ("outdated", rollout.outdated.len()),
        ];
        for (state, count) in counts {
            self.helpers.get_or_create(&HelperLabels { state }).set(gauge(count));
        }
        self.rollout_stopped.set(i64::from(rollout.is_stopped()));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn families_have_their_unit_and_a_sentence() {
        let metrics = Metrics::new();
        let _registered = ControllerMetrics::new(&metrics);
        let text = podtap_runtime::http::MetricsSource::text(&metrics).await.expect("they can be encoded");
        assert!(text.contains("# UNIT podtap_reconcile_seconds seconds\n"), "{text}");
        let help: Vec<&str> = text.lines().filter(|line| line.starts_with("# HELP podtap_")).collect();
        // A family without a series yet is not shown.
        assert!(help.len() >= 4 && help.iter().all(|line| line.ends_with('.')), "{text}");
    }
}
