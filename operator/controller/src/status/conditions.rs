//! The conditions of a tap. Pure.
//!
//! # Guarantees
//! All five conditions are present from the first reconcile, each with a reason, a message and the generation it is about. `Ready` is
//! True exactly if the next three are. `Degraded` is True if frames are mirrored, but not all as the spec requests.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use podtap_api::{
    CONDITION_DEGRADED, CONDITION_DESTINATIONS_READY, CONDITION_READY, CONDITION_TAPPED, CONDITION_TARGETS_RESOLVED,
};
use podtap_model::Reason;

use crate::{
    apply::objects::Applied,
    failure::{Failure, count},
    plan::{
        tap_plan::{SuspendedBy, TapPlan, TapState},
        targets::Target,
    },
    status::{degraded::degraded_options, progress::Progress},
    store::pod::CachedPod,
};

/// Our conditions; others in the list belong to other controllers.
pub const OWN_TYPES: [&str; 5] =
    [CONDITION_READY, CONDITION_TARGETS_RESOLVED, CONDITION_DESTINATIONS_READY, CONDITION_TAPPED, CONDITION_DEGRADED];

/// Reason and message of a condition that is True (`Ok`) or False (`Err`).
pub type ConditionResult = Result<Failure, Failure>;

/// The conditions of the tap, in the order of [`OWN_TYPES`].
pub fn conditions(
    plan: &TapPlan<'_>,
    senders: &[(&CachedPod, Progress)],
    receivers: &[Progress],
    applied: &Applied,
    now: Timestamp,
) -> Vec<Condition> {
    let targets_resolved = targets_resolved(plan);
    let destinations_ready = destinations_ready(plan, receivers);
    let tapped = tapped(plan, senders, applied, &targets_resolved, &destinations_ready);
    let degraded = degraded(plan, senders, applied);
    let ready = ready(plan, [&targets_resolved, &destinations_ready, &tapped], senders, &degraded);
    let results = [ready, targets_resolved, destinations_ready, tapped, degraded];
    let previous = &plan.tap.status.conditions;
    let condition = |(kind, result)| condition(kind, result, plan.tap.generation, previous, now);
    OWN_TYPES.into_iter().zip(results).map(condition).collect()
}

/// A condition. Its transition time changes only with its status.
pub fn condition(
    kind: &str,
    result: ConditionResult,
    generation: i64,
    previous: &[Condition],
    now: Timestamp,
) -> Condition {
    let (status, Failure { reason, message }) = match result {
        Ok(success) => ("True", success),
        Err(failure) => ("False", failure),
    };
    let unchanged = previous.iter().find(|condition| condition.type_ == kind && condition.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_string(),
        message,
        observed_generation: Some(generation),
        last_transition_time: unchanged.map_or(Time(now), |condition| condition.last_transition_time.clone()),
    }
}

fn targets_resolved(plan: &TapPlan<'_>) -> ConditionResult {
    if let Err(failure) = &plan.tap.spec {
        return Err(failure.clone());
    }
    if let Some(failure) = &plan.targets.failure {
        return Err(failure.clone());
    }
    let mut untappable = plan.targets.pods.iter().filter(|target| target.failure.is_some());
    if let Some(Target { pod, failure: Some(failure) }) = untappable.next() {
        let rest = untappable.count();
        let others = if rest == 0 {
            String::new()
        } else {
            format!("; and {}, see status.failures", count(rest, "other pod", "other pods"))
        };
        return Err(Failure::new(failure.reason, format!("pod {}: {}{others}", pod.name, failure.message)));
    }
    Ok(Failure::new(Reason::Resolved, format!("{} to tap", count(plan.targets.pods.len(), "pod", "pods"))))
}

