//! One reconcile of the whole cluster, from the cached objects to the statuses.
//!
//! All taps are reconciled together, since they depend on each other: VNIs, interface names, mirroring loops, one object per node.
//!
//! # Guarantees
//! - Level-triggered: the result depends on the state of the cluster, not on what has changed. Reconciling an unchanged cluster sends
//!   no request.
//! - No stage changes the result of an earlier one. An error about one object leaves the others alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use podtap_api::{CONDITION_READY, PodTapStatus};
use podtap_model::NodeState;
use podtap_runtime::telemetry::with_causes;
use tracing::warn;

use crate::{
    apply::{
        cleanup,
        context::Context,
        execute::delete_node_tap,
        finalizers,
        objects::{self, Applied},
        sweep_record::{self, SweepRecord},
        uninstall_guard::UninstallGuard,
    },
    events::Publisher,
    expression::process::Compiler,
    metrics::{ControllerMetrics, Stage},
    plan::{
        build::{Plan, build},
        deduplication::deduplication,
        moves::moves,
        nodes,
        reachability::lacks_probes,
        resolve::resolve,
        sweep::{self, Sweep},
        tap_plan::TapPlan,
    },
    retries::RetryKey,
    state::ControllerState,
    status::{
        progress::{Reports, StatusInputs},
        rollout_stop,
        tap_status::tap_status,
        unknown_keys, unreadable,
        waits::Waits,
        write,
    },
    store::snapshot::Snapshot,
    validate::{
        state::TapState,
        tap::{Tap, Validated, validate},
    },
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
    pub sweep_record: SweepRecord,
    pub uninstall_guard: UninstallGuard,
    pub state: ControllerState,
    pub metrics: ControllerMetrics,
}

