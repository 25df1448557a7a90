//! The conditions of a tap. Pure.
//!
//! # Guarantees
//! - All six conditions are present from the first reconcile, each with a reason, a message and the generation it is about. `Ready` is
//!   True exactly if the next three are, and `Delivering` is not False. `Delivering` is Unknown with external destinations. `Degraded` is
//!   True if frames are mirrored, and programs of others may hide some.
//! - A failure has its full message in the condition that owns it, and in `Ready`, which is what `kubectl get` shows. The others refer
//!   to it.
//! - Pods that come and go do not make an established tap not Ready, see [`waits`](crate::status::waits).

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use podtap_api::{
    CONDITION_DEGRADED, CONDITION_DELIVERING, CONDITION_DESTINATIONS_READY, CONDITION_READY, CONDITION_TAPPED,
    CONDITION_TARGETS_RESOLVED,
};
use podtap_model::Reason;

use crate::{
    apply::objects::Applied,
    failure::{Failure, count},
    plan::{
        tap_plan::{PlannedDestination, TapPlan},
        targets::Target,
    },
    status::{
        degraded::hidden_frames,
        progress::{Progress, Reports},
    },
    store::pod::CachedPod,
    validate::{
        spec::Selection,
        state::{SuspendedBy, TapState},
    },
};

/// Our conditions; others in the list belong to other controllers.
pub const OWN_TYPES: [&str; 6] = [
    CONDITION_READY,
    CONDITION_TARGETS_RESOLVED,
    CONDITION_DESTINATIONS_READY,
    CONDITION_TAPPED,
    CONDITION_DELIVERING,
    CONDITION_DEGRADED,
];

/// Reason and message of a condition that is True (`Ok`) or False (`Err`).
pub type ConditionResult = Result<Failure, Failure>;

/// A pod to tap, and whether it is.
#[derive(Clone, Debug)]
pub struct Sender<'a> {
    pub pod: &'a CachedPod,
    pub progress: Progress,
    /// Why the tap is not [`Tapped`](CONDITION_TAPPED), if this pod is a cause of that.
    pub failure: Option<Failure>,
}

impl Sender<'_> {
    pub fn is_tapped(&self) -> bool {
        self.progress == Progress::Active
    }

    /// Not tapped yet, without being a failure.
    pub fn is_pending(&self) -> bool {
        !self.is_tapped() && self.failure.as_ref().is_none_or(|failure| failure.reason == Reason::Pending)
    }
}

/// What the conditions are derived from, beside the plan.
pub struct Observations<'a> {
    pub senders: &'a [Sender<'a>],
    /// By destination.
    pub receivers: &'a [Progress],
    pub applied: &'a Applied,
    pub reports: &'a Reports<'a>,
    /// Whether the tap has been Ready for this generation of its spec.
    pub is_established: bool,
    /// Whether the targets as a whole have been incomplete for too long.
    pub is_late_for_targets: bool,
    /// What is wrong with the delivery.
    pub undelivered: Option<Failure>,
    /// Whether the first probes of some pod have not arrived yet.
    pub awaits_probes: bool,
    pub now: Timestamp,
}

/// The conditions of the tap, in the order of [`OWN_TYPES`].
pub fn conditions(plan: &TapPlan<'_>, observations: &Observations<'_>) -> Vec<Condition> {
    let targets_resolved = targets_resolved(plan, observations);
    let destinations_ready = destinations_ready(plan, observations.receivers);
    let tapped = tapped(plan, observations, &targets_resolved, &destinations_ready);
    let delivering = delivering(plan, observations, &destinations_ready, &tapped);
    let hidden = hidden(plan, observations);
    let others = [&targets_resolved, &destinations_ready, &tapped, &delivering];
    let ready = ready(plan, observations, others, hidden.is_some());
    let degraded = degraded(plan, observations, hidden, &ready);
    let results = [ready, targets_resolved, destinations_ready, tapped, delivering, degraded];
    let previous = &plan.tap.status.conditions;
    let condition = |(kind, result)| condition(kind, result, plan.tap.generation, previous, observations.now);
    OWN_TYPES.into_iter().zip(results).map(condition).collect()
}

