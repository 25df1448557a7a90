//! Part of stage 6: what a tap's status is to say. Pure.
//!
//! # Guarantees
//! All five conditions are there from the first visit, each with a reason, a sentence and the generation it is about.
//! `Ready` is True exactly if the next three are. `Degraded` is True where what is in place is less than what was asked for.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use podtap_api::{
    CONDITION_DEGRADED, CONDITION_DESTINATIONS_READY, CONDITION_READY, CONDITION_TAPPED, CONDITION_TARGETS_RESOLVED,
    DestinationStatus, ItemState, PodTapStatus, TapFailure,
};

use crate::{apply::objects::Applied, failure::{count, Failure}, plan::{build::{self, Destination, TapPlan, TapState}, destinations::not_ready, targets::Target}, reason, state::Generations, store::{objects::{CachedNodeTap, CachedPod}, snapshot::Snapshot}};

/// How many failures a status lists.
pub const MAX_FAILURES: usize = 16;

/// Conditions that are ours; others in the list belong to somebody else.
pub const OURS: [&str; 5] =
    [CONDITION_READY, CONDITION_TARGETS_RESOLVED, CONDITION_DESTINATIONS_READY, CONDITION_TAPPED, CONDITION_DEGRADED];

/// A condition's reason and message, and whether it holds.
type Verdict = Result<Failure, Failure>;

/// What is known after the plan was carried out.
#[derive(Clone, Copy)]
pub struct StatusInputs<'a> {
    pub snapshot: &'a Snapshot,
    pub applied: &'a Applied,
    pub generations: &'a Generations,
}

/// How one sender or receiver is.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Active,
    Waiting(String),
    Failed(Failure),
}

/// The status that a tap is to have.
pub fn status(tap: &TapPlan<'_>, inputs: StatusInputs<'_>) -> PodTapStatus {
    let previous = &tap.tap.status;
    let items = senders(tap, inputs);
    let receivers: Vec<Item> =
        tap.destinations.iter().map(|destination| receiver(tap, destination, inputs)).collect();
    let targets_resolved = targets_resolved(tap);
    let destinations_ready = destinations_ready(tap, &receivers);
    let tapped = tapped(tap, &items, inputs, &targets_resolved, &destinations_ready);
    let degraded = degraded(tap, &items, inputs);
    let ready = ready(tap, [&targets_resolved, &destinations_ready, &tapped], &items, &degraded);

    let now = whole_seconds(inputs.snapshot.now);
    let tapped_pods = items.iter().filter(|(_, item)| *item == Item::Active).count();
    let start_time = previous.start_time.clone().or_else(|| (tapped_pods > 0).then_some(Time(now)));
    let duration = tap.tap.spec.as_ref().ok().and_then(|spec| spec.duration_seconds);
    let expires_at = start_time.as_ref().zip(duration).map(|(start, duration)| Time(build::end(start.0, duration)));
    let verdicts = [ready, targets_resolved, destinations_ready, tapped, degraded];
    let conditions = OURS.into_iter().zip(verdicts);
    PodTapStatus {
        observed_generation: Some(tap.tap.generation),
        vni: tap.vni.filter(|_| tap.standing != TapState::Expired),
        destination: tap.destinations.iter().map(|d| d.text.as_str()).collect::<Vec<_>>().join(","),
        destinations: tap
            .destinations
            .iter()
            .zip(&receivers)
            .map(|(d, item)| destination_status(d, item))
            .collect(),
        matched_pods: number(tap.targets.matched),
        tapped_pods: number(tapped_pods),
        failures: failures(tap, &items),
        start_time,
        expires_at,
        conditions: conditions
            .map(|(kind, verdict)| condition(kind, verdict, tap.tap.generation, &previous.conditions, now))
            .collect(),
    }
}

/// A condition whose time of transition is that of its last change.
pub fn condition(kind: &str, verdict: Verdict, generation: i64, previous: &[Condition], now: Timestamp) -> Condition {
    let (status, Failure { reason, message }) = match verdict {
        Ok(good) => ("True", good),
        Err(failure) => ("False", failure),
    };
    let before = previous.iter().find(|condition| condition.type_ == kind && condition.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        observed_generation: Some(generation),
        last_transition_time: before.map_or(Time(now), |condition| condition.last_transition_time.clone()),
    }
}

/// What the API server keeps of a time in a condition.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Each target that is to be tapped, and how its sender is.
fn senders<'a>(tap: &'a TapPlan<'_>, inputs: StatusInputs<'_>) -> Vec<(&'a CachedPod, Item)> {
    let tap = &tap.tap.reference.uid;
    let item = |pod: &CachedPod| {
        let node = pod.node.as_deref().unwrap_or_default();
        let reported = on_node(node, tap, inputs, |node_tap| {
            let sender = node_tap.status.senders.iter().find(|s| s.tap_uid == *tap && s.pod_uid == pod.uid);
            sender.map(|s| (s.state, s.reason.as_str(), s.message.as_str()))
        });
        if tap.is_executed() { reported } else { Item::Waiting(String::new()) }
    };
    tap.targets.tapped().map(|pod| (pod.as_ref(), item(pod))).collect()
}

