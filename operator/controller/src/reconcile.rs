//! One look at the whole cluster, from the objects to the statuses.
//!
//! # Expected flow
//! gather (no request) -> compile new expressions (processes) -> validate (pure) -> allocate (pure) -> record claims -> build (pure) -> secure finalizers ->
//! apply -> finish deletions -> report.
//!
//! # Guarantees
//! Level-triggered: what a pass does follows from what is there, not from what has changed. A pass over an unchanged
//! cluster sends nothing. An error at one object leaves the others alone.

use std::time::Instant;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::{CONDITION_READY, PodTapStatus};
use tracing::warn;


use podtap_runtime::telemetry::with_causes;

use crate::{apply::{cleanup, objects::{self, Context}, vni_record::{self, Record}}, events::Publisher, expression::{compiled, process::Compiler}, metrics::{ControllerMetrics, Stage}, plan::{build::{self, TapPlan, TapState}, nodes, vni::{self, Allocation, Claims}}, state::{ControllerState, RetryKey}, status::{conditions, write}, store::snapshot::{take_snapshot, Snapshot}, validate::tap::{Spec, Tap, validate, Validated}};

/// When a pass runs although nothing has changed: a watch can miss nothing, so this is for what nobody thought of.
const RESYNC: SignedDuration = SignedDuration::from_mins(10);

/// What is due earlier than so long after a pass began waits that long: a time that is over, whatever made it, must not keep the
/// leader going without a pause.
const SOONEST: SignedDuration = SignedDuration::from_millis(100);

/// The leader's work.
pub struct Reconciler {
    pub context: Context,
    pub compiler: Compiler,
    pub publisher: Publisher,
    pub record: Record,
    pub state: ControllerState,
    pub metrics: ControllerMetrics,
}

impl Reconciler {
    /// One pass. Returns when the next one is due although nothing changes.
    pub async fn reconcile(&mut self) -> Timestamp {
        let started = Instant::now();
        let mut snapshot = take_snapshot(&self.context.caches, Timestamp::now());
        let now = snapshot.now;
        let ControllerState { expressions: known, retries, .. } = &mut self.state;
        log(&expressions::compile_new(known, &self.compiler, &snapshot, retries).await);
        snapshot.expressions.clone_from(known);
        let validated = validate(&snapshot);
        let Some((allocation, recorded)) = self.claim(&snapshot, &validated).await else {
            return self.next(now, []);
        };

        let mut plan = build::build(&snapshot, &validated, &allocation, &recorded);
        let (unsecured, mut errors) = apply::secure(&self.context, &plan.taps_, &snapshot, &mut self.state).await;
        plan.exclude(&unsecured);
        let nodes = nodes::plan(&snapshot, plan.nodes, &self.state.idle_since);
        self.state.idle_since = nodes.idle_since;
        let mut applied = apply::apply(&self.context, &snapshot, &nodes.nodes, &mut self.state).await;
        errors.append(&mut applied.errors);
        log(&errors);
        self.metrics.count_errors(Stage::Apply, errors.len());

        let Reconciler { context, publisher, state, .. } = self;
        let deleting = &validated.deleting;
        let finished = cleanup::finish(context, publisher, &snapshot, &applied, deleting, state).await;
        log(&finished.errors);

        let inputs = conditions::StatusInputs { snapshot: &snapshot, applied: &applied, generations: &state.generations };
        let statuses: Vec<(&Tap, PodTapStatus)> =
            plan.taps_.iter().map(|tap| (tap.tap, conditions::status(tap, inputs))).collect();
        let ready = statuses.iter().filter(|(_, status)| is_ready(status)).count();
        let expiry = next_expiry(&plan.taps_, &statuses);
        let total = statuses.len();
        let mut unsaid = status::report(context, publisher, statuses, state, now).await;
        unsaid.extend(status::report_unreadable(context, publisher, &validated.unreadable, state, now).await);
        log(&unsaid);

        self.metrics.count_errors(Stage::Cleanup, finished.errors.len());
        self.metrics.count_errors(Stage::Status, unsaid.len());
        self.metrics.reconcile(started.elapsed(), ready, total - ready, applied.node_taps.len());
        self.next(now, [nodes.next, finished.next, expiry])
    }

    /// Decides who has which VNI, writes it down, and returns what is written. `None` if nothing can be said about what is.
    async fn claim(&mut self, snapshot: &Snapshot, validated: &Validated) -> Option<(Allocation, Claims)> {
        let now = snapshot.now;
        let mut is_written = false;
        if !self.state.retries.holds(&RetryKey::Claims, now) {
            match self.try_claim(snapshot, validated).await {
                Ok(()) => {
                    self.state.retries.succeeded(&RetryKey::Claims);
                    is_written = true;
                }
                Err(error) => {
                    warn!(error = %with_causes(&error), "tried again after a pause");
                    self.metrics.count_errors(Stage::Claims, 1);
                    self.state.retries.failed(RetryKey::Claims, now);
                    // What was refused is not known any more; until the next attempt, what stands there has to do.
                    self.record.read().await.ok()?;
                }
            }
        }
        let recorded = self.record.known()?.clone();
        // With an empty record that could not be written, every tap would be taken down: rather nothing is done.
        let is_usable = is_written || !recorded.is_empty() || snapshot.node_taps.is_empty();
        is_usable.then(|| (allocate(snapshot, validated, &recorded), recorded))
    }

    async fn try_claim(&mut self, snapshot: &Snapshot, validated: &Validated) -> Result<(), claims::Error> {
        let claims = allocate(snapshot, validated, self.record.read().await?).claims;
        self.record.write(claims).await
    }

    fn next<const N: usize>(&mut self, now: Timestamp, others: [Option<Timestamp>; N]) -> Timestamp {
        self.state.retries.forget_old(now);
        let retry = self.state.retries.next(now);
        let next = others.into_iter().flatten().chain(retry).fold(now + RESYNC, Timestamp::min);
        next.max(now + SOONEST)
    }
}

/// Decides on VNIs from what is recorded; taps whose time is over need none.
pub fn allocate(snapshot: &Snapshot, validated: &Validated, recorded: &Claims) -> Allocation {
    let taps: Vec<(&Tap, &Spec)> = validated
        .taps
        .iter()
        .filter_map(|tap| Some((tap, tap.spec.as_ref().ok()?)))
        .filter(|(tap, spec)| !build::is_expired(tap, spec, snapshot.now))
        .collect();
    vni::allocate(recorded, &taps, &snapshot.node_taps, &validated.policy.vni_range)
}

fn log<E: std::error::Error>(errors: &[E]) {
    for error in errors {
        warn!(error = %with_causes(error), "tried again after a pause");
    }
}

fn is_ready(status: &PodTapStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == CONDITION_READY && condition.status == "True")
}

fn next_expiry(taps_: &[TapPlan<'_>], statuses: &[(&Tap, PodTapStatus)]) -> Option<Timestamp> {
    let running = taps_.iter().zip(statuses).filter(|(tap, _)| tap.standing != TapState::Expired);
    running.filter_map(|(_, (_, status))| Some(status.expires_at.as_ref()?.0)).min()
}

#[cfg(test)]
mod tests;
