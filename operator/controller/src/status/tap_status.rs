//! The status of a tap, derived from its plan and from what nodes report. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use podtap_api::{DestinationStatus, PodTapStatus, TapFailure};

use crate::{
    failure::Failure,
    plan::{
        expiry::expiration,
        tap_plan::{PlannedDestination, TapPlan, TapState},
    },
    status::{
        conditions,
        progress::{self, Progress, StatusInputs},
    },
    store::pod::CachedPod,
};

/// How many failures a status lists.
pub const MAX_FAILURES: usize = 16;

/// The status that the tap is to have.
pub fn tap_status(plan: &TapPlan<'_>, inputs: StatusInputs<'_>) -> PodTapStatus {
    let senders = progress::senders(plan, inputs);
    let receivers: Vec<Progress> =
        plan.destinations.iter().map(|destination| progress::receiver(plan, destination, inputs)).collect();

    let now = whole_seconds(inputs.snapshot.now);
    let tapped_pods = senders.iter().filter(|(_, progress)| *progress == Progress::Active).count();
    let duration = plan.tap.spec.as_ref().ok().and_then(|spec| spec.duration);
    let expiration_time = plan.start.zip(duration).map(|(start, duration)| Time(expiration(start, duration)));
    let destinations = plan.destinations.iter().zip(&receivers);
    PodTapStatus {
        observed_generation: Some(plan.tap.generation),
        vni: plan.vni.filter(|_| plan.state != TapState::Expired),
        destination: plan.destinations.iter().map(|d| d.text.as_str()).collect::<Vec<_>>().join(","),
        destinations: destinations.map(|(destination, receiver)| destination_status(destination, receiver)).collect(),
        matched_pods: number(plan.targets.matched),
        tapped_pods: number(tapped_pods),
        failures: failures(plan, &senders),
        start_time: plan.start.map(Time),
        expiration_time,
        conditions: conditions::conditions(plan, &senders, &receivers, inputs.applied, now),
    }
}

/// The precision that the API server keeps of the times in a condition.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn failures(plan: &TapPlan<'_>, senders: &[(&CachedPod, Progress)]) -> Vec<TapFailure> {
    let failure = |pod: &CachedPod, failure: &Failure| TapFailure {
        pod: pod.name.clone(),
        node: pod.node.clone(),
        reason: failure.reason,
        message: failure.message.clone(),
    };
    if plan.state != TapState::Active {
        return Vec::new();
    }
    let untappable = plan.targets.pods.iter().filter_map(|target| Some(failure(&target.pod, target.failure.as_ref()?)));
    let failed = senders.iter().filter_map(|(pod, progress)| match progress {
        Progress::Failed(cause) => Some(failure(pod, cause)),
        Progress::Active | Progress::Pending(_) => None,
    });
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
