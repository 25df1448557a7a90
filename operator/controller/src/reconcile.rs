//! One reconcile of the whole cluster, from the cached objects to the statuses.
//!
//! All taps are reconciled together, since they depend on each other: VNIs, interface names, mirroring loops, one object per node.
//!
//! # Guarantees
//! - Level-triggered: the result depends on the state of the cluster, not on what has changed. Reconciling an unchanged cluster sends
//!   no request.
//! - No stage changes the result of an earlier one. An error about one object leaves the others alone.

use std::time::Instant;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::{CONDITION_READY, PodTapStatus};
use podtap_runtime::telemetry::with_causes;
use tracing::warn;

use crate::{
    apply::{cleanup, context::Context, finalizers, objects},
    events::Publisher,
    expression::{
        compiled::{compilable, compile},
        process::Compiler,
    },
    metrics::{ControllerMetrics, Stage},
    plan::{
        build::{Plan, build},
        nodes,
        resolve::resolve,
        tap_plan::{TapPlan, TapState},
    },
    state::ControllerState,
    status::{progress::StatusInputs, tap_status::tap_status, unreadable, write},
    store::snapshot::Snapshot,
    validate::tap::{Tap, validate},
};

/// How often to reconcile even if nothing changes. Watches miss nothing; this is a safety net.
const RESYNC: SignedDuration = SignedDuration::from_mins(10);

/// Shortest time from the start of one reconcile to the next: a deadline in the past, whatever its cause, must not keep the leader
/// busy.
const MIN_INTERVAL: SignedDuration = SignedDuration::from_millis(100);

/// The leader's work.
pub struct Reconciler {
    pub context: Context,
    pub compiler: Compiler,
    pub publisher: Publisher,
    pub state: ControllerState,
    pub metrics: ControllerMetrics,
}

impl Reconciler {
    /// Reconciles everything. Returns when to do so again even if nothing changes.
    pub async fn reconcile(&mut self) -> Timestamp {
        let (started, now) = (Instant::now(), Timestamp::now());
        // Compiler processes, no requests.
        self.compile_expressions(now).await;
        // No requests.
        let snapshot = Snapshot::take(&self.context.caches, &self.state.expressions, now);
        let validated = validate(&snapshot);
        let (taps, vnis) = resolve(&snapshot, &validated, &self.state.vnis);
        self.state.vnis = vnis;
        // Requests: finalizers.
        let finalizers = finalizers::add(&self.context, &taps, &snapshot, &mut self.state.retries).await;
        // No requests.
        let Plan { nodes, taps } = build(&snapshot, taps, &finalizers.missing, &validated.policy);
        let nodes = nodes::plan(&snapshot, nodes, &self.state.idle_since);
        self.state.idle_since = nodes.idle_since;
        // Requests: NodeTaps, helper pods, finalizers.
        let Self { context, publisher, state, .. } = self;
        let applied = objects::apply(context, &snapshot, &nodes.nodes, state).await;
        let deleting = &validated.deleting;
        let cleanup = cleanup::remove_finalizers(context, publisher, &snapshot, &applied, deleting, state).await;
        // No requests.
        let inputs = StatusInputs { snapshot: &snapshot, applied: &applied, generations: &state.generations };
        let statuses: Vec<(&Tap, PodTapStatus)> =
            taps.iter().map(|plan| (plan.tap, tap_status(plan, inputs))).collect();
        let (total, ready) = (statuses.len(), statuses.iter().filter(|(_, status)| is_ready(status)).count());
        let expiration = next_expiration(&taps, &statuses);
        // Requests: statuses and events.
        let ControllerState { retries, unreadable, .. } = state;
        let status_errors = write::write(context, publisher, statuses, retries, now).await;
        let unreadable_errors =
            unreadable::report(context, publisher, &validated.unreadable, unreadable, retries, now).await;

        self.count_errors(Stage::Finalizers, &finalizers.errors);
        self.count_errors(Stage::Apply, &applied.errors);
        self.count_errors(Stage::Cleanup, &cleanup.errors);
        self.count_errors(Stage::Status, &status_errors);
        self.count_errors(Stage::Status, &unreadable_errors);
        self.metrics.reconciled(started.elapsed(), ready, total - ready, applied.node_taps.len());
        self.next(now, [nodes.next, cleanup.next, expiration])
    }

    async fn compile_expressions(&mut self, now: Timestamp) {
        let taps = self.context.caches.taps.list();
        let texts = compilable(taps.iter().filter_map(|entry| entry.object.expression()));
        let ControllerState { expressions, retries, .. } = &mut self.state;
        let errors = compile(expressions, &self.compiler, &texts, retries, now).await;
        self.count_errors(Stage::Expressions, &errors);
    }

    fn next<const N: usize>(&mut self, now: Timestamp, others: [Option<Timestamp>; N]) -> Timestamp {
        self.state.retries.forget_old(now);
        let retry = self.state.retries.next(now);
        let next = others.into_iter().flatten().chain(retry).fold(now + RESYNC, Timestamp::min);
        next.max(now + MIN_INTERVAL)
    }

    fn count_errors<E: std::error::Error>(&self, stage: Stage, errors: &[E]) {
        for error in errors {
            warn!(error = %with_causes(error), "will be retried");
        }
        self.metrics.count_errors(stage, errors.len());
    }
}

fn is_ready(status: &PodTapStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == CONDITION_READY && condition.status == "True")
}

fn next_expiration(taps: &[TapPlan<'_>], statuses: &[(&Tap, PodTapStatus)]) -> Option<Timestamp> {
    let running = taps.iter().zip(statuses).filter(|(plan, _)| plan.state != TapState::Expired);
    running.filter_map(|(_, (_, status))| Some(status.expiration_time.as_ref()?.0)).min()
}

#[cfg(test)]
mod tests;