fn destinations_ready(plan: &TapPlan<'_>, receivers: &[Progress]) -> ConditionResult {
    let named = |index: usize, message: &str| match plan.destinations.get(index) {
        Some(destination) if receivers.len() > 1 => format!("destination {}: {message}", destination.name),
        _ => message.to_owned(),
    };
    let failed = receivers.iter().enumerate().find_map(|(index, receiver)| match receiver {
        Progress::Failed(failure) => Some(Failure::new(failure.reason, named(index, &failure.message))),
        _ => None,
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    if let Some(failure) = inactive(plan) {
        return Err(failure);
    }
    let pending = receivers.iter().enumerate().find_map(|(index, receiver)| match receiver {
        Progress::Pending(message) => Some(format!("waiting {}", named(index, message))),
        _ => None,
    });
    match pending {
        Some(message) => Err(Failure::new(Reason::Pending, message)),
        None => Ok(Failure::new(
            Reason::Available,
            count(receivers.len(), "destination is ready", "destinations are ready"),
        )),
    }
}

fn tapped(
    plan: &TapPlan<'_>,
    senders: &[(&CachedPod, Progress)],
    applied: &Applied,
    targets_resolved: &ConditionResult,
    destinations_ready: &ConditionResult,
) -> ConditionResult {
    if let Some(failure) = inactive(plan) {
        return Err(failure);
    }
    if senders.is_empty() {
        let cause = targets_resolved.as_ref().err();
        return Err(cause.cloned().unwrap_or_else(|| Failure::new(Reason::NoPodsMatch, "there is no pod to tap")));
    }
    if let (false, Err(failure)) = (plan.is_executed(), destinations_ready) {
        return Err(Failure::new(
            failure.reason,
            format!("nothing is mirrored until a destination is available: {}", failure.message),
        ));
    }
    let active = senders.iter().filter(|(_, progress)| *progress == Progress::Active).count();
    let progress = format!("{active} of {} tapped", count(senders.len(), "pod", "pods"));
    let failed = senders.iter().find_map(|(pod, progress)| match progress {
        Progress::Failed(failure) => Some((pod, failure)),
        _ => None,
    });
    if let Some((pod, failure)) = failed {
        return Err(Failure::new(failure.reason, format!("{progress}; pod {}: {}", pod.name, failure.message)));
    }
    let pending = senders.iter().find_map(|(pod, sender)| match sender {
        Progress::Pending(message) => Some(format!("{progress}; pod {} waits {message}", pod.name)),
        _ => None,
    });
    if let Some(message) = pending {
        return Err(Failure::new(Reason::Pending, message));
    }
    if let Some(failure) = plan.tap.spec.as_ref().ok().and_then(|spec| spec.options.rejected_expression.as_ref()) {
        let message = format!("{progress}, with the previous expression: {}", failure.message);
        return Err(Failure::new(failure.reason, message));
    }
    // Mirrors keep working without the helper pod, but changes are not applied.
    let unattended = senders.iter().find_map(|(pod, _)| applied.helper_failures.get(pod.node.as_ref()?));
    if let Some(failure) = unattended {
        let message = format!("{progress}, but changes are not applied: {}", failure.message);
        return Err(Failure::new(failure.reason, message));
    }
    Ok(Failure::new(Reason::AsExpected, progress))
}

/// True if something is missing, unlike the other conditions.
fn degraded(plan: &TapPlan<'_>, senders: &[(&CachedPod, Progress)], applied: &Applied) -> ConditionResult {
    if let Some(failure) = inactive(plan) {
        return Err(failure);
    }
    let active = || senders.iter().filter(|(_, progress)| *progress == Progress::Active).map(|(pod, _)| *pod);
    match degraded_options(plan, active(), applied) {
        Some(failure) => Ok(failure),
        None if active().next().is_none() => {
            Err(Failure::new(Reason::Pending, "unknown until the first pod is tapped"))
        }
        None => Err(Failure::new(Reason::AsExpected, "frames are mirrored as spec requests")),
    }
}

fn ready(
    plan: &TapPlan<'_>,
    others: [&ConditionResult; 3],
    senders: &[(&CachedPod, Progress)],
    degraded: &ConditionResult,
) -> ConditionResult {
    if let Some(failure) = inactive(plan) {
        return Err(failure);
    }
    if let Some(failure) = others.into_iter().find_map(|result| result.as_ref().err()) {
        return Err(failure.clone());
    }
    let destinations: Vec<&str> = plan.destinations.iter().map(|d| d.text.as_str()).collect();
    let pods = count(senders.len(), "pod is", "pods are");
    let limitation = match degraded {
        Ok(failure) => format!(", but not as spec requests ({CONDITION_DEGRADED}): {}", failure.message),
        Err(_) => String::new(),
    };
    Ok(Failure::new(Reason::AsExpected, format!("{pods} mirrored to {}{limitation}", destinations.join(", "))))
}

/// Why the tap is not carried out at all.
fn inactive(plan: &TapPlan<'_>) -> Option<Failure> {
    match &plan.state {
        TapState::Active => None,
        TapState::Suspended(SuspendedBy::Policy) => Some(Failure::new(
            Reason::Suspended,
            "the PodTapPolicy default suspends all taps (spec.suspendAll is true): mirroring resumes when an administrator sets it to false",
        )),
        TapState::Suspended(SuspendedBy::Tap) => {
            Some(Failure::new(Reason::Suspended, "spec.suspend is true: set it to false to resume mirroring"))
        }
        TapState::Expired => Some(Failure::new(
            Reason::Expired,
            "spec.duration is over, and nothing is mirrored any more: delete the object, or increase the duration to resume mirroring",
        )),
        TapState::Refused(failure) => Some(failure.clone()),
    }
}