fn receiver(tap: &TapPlan<'_>, destination: &Destination, inputs: StatusInputs<'_>) -> Item {
    if let Some(failure) = &destination.failure {
        return Item::Failed(failure.clone());
    }
    if !tap.is_executed() || destination.address.is_none() {
        return Item::Waiting(String::new());
    }
    if destination.node.is_empty() {
        return Item::Active;
    }
    let tap = &tap.tap.reference.uid;
    on_node(&destination.node, tap, inputs, |node_tap| {
        let receiver = node_tap.status.receivers.iter().find(|r| r.tap_uid == *tap && Some(r.vni) == destination.vni);
        receiver.map(|r| (r.state, r.reason.as_str(), r.message.as_str()))
    })
}

/// What a node says of one thing that it is to hold.
fn on_node<'a>(
    name: &str,
    tap: &str,
    inputs: StatusInputs<'a>,
    find: impl Fn(&'a CachedNodeTap) -> Option<(ItemState, &'a str, &'a str)>,
) -> Item {
    if let Some(node) = inputs.snapshot.nodes.get(name).filter(|node| !node.ready) {
        return Item::Failed(not_ready(node));
    }
    let trouble = |message: String| match inputs.applied.helper_failures.get(name) {
        Some(failure) => Item::Failed(failure.clone()),
        None => Item::Waiting(message),
    };
    let Some(node_tap) = inputs.applied.node_taps.get(name) else {
        return trouble(format!("the NodeTap of the node {name} is being written"));
    };
    let reported = find(node_tap).filter(|_| node_tap.has_observed(inputs.generations.needed(node_tap, tap)));
    match reported {
        Some((ItemState::Active, _, _)) => Item::Active,
        Some((ItemState::Refused | ItemState::Failed, reason, message)) => Item::Failed(Failure::new(reason, message)),
        Some((ItemState::Waiting | ItemState::Removing, reason, message)) => {
            let words = if message.is_empty() { reason } else { message };
            trouble(format!("on the node {name}: {words}"))
        }
        None => trouble(format!("for the helper pod of the node {name}")),
    }
}

fn targets_resolved(tap: &TapPlan<'_>) -> Verdict {
    if let Err(failure) = &tap.tap.spec {
        return Err(failure.clone());
    }
    if let Some(failure) = &tap.targets.failure {
        return Err(failure.clone());
    }
    let mut unfit = tap.targets.pods.iter().filter(|target| target.failure.is_some());
    if let Some(Target { pod, failure: Some(failure) }) = unfit.next() {
        let rest = unfit.count();
        let others = if rest == 0 {
            String::new()
        } else {
            format!("; and {}, see status.failures", count(rest, "other pod", "other pods"))
        };
        return Err(Failure::new(&failure.reason, format!("pod {}: {}{others}", pod.name, failure.message)));
    }
    Ok(Failure::new(reason::RESOLVED, format!("{} to tap", count(tap.targets.pods.len(), "pod", "pods"))))
}