impl Reconciler {
    /// Reconciles everything as of `now`, by the API server's clock: no decision depends on that of the controller's node. Returns when
    /// to do so again even if nothing changes.
    pub async fn reconcile(&mut self, now: Timestamp) -> Timestamp {
        let started = Instant::now();
        // Compiler processes, no requests.
        let (snapshot, validated) = self.validated(now).await;
        // No requests.
        let (taps, vnis) = resolve(&snapshot, &validated, &self.state.vnis);
        self.state.vnis = vnis;
        // Requests: the policy against an early uninstallation, once per leader.
        self.guard(now).await;
        // Requests: finalizers.
        let finalizers = finalizers::add(&self.context, &taps, &snapshot, &mut self.state.retries).await;
        // No requests.
        let deduplication = deduplication(&taps, &snapshot, &self.state.generations, &self.state.deduplication);
        let moves = moves(&taps, &snapshot, &self.state.moves);
        // A new leader keeps asking what its predecessor asked.
        let stored =
            taps.iter().filter(|plan| lacks_probes(&plan.tap.status)).map(|plan| plan.tap.reference.uid.clone());
        let without_probes = stored.chain(self.state.without_probes.iter().cloned()).collect();
        let Plan { mut nodes, taps } =
            build(&snapshot, taps, &finalizers.missing, &without_probes, &validated.policy, &deduplication, &moves);
        self.state.moves = moves.since;
        self.state.deduplication = deduplication.waits;
        // Requests: the record of nodes to sweep, once per leader.
        let is_uninstalling = nodes::is_uninstalling(&snapshot, &self.context.template.namespace);
        self.state.sweep_ended |= is_uninstalling;
        let sweep_end = self.sweep(&snapshot, &mut nodes).await;
        let nodes = nodes::plan(&snapshot, nodes, &self.state.idle_since, is_uninstalling);
        self.state.idle_since = nodes.idle_since;
        // Requests: NodeTaps, helper pods, finalizers.
        let Self { context, publisher, state, .. } = self;
        let applied = objects::apply(context, &snapshot, &nodes.nodes, state).await;
        let deleting = &validated.deleting;
        let cleanup = cleanup::remove_finalizers(context, publisher, &snapshot, &applied, deleting, state).await;
        // No requests.
        let reports = Reports::new(&applied);
        let statuses = statuses(&taps, &snapshot, &applied, &reports, state);
        let without_probes =
            statuses.iter().filter(|(_, status)| lacks_probes(status)).map(|(tap, _)| tap.reference.uid.clone());
        let without_probes: BTreeSet<_> = without_probes.collect();
        // Nodes are asked about a tap that has just lost probes, or are asked no longer.
        let asked = (without_probes != state.without_probes).then_some(now);
        state.without_probes = without_probes;
        let waits = state.waits.values().filter_map(|waits| waits.next(now)).min();
        let (total, ready) = (statuses.len(), statuses.iter().filter(|(_, status)| is_ready(status)).count());
        let expiration = next_expiration(&taps, &statuses);
        // Requests: statuses and events.
        rollout_stop::report(publisher, &applied, &context.template.hash(), &mut state.rollout_stopped);
        let ControllerState { retries, unreadable, last_writes, unknown_keys: reported, .. } = state;
        // The requests so far may have taken longer than the interval between two writes.
        let write_time = now + SignedDuration::try_from(started.elapsed()).unwrap_or_default();
        let written = write::write(context, publisher, statuses, last_writes, retries, write_time).await;
        let unreadable = unreadable::report(context, publisher, &validated.unreadable, unreadable, retries, now).await;
        let warnings = unknown_keys::report(publisher, &snapshot, reported);

        self.count_errors(Stage::Finalizers, &finalizers.errors);
        self.count_errors(Stage::Apply, &applied.errors);
        self.count_errors(Stage::Cleanup, &cleanup.errors);
        self.count_errors(Stage::Status, &written.errors);
        self.count_errors(Stage::Status, &unreadable.errors);
        self.metrics.reconciled(started.elapsed(), ready, total - ready, applied.node_taps.len());
        self.metrics.rolled_out(&applied.rollout);
        // Requests: the record of nodes to sweep.
        self.record_swept(&snapshot, &applied).await;
        let plans = [nodes.next, deduplication.next, moves.next, expiration, sweep_end, waits, asked];
        let requests = [applied.next, cleanup.next, written.next, unreadable.next, warnings];
        self.next(now, plans.into_iter().chain(requests))
    }

    /// The cluster and its taps, after the expressions of those that are carried out have been compiled as far as there is time.
    async fn validated(&mut self, now: Timestamp) -> (Snapshot, Validated) {
        let snapshot = self.snapshot(now);
        let validated = validate(&snapshot);
        let ControllerState { expressions, retries, .. } = &mut self.state;
        let errors = expressions.compile(&self.compiler, &validated.expressions, retries, now).await;
        let has_changed = *expressions.known() != snapshot.expressions;
        self.count_errors(Stage::Expressions, &errors);
        let (snapshot, validated) = if has_changed {
            let snapshot = self.snapshot(now);
            let validated = validate(&snapshot);
            (snapshot, validated)
        } else {
            (snapshot, validated)
        };
        let start = |tap: &Tap| Some((tap.reference.uid.clone(), tap.start?));
        self.state.starts = validated.taps.iter().filter_map(start).collect();
        (snapshot, validated)
    }

    /// The caches, and what this leader remembers.
    fn snapshot(&mut self, now: Timestamp) -> Snapshot {
        let mut snapshot = Snapshot::take(&self.context.caches, self.state.expressions.known(), now);
        let state = &mut self.state;
        let error = snapshot.policy.as_deref().and_then(|policy| policy.as_ref().err());
        if error.is_none() {
            state.last_policy.clone_from(&snapshot.policy);
        }
        if let Some(error) = error.filter(|error| state.policy_error.as_ref() != Some(error)) {
            let effect = if state.last_policy.is_some() { "the last one that could be counts" } else { "no tap runs" };
            warn!(%error, "the PodTapPolicy default cannot be decoded: {effect}");
        }
        state.policy_error = error.cloned();
        snapshot.starts.clone_from(&state.starts);
        snapshot.last_policy.clone_from(&state.last_policy);
        snapshot
    }