/// A condition. With the reason `ExternalDestination` it is Unknown, and no failure. Its transition time changes only with its status.
pub fn condition(
    kind: &str,
    result: ConditionResult,
    generation: i64,
    previous: &[Condition],
    now: Timestamp,
) -> Condition {
    let (status, Failure { reason, message }) = match result {
        Ok(unknown) if unknown.reason == Reason::ExternalDestination => ("Unknown", unknown),
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

fn see(kind: &str) -> String {
    format!("see {kind}")
}

/// A failure that another condition owns.
fn refer(failure: &Failure, owner: &str) -> Failure {
    Failure::new(failure.reason, see(owner))
}

/// What is wrong with the targets.
pub fn targets_failure(plan: &TapPlan<'_>) -> Option<Failure> {
    if let Some(failure) = &plan.targets.failure {
        return Some(failure.clone());
    }
    let mut untappable = plan.targets.pods.iter().filter(|target| target.failure.is_some());
    let Some(Target { pod, failure: Some(failure) }) = untappable.next() else { return None };
    let rest = untappable.count();
    let others = if rest == 0 {
        String::new()
    } else {
        format!("; and {}, see status.failures", count(rest, "other pod", "other pods"))
    };
    Some(Failure::new(failure.reason, format!("pod {}: {}{others}", plan.tap.shown(pod), failure.message)))
}

/// Whether pods that come and go can be the cause.
pub fn comes_and_goes(failure: &Failure) -> bool {
    matches!(
        failure.reason,
        Reason::NoPodsMatch
            | Reason::AllPodsSkipped
            | Reason::PodNotFound
            | Reason::PodFinished
            | Reason::NodeNotFound
            | Reason::TooManyPods
    )
}

fn targets_resolved(plan: &TapPlan<'_>, observations: &Observations<'_>) -> ConditionResult {
    let spec = plan.tap.spec.as_ref().map_err(|failure| refer(failure, CONDITION_READY))?;
    if let Some(failure) = inactive(plan).filter(|_| plan.tap.state != TapState::Active) {
        // Nothing was resolved.
        return Err(refer(&failure, CONDITION_READY));
    }
    let Some(failure) = targets_failure(plan) else {
        return Ok(Failure::new(Reason::Resolved, format!("{} to tap", count(plan.targets.matched, "pod", "pods"))));
    };
    // A selector may match nothing for a while, for example between two runs of a CronJob; a name is expected to exist.
    let is_patient = matches!(spec.selection, Selection::Labels(_)) && plan.targets.matched == 0;
    let is_excused = comes_and_goes(&failure) && (is_patient || !observations.is_late_for_targets);
    if observations.is_established && is_excused { Ok(failure) } else { Err(failure) }
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
        return Err(refer(&failure, CONDITION_READY));
    }
    let pending = receivers.iter().enumerate().find_map(|(index, receiver)| match receiver {
        Progress::Pending(message) | Progress::Updating(message) => Some(named(index, message)),
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
    observations: &Observations<'_>,
    targets_resolved: &ConditionResult,
    destinations_ready: &ConditionResult,
) -> ConditionResult {
    let Observations { senders, applied, .. } = observations;
    if let Some(failure) = inactive(plan) {
        return Err(refer(&failure, CONDITION_READY));
    }
    if senders.is_empty() {
        return match targets_resolved {
            Err(failure) => Err(refer(failure, CONDITION_TARGETS_RESOLVED)),
            Ok(_) if observations.is_established => Ok(Failure::new(Reason::AsExpected, "there is no pod to tap now")),
            Ok(_) => Err(Failure::new(Reason::Pending, "the pods that match are being deleted")),
        };
    }
    if let (false, Err(failure)) = (plan.is_executed(), destinations_ready) {
        return Err(Failure::new(
            failure.reason,
            format!("nothing is mirrored until a destination is available: {}", see(CONDITION_DESTINATIONS_READY)),
        ));
    }
    let progress = progress(senders);
    let failures = || senders.iter().filter_map(|sender| Some((sender.pod, sender.failure.as_ref()?)));
    let failed = failures().find(|(_, failure)| failure.reason != Reason::Pending).or_else(|| failures().next());
    if let Some((pod, failure)) = failed {
        return Err(Failure::new(
            failure.reason,
            format!("{progress}; pod {}: {}", plan.tap.shown(pod), failure.message),
        ));
    }
    if let Some(failure) = plan.tap.spec.as_ref().ok().and_then(|spec| spec.options.rejected_expression.as_ref()) {
        let message = format!("{progress}, with the previous expression: {}", failure.message);
        return Err(Failure::new(failure.reason, message));
    }
    // Mirrors keep working without the helper pod, but changes are not applied.
    let unattended = senders.iter().find_map(|sender| applied.helper_failures.get(sender.pod.node.as_ref()?));
    if let Some(failure) = unattended {
        let message = format!("{progress}, but changes are not applied: {}", failure.message);
        return Err(Failure::new(failure.reason, message));
    }
    Ok(Failure::new(Reason::AsExpected, progress))
}

fn delivering(
    plan: &TapPlan<'_>,
    observations: &Observations<'_>,
    destinations_ready: &ConditionResult,
    tapped: &ConditionResult,
) -> ConditionResult {
    let Observations { senders, applied, .. } = observations;
    if let Some(failure) = inactive(plan) {
        return Err(refer(&failure, CONDITION_READY));
    }
    if let Err(failure) = destinations_ready {
        let reason = if failure.reason == Reason::Pending { Reason::Pending } else { Reason::ReceiverDown };
        return Err(Failure::new(reason, see(CONDITION_DESTINATIONS_READY)));
    }
    let nodes = plan.destinations.iter().filter_map(|destination| destination.resolved.as_ref()?.node());
    if let Some(failure) = nodes.into_iter().find_map(|node| applied.helper_failures.get(node)) {
        return Err(Failure::new(failure.reason, format!("unknown what arrives: {}", failure.message)));
    }
    if let Some(failure) = &observations.undelivered {
        return Err(failure.clone());
    }
    if !senders.iter().any(Sender::is_tapped) {
        return match tapped {
            Err(failure) => Err(refer(failure, CONDITION_TAPPED)),
            Ok(_) => Ok(Failure::new(Reason::AsExpected, "there is no pod to tap now")),
        };
    }
    if observations.awaits_probes && !observations.is_established {
        return Err(Failure::new(Reason::Pending, "the first probes have not arrived yet"));
    }
    if !plan.sends_probes() {
        let message = "no probes are sent, since a destination is external and does not set probe: true";
        return Ok(Failure::new(Reason::ExternalDestination, message));
    }
    if plan.destinations.iter().any(is_external) {
        let message = "probes arrive at the receivers in the cluster; external destinations do not report what arrives";
        return Ok(Failure::new(Reason::ExternalDestination, message));
    }
    Ok(Failure::new(Reason::AsExpected, "probes of the tapped pods arrive at every destination"))
}

fn progress(senders: &[Sender<'_>]) -> String {
    let tapped = senders.iter().filter(|sender| sender.is_tapped()).count();
    let pending = senders.iter().filter(|sender| sender.is_pending()).count();
    let progress = format!("{tapped} of {} tapped", count(senders.len(), "pod", "pods"));
    if pending == 0 { progress } else { format!("{progress}, {pending} pending") }
}

/// Which programs may hide frames of the tapped pods.
fn hidden(plan: &TapPlan<'_>, observations: &Observations<'_>) -> Option<Failure> {
    let tapped = observations.senders.iter().filter(|sender| sender.is_tapped()).map(|sender| sender.pod);
    hidden_frames(plan, tapped, observations.reports)
}

/// True if something may be missing, unlike the other conditions. Also beside a Ready that is False: other pods may be tapped.
fn degraded(
    plan: &TapPlan<'_>,
    observations: &Observations<'_>,
    hidden: Option<Failure>,
    ready: &ConditionResult,
) -> ConditionResult {
    if let Some(failure) = inactive(plan) {
        return Err(refer(&failure, CONDITION_READY));
    }
    match (hidden, ready) {
        (Some(failure), _) => Ok(failure),
        (None, Err(failure)) => Err(refer(failure, CONDITION_READY)),
        (None, Ok(_)) if !observations.senders.iter().any(Sender::is_tapped) => {
            Err(Failure::new(Reason::Pending, "unknown until a pod is tapped"))
        }
        (None, Ok(_)) => Err(Failure::new(Reason::AsExpected, "no other program is known to hide frames")),
    }
}

fn ready(
    plan: &TapPlan<'_>,
    observations: &Observations<'_>,
    others: [&ConditionResult; 4],
    is_degraded: bool,
) -> ConditionResult {
    if let Some(failure) = inactive(plan) {
        return Err(failure);
    }
    if let Some(failure) = others.into_iter().find_map(|result| result.as_ref().err()) {
        return Err(failure.clone());
    }
    if let (true, Ok(nothing)) = (plan.targets.matched == 0, others[0]) {
        return Ok(nothing.clone());
    }
    let destinations: Vec<&str> = plan.destinations.iter().map(|d| d.text.as_str()).collect();
    let tapped = observations.senders.iter().filter(|sender| sender.is_tapped()).count();
    let pods = count(tapped, "pod is", "pods are");
    let hidden = if is_degraded { ", but other programs may hide frames: see Degraded" } else { "" };
    let unknown = unknown_delivery(plan);
    Ok(Failure::new(Reason::AsExpected, format!("{pods} mirrored to {}{hidden}{unknown}", destinations.join(", "))))
}

fn is_external(destination: &PlannedDestination) -> bool {
    destination.resolved.as_ref().is_some_and(|resolved| resolved.node().is_none())
}

/// What is not known about external destinations, which do not report anything.
fn unknown_delivery(plan: &TapPlan<'_>) -> String {
    let external: Vec<&str> = plan.destinations.iter().filter(|d| is_external(d)).map(|d| d.text.as_str()).collect();
    match external[..] {
        [] => String::new(),
        [one] => format!("; whether {one} receives the frames is unknown"),
        _ => format!("; whether {} receive the frames is unknown", external.join(" and ")),
    }
}

/// Why the tap is not carried out at all.
fn inactive(plan: &TapPlan<'_>) -> Option<Failure> {
    match &plan.state {
        TapState::Active => None,
        TapState::Suspended(SuspendedBy::Policy) => Some(Failure::new(
            Reason::Suspended,
            "the PodTapPolicy default suspends all taps (spec.suspendAll is true): mirroring resumes when an administrator sets it to false",
        )),
        TapState::Suspended(SuspendedBy::UnreadablePolicy(error)) => Some(Failure::new(
            Reason::Suspended,
            format!(
                "the PodTapPolicy default cannot be decoded ({error}), and no tap runs, since it may forbid any: mirroring resumes when an administrator has corrected it"
            ),
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
