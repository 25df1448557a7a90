//! The status of a tap, derived from its plan and from what nodes report. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use podtap_api::{CONDITION_READY, DestinationStatus, PodTapStatus, TapFailure};
use podtap_model::Reason;

use crate::{
    failure::Failure,
    plan::tap_plan::{PlannedDestination, TapPlan},
    status::{
        conditions::{self, Observations, Sender, comes_and_goes, targets_failure},
        delivering::{self, MissingProbes, Probes},
        progress::{self, Progress, StatusInputs},
        waits::{GRACE, Waits},
    },
    store::pod::CachedPod,
    validate::{expiry::expiration, state::TapState},
};

/// How many failures a status lists.
pub const MAX_FAILURES: usize = 16;

/// The status that the tap is to have, and what it lacks. `waits_before` is what it lacked in the previous reconcile.
pub fn tap_status(plan: &TapPlan<'_>, inputs: StatusInputs<'_>, waits_before: &Waits) -> (PodTapStatus, Waits) {
    let previous = &plan.tap.status;
    let exact_now = inputs.snapshot.now;
    let is_established = plan.tap.is_established();
    let progress = progress::senders(plan, inputs);
    let waits = if plan.is_executed() {
        let lacks_targets = targets_failure(plan).as_ref().is_some_and(comes_and_goes);
        waits_before.observe(previous, lacks_targets, &progress, exact_now)
    } else {
        Waits::default()
    };
    let senders: Vec<Sender<'_>> = progress
        .into_iter()
        .map(|(pod, progress)| {
            let failure = sender_failure(pod, &progress, is_established, waits.is_late_for(pod, exact_now));
            Sender { pod, progress, failure }
        })
        .collect();
    let tapped = senders.iter().filter(|sender| sender.is_tapped()).map(|sender| sender.pod);
    let probes: Vec<_> = tapped.map(|pod| (pod, delivering::probes(plan, pod, inputs))).collect();
    let missing_probes = if plan.is_executed() && plan.sends_probes() {
        waits_before.missing_probes.observe(previous, &probes, exact_now)
    } else {
        MissingProbes::default()
    };
    let sends_unknown = plan.sends_probes() && probes.iter().any(|(_, probes)| *probes == Probes::Unknown);
    let missing =
        probes.into_iter().filter(|(pod, probes)| missing_probes.contains(pod) && *probes != Probes::Received);
    let (late, waited): (Vec<_>, Vec<_>) = missing.partition(|(pod, _)| missing_probes.is_late(pod, exact_now));
    let waits = waits.with(missing_probes);
    let receivers: Vec<Progress> =
        plan.destinations.iter().map(|destination| progress::receiver(plan, destination, inputs)).collect();

    let now = whole_seconds(exact_now);
    let conditions = conditions::conditions(
        plan,
        &Observations {
            senders: &senders,
            receivers: &receivers,
            applied: inputs.applied,
            reports: inputs.reports,
            is_established,
            is_late_for_targets: waits.is_late_for_targets(exact_now),
            undelivered: delivering::failure(plan, &late, inputs),
            awaits_probes: sends_unknown || !waited.is_empty(),
            now,
        },
    );
    let is_ready = conditions.iter().any(|c| c.type_ == CONDITION_READY && c.status == "True");
    let tapped_pods = senders.iter().filter(|sender| sender.is_tapped()).count();
    let duration = plan.tap.spec.as_ref().ok().and_then(|spec| spec.duration);
    let expiration_time = plan.tap.start.zip(duration).map(|(start, duration)| Time(expiration(start, duration)));
    let destinations = plan.destinations.iter().zip(&receivers);
    let status = PodTapStatus {
        observed_generation: Some(plan.tap.generation),
        vni: plan.vni.filter(|_| plan.state != TapState::Expired),
        destination: plan.destinations.iter().map(|d| d.text.as_str()).collect::<Vec<_>>().join(","),
        destinations: destinations.map(|(destination, receiver)| destination_status(destination, receiver)).collect(),
        matched_pods: number(plan.targets.matched),
        tapped_pods: number(tapped_pods),
        pending_pods: number(senders.iter().filter(|sender| sender.is_pending()).count()),
        skipped_pods: plan.targets.skipped_pods(),
        skipped: plan.targets.skipped.clone(),
        excluded_pods: number(plan.targets.excluded),
        failures: failures(plan, &senders),
        established_generation: established_generation(plan, is_ready),
        start_time: plan.tap.start.map(Time),
        expiration_time,
        conditions,
    };
    (status, waits)
}

/// A tap that was not carried out in between is established again.
fn established_generation(plan: &TapPlan<'_>, is_ready: bool) -> Option<i64> {
    let before = plan.tap.status.established_generation.filter(|_| plan.is_executed());
    if is_ready { Some(plan.tap.generation) } else { before }
}

/// Why a pod keeps the tap from being Tapped.
///
/// Before a tap is established, each pod that has started does, and one that has not does for [`GRACE`]: it may never start. After
/// that, none does for [`GRACE`], unless the cause is its node, or it is mirrored in an outdated way.
fn sender_failure(pod: &CachedPod, progress: &Progress, is_established: bool, is_late: bool) -> Option<Failure> {
    let overdue = |message: &String| {
        let seconds = GRACE.as_secs();
        Failure::new(Reason::PodNotTapped, format!("not tapped for {seconds} s; {message}"))
    };
    let pending = |message: &String| Failure::new(Reason::Pending, message);
    match progress {
        Progress::Active => None,
        Progress::Updating(message) => Some(pending(message)),
        Progress::Pending(message) if is_late && pod.has_started() => Some(overdue(message)),
        Progress::Pending(message) => (!is_established && !is_late).then(|| pending(message)),
        Progress::Failed(failure) => {
            let is_due = !is_established || is_late || is_about_node(failure);
            is_due.then(|| failure.clone())
        }
    }
}

fn is_about_node(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::NodeNotReady | Reason::HelperPodFailed | Reason::HelperPodRejected)
}

/// The precision that the API server keeps of the times in a condition.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn failures(plan: &TapPlan<'_>, senders: &[Sender<'_>]) -> Vec<TapFailure> {
    let failure = |pod: &CachedPod, failure: &Failure| TapFailure {
        pod: plan.tap.shown(pod),
        node: pod.node.clone(),
        reason: failure.reason,
        message: failure.message.clone(),
    };
    if plan.state != TapState::Active {
        return Vec::new();
    }
    let untappable = plan.targets.pods.iter().filter_map(|target| Some(failure(&target.pod, target.failure.as_ref()?)));
    let failed = senders.iter().filter(|sender| !sender.is_pending());
    let failed = failed.filter_map(|sender| Some(failure(sender.pod, sender.failure.as_ref()?)));
    untappable.chain(failed).take(MAX_FAILURES).collect()
}

fn destination_status(destination: &PlannedDestination, receiver: &Progress) -> DestinationStatus {
    let resolved = destination.resolved.as_ref();
    DestinationStatus {
        name: destination.name.clone(),
        node: resolved.and_then(|resolved| resolved.node()).map(str::to_owned),
        pod: resolved.and_then(|resolved| resolved.pod()).map(|pod| pod.name.clone()),
        interface_name: destination.interface.as_ref().map(ToString::to_string),
        address: destination.endpoint.map(|endpoint| endpoint.ip().to_string()),
        vni: destination.vni,
        ready: *receiver == Progress::Active,
    }
}

#[cfg(test)]
mod tests;