    async fn guard(&mut self, now: Timestamp) {
        let key = RetryKey::UninstallGuard;
        if self.uninstall_guard.is_applied() || self.state.retries.is_paused(&key, now) {
            return;
        }
        match self.uninstall_guard.apply().await {
            Ok(()) => self.state.retries.succeeded(&key),
            Err(error) => {
                self.count_errors(Stage::Apply, &[error]);
                self.state.retries.failed(key, now);
            }
        }
    }

    /// Adds the nodes that are to be swept now; none if it is unknown what was swept already. Returns when to choose others.
    async fn sweep(&mut self, snapshot: &Snapshot, nodes: &mut BTreeMap<String, NodeState>) -> Option<Timestamp> {
        let Self { sweep_record, state, context, .. } = self;
        let is_paused = state.retries.is_paused(&RetryKey::SweepRecord, snapshot.now);
        if sweep_record.known().is_none() && !is_paused {
            let nodes = || snapshot.nodes.keys().cloned().collect();
            let result = sweep_record.begin(nodes, async || forget_unserved(context, snapshot).await).await;
            self.sweep_recorded(result, snapshot.now);
        }
        if self.state.sweep_ended {
            return None;
        }
        let Sweep { nodes: chosen, next } =
            sweep::choose(self.sweep_record.known()?, snapshot, &mut self.state.sweep_begun);
        for node in chosen {
            nodes.entry(node).or_default();
        }
        next
    }

    async fn record_swept(&mut self, snapshot: &Snapshot, applied: &Applied) {
        let Some(unswept) = self.sweep_record.known() else { return };
        let remaining = sweep::remaining(unswept, snapshot, &applied.node_taps);
        let result = self.sweep_record.write(remaining).await;
        self.sweep_recorded(result, snapshot.now);
    }

    fn sweep_recorded(&mut self, result: Result<(), sweep_record::Error>, now: Timestamp) {
        match result {
            Ok(()) => self.state.retries.succeeded(&RetryKey::SweepRecord),
            Err(error) => {
                self.count_errors(Stage::Sweep, &[error]);
                self.state.retries.failed(RetryKey::SweepRecord, now);
            }
        }
    }

    fn next(&mut self, now: Timestamp, others: impl IntoIterator<Item = Option<Timestamp>>) -> Timestamp {
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

/// Deletes the `NodeTap`s that no helper pod serves: in a new installation, they tell what an earlier one has observed.
async fn forget_unserved(context: &Context, snapshot: &Snapshot) -> Result<(), kube::Error> {
    for node_tap in snapshot.node_taps.values() {
        if !snapshot.helpers_of(&node_tap.name).iter().any(|pod| pod.ready) {
            delete_node_tap(context, &node_tap.name, &node_tap.uid).await?;
        }
    }
    Ok(())
}

/// The status that each tap is to have. Updates what the taps lack.
fn statuses<'a>(
    taps: &'a [TapPlan<'a>],
    snapshot: &Snapshot,
    applied: &Applied,
    reports: &Reports<'_>,
    state: &mut ControllerState,
) -> Vec<(&'a Tap, PodTapStatus)> {
    let inputs = StatusInputs { snapshot, applied, reports, generations: &state.generations };
    let before = std::mem::take(&mut state.waits);
    let (nothing, mut waits) = (Waits::default(), BTreeMap::new());
    let statuses = taps.iter().map(|plan| {
        let uid = &plan.tap.reference.uid;
        let (status, now_waits) = tap_status(plan, inputs, before.get(uid).unwrap_or(&nothing));
        waits.insert(uid.clone(), now_waits);
        (plan.tap, status)
    });
    let statuses = statuses.collect();
    state.waits = waits;
    statuses
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