fn destinations_ready(tap: &TapPlan<'_>, receivers: &[Item]) -> Verdict {
    let named = |number: usize, message: &str| match receivers.len() {
        1 => message.to_owned(),
        _ => format!("destination {}: {message}", number + 1),
    };
    let failed = receivers.iter().enumerate().find_map(|(number, item)| match item {
        Item::Failed(failure) => Some(Failure::new(&failure.reason, named(number, &failure.message))),
        _ => None,
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    if let Some(failure) = inactive_failure(tap) {
        return Err(failure);
    }
    let waiting = receivers.iter().enumerate().find_map(|(number, item)| match item {
        Item::Waiting(message) => Some(format!("waiting {}", named(number, message))),
        _ => None,
    });
    match waiting {
        Some(message) => Err(Failure::new(reason::WAITING, message)),
        None => Ok(Failure::new(
            reason::AVAILABLE,
            count(receivers.len(), "destination is ready", "destinations are ready"),
        )),
    }
}

fn tapped(
    tap: &TapPlan<'_>,
    items: &[(&CachedPod, Item)],
    inputs: StatusInputs<'_>,
    targets_resolved: &Verdict,
    destinations_ready: &Verdict,
) -> Verdict {
    if let Some(failure) = inactive_failure(tap) {
        return Err(failure);
    }
    if items.is_empty() {
        let why = targets_resolved.as_ref().err();
        return Err(why.cloned().unwrap_or_else(|| Failure::new(reason::NO_PODS_MATCH, "there is no pod to tap")));
    }
    if let (false, Err(failure)) = (tap.is_executed(), destinations_ready) {
        return Err(Failure::new(
            &failure.reason,
            format!("nothing is copied until a destination is there: {}", failure.message),
        ));
    }
    let active = items.iter().filter(|(_, item)| *item == Item::Active).count();
    let progress = format!("{active} of {} tapped", count(items.len(), "pod", "pods"));
    let failed = items.iter().find_map(|(pod, item)| match item {
        Item::Failed(failure) => Some((pod, failure)),
        _ => None,
    });
    if let Some((pod, failure)) = failed {
        return Err(Failure::new(&failure.reason, format!("{progress}; pod {}: {}", pod.name, failure.message)));
    }
    let waiting = items.iter().find_map(|(pod, item)| match item {
        Item::Waiting(message) => Some(format!("{progress}; pod {} waits {message}", pod.name)),
        _ => None,
    });
    if let Some(message) = waiting {
        return Err(Failure::new(reason::WAITING, message));
    }
    if let Some(flaw) = tap.tap.spec.as_ref().ok().and_then(|spec| spec.options.flaw()) {
        return Err(Failure::new(&flaw.reason, format!("{progress}, with the expression before: {}", flaw.message)));
    }
    // What stands goes on without its helper; what changes from now on does not arrive.
    let unattended = items.iter().find_map(|(pod, _)| inputs.applied.helper_failures.get(pod.node.as_ref()?));
    if let Some(failure) = unattended {
        return Err(Failure::new(
            &failure.reason,
            format!("{progress}, but changes are not followed: {}", failure.message),
        ));
    }
    Ok(Failure::new(reason::ESTABLISHED, progress))
}

/// Holds where something is missing: the other way round than the others.
fn degraded(tap: &TapPlan<'_>, items: &[(&CachedPod, Item)], inputs: StatusInputs<'_>) -> Verdict {
    if let Some(failure) = inactive_failure(tap) {
        return Err(failure);
    }
    let active = || items.iter().filter(|(_, item)| *item == Item::Active).map(|(pod, _)| *pod);
    match super::degraded::shortfall(tap, active(), inputs.applied) {
        Some(failure) => Ok(failure),
        None if active().next().is_none() => {
            Err(Failure::new(reason::WAITING, "nothing is known before the first pod is tapped"))
        }
        None => Err(Failure::new(reason::NOTHING_MISSING, "what is in place is as spec says")),
    }
}

fn ready(tap: &TapPlan<'_>, others: [&Verdict; 3], items: &[(&CachedPod, Item)], degraded: &Verdict) -> Verdict {
    if let Some(failure) = inactive_failure(tap) {
        return Err(failure);
    }
    if let Some(failure) = others.into_iter().find_map(|verdict| verdict.as_ref().err()) {
        return Err(failure.clone());
    }
    let to: Vec<&str> = tap.destinations.iter().map(|d| d.text.as_str()).collect();
    let pods = count(items.len(), "pod is", "pods are");
    let but = match degraded {
        Ok(failure) => format!(", but not as spec says ({CONDITION_DEGRADED}): {}", failure.message),
        Err(_) => String::new(),
    };
    Ok(Failure::new(reason::ESTABLISHED, format!("{pods} copied to {}{but}", to.join(", "))))
}

/// Why nothing of the tap is carried out.
fn inactive_failure(tap: &TapPlan<'_>) -> Option<Failure> {
    match &tap.standing {
        TapState::Active => None,
        TapState::Suspended => Some(Failure::new(reason::SUSPENDED, "spec.suspend is true: set it to false to go on")),
        TapState::Expired => Some(Failure::new(
            reason::EXPIRED,
            "spec.durationSeconds are over, and nothing is copied any more: delete the object, or raise the number to go on",
        )),
        TapState::Refused(failure) => Some(failure.clone()),
    }
}

fn failures(tap: &TapPlan<'_>, items: &[(&CachedPod, Item)]) -> Vec<TapFailure> {
    let failure = |pod: &CachedPod, failure: &Failure| TapFailure {
        pod: pod.name.clone(),
        node: pod.node.clone().unwrap_or_default(),
        reason: failure.reason.clone(),
        message: failure.message.clone(),
    };
    if tap.standing != TapState::Active {
        return Vec::new();
    }
    let unfit = tap.targets.pods.iter().filter_map(|target| Some(failure(&target.pod, target.failure.as_ref()?)));
    let failed = items.iter().filter_map(|(pod, item)| match item {
        Item::Failed(failure) => Some(failure(pod, failure)),
        Item::Active | Item::Waiting(_) => None,
    });
    unfit.chain(failed).take(MAX_FAILURES).collect()
}

fn destination_status(destination: &Destination, item: &Item) -> DestinationStatus {
    DestinationStatus {
        node: destination.node.clone(),
        pod: destination.pod.as_ref().map(|pod| pod.name.clone()).unwrap_or_default(),
        interface_name: destination.interface.clone(),
        address: destination.address.map(|address| address.to_string()).unwrap_or_default(),
        vni: destination.vni,
        ready: *item == Item::Active,
    }
}

#[cfg(test)]
mod tests;
