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

use super::{
    apply::Applied,
    build::{self, Destination, Outcome, Standing},
    destinations::not_ready,
    facts::{NodeTapFact, PodFact},
    gather::Snapshot,
    memory::Written,
    problem::{Problem, count},
    reason,
    targets::Target,
};

/// How many failures a status lists.
pub const MAX_FAILURES: usize = 16;

/// Conditions that are ours; others in the list belong to somebody else.
pub const OURS: [&str; 5] =
    [CONDITION_READY, CONDITION_TARGETS_RESOLVED, CONDITION_DESTINATIONS_READY, CONDITION_TAPPED, CONDITION_DEGRADED];

/// A condition's reason and message, and whether it holds.
type Verdict = Result<Problem, Problem>;

/// What is known after the plan was carried out.
#[derive(Clone, Copy)]
pub struct Knowledge<'a> {
    pub snapshot: &'a Snapshot,
    pub applied: &'a Applied,
    pub written: &'a Written,
}

/// How one sender or receiver is.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Active,
    Waiting(String),
    Failed(Problem),
}

/// The status that a tap is to have.
pub fn status(outcome: &Outcome<'_>, knowledge: Knowledge<'_>) -> PodTapStatus {
    let previous = &outcome.tap.status;
    let items = senders(outcome, knowledge);
    let receivers: Vec<Item> =
        outcome.destinations.iter().map(|destination| receiver(outcome, destination, knowledge)).collect();
    let targets_resolved = targets_resolved(outcome);
    let destinations_ready = destinations_ready(outcome, &receivers);
    let tapped = tapped(outcome, &items, knowledge, &targets_resolved, &destinations_ready);
    let degraded = degraded(outcome, &items, knowledge);
    let ready = ready(outcome, [&targets_resolved, &destinations_ready, &tapped], &items, &degraded);

    let now = whole_seconds(knowledge.snapshot.now);
    let tapped_pods = items.iter().filter(|(_, item)| *item == Item::Active).count();
    let start_time = previous.start_time.clone().or_else(|| (tapped_pods > 0).then_some(Time(now)));
    let duration = outcome.tap.spec.as_ref().ok().and_then(|spec| spec.duration_seconds);
    let expires_at = start_time.as_ref().zip(duration).map(|(start, duration)| Time(build::end(start.0, duration)));
    let verdicts = [ready, targets_resolved, destinations_ready, tapped, degraded];
    let conditions = OURS.into_iter().zip(verdicts);
    PodTapStatus {
        observed_generation: Some(outcome.tap.generation),
        vni: outcome.vni.filter(|_| outcome.standing != Standing::Expired),
        destination: outcome.destinations.iter().map(|d| d.text.as_str()).collect::<Vec<_>>().join(","),
        destinations: outcome
            .destinations
            .iter()
            .zip(&receivers)
            .map(|(d, item)| destination_status(d, item))
            .collect(),
        matched_pods: number(outcome.targets.matched),
        tapped_pods: number(tapped_pods),
        failures: failures(outcome, &items),
        start_time,
        expires_at,
        conditions: conditions
            .map(|(kind, verdict)| condition(kind, verdict, outcome.tap.generation, &previous.conditions, now))
            .collect(),
    }
}

/// A condition whose time of transition is that of its last change.
pub fn condition(kind: &str, verdict: Verdict, generation: i64, previous: &[Condition], now: Timestamp) -> Condition {
    let (status, Problem { reason, message }) = match verdict {
        Ok(good) => ("True", good),
        Err(problem) => ("False", problem),
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
fn senders<'a>(outcome: &'a Outcome<'_>, knowledge: Knowledge<'_>) -> Vec<(&'a PodFact, Item)> {
    let tap = &outcome.tap.reference.uid;
    let item = |pod: &PodFact| {
        let node = pod.node.as_deref().unwrap_or_default();
        let reported = on_node(node, tap, knowledge, |node_tap| {
            let sender = node_tap.status.senders.iter().find(|s| s.tap_uid == *tap && s.pod_uid == pod.uid);
            sender.map(|s| (s.state, s.reason.as_str(), s.message.as_str()))
        });
        if outcome.is_executed() { reported } else { Item::Waiting(String::new()) }
    };
    outcome.targets.tapped().map(|pod| (pod.as_ref(), item(pod))).collect()
}

fn receiver(outcome: &Outcome<'_>, destination: &Destination, knowledge: Knowledge<'_>) -> Item {
    if let Some(problem) = &destination.problem {
        return Item::Failed(problem.clone());
    }
    if !outcome.is_executed() || destination.address.is_none() {
        return Item::Waiting(String::new());
    }
    if destination.node.is_empty() {
        return Item::Active;
    }
    let tap = &outcome.tap.reference.uid;
    on_node(&destination.node, tap, knowledge, |node_tap| {
        let receiver = node_tap.status.receivers.iter().find(|r| r.tap_uid == *tap && Some(r.vni) == destination.vni);
        receiver.map(|r| (r.state, r.reason.as_str(), r.message.as_str()))
    })
}

/// What a node says of one thing that it is to hold.
fn on_node<'a>(
    name: &str,
    tap: &str,
    knowledge: Knowledge<'a>,
    find: impl Fn(&'a NodeTapFact) -> Option<(ItemState, &'a str, &'a str)>,
) -> Item {
    if let Some(node) = knowledge.snapshot.nodes.get(name).filter(|node| !node.ready) {
        return Item::Failed(not_ready(node));
    }
    let trouble = |message: String| match knowledge.applied.helper_problems.get(name) {
        Some(problem) => Item::Failed(problem.clone()),
        None => Item::Waiting(message),
    };
    let Some(node_tap) = knowledge.applied.node_taps.get(name) else {
        return trouble(format!("the NodeTap of the node {name} is being written"));
    };
    let reported = find(node_tap).filter(|_| node_tap.has_observed(knowledge.written.needed(node_tap, tap)));
    match reported {
        Some((ItemState::Active, _, _)) => Item::Active,
        Some((ItemState::Refused | ItemState::Failed, reason, message)) => Item::Failed(Problem::new(reason, message)),
        Some((ItemState::Waiting | ItemState::Removing, reason, message)) => {
            let words = if message.is_empty() { reason } else { message };
            trouble(format!("on the node {name}: {words}"))
        }
        None => trouble(format!("for the helper pod of the node {name}")),
    }
}

fn targets_resolved(outcome: &Outcome<'_>) -> Verdict {
    if let Err(problem) = &outcome.tap.spec {
        return Err(problem.clone());
    }
    if let Some(problem) = &outcome.targets.problem {
        return Err(problem.clone());
    }
    let mut unfit = outcome.targets.pods.iter().filter(|target| target.problem.is_some());
    if let Some(Target { pod, problem: Some(problem) }) = unfit.next() {
        let rest = unfit.count();
        let others = if rest == 0 {
            String::new()
        } else {
            format!("; and {}, see status.failures", count(rest, "other pod", "other pods"))
        };
        return Err(Problem::new(&problem.reason, format!("pod {}: {}{others}", pod.name, problem.message)));
    }
    Ok(Problem::new(reason::RESOLVED, format!("{} to tap", count(outcome.targets.pods.len(), "pod", "pods"))))
}

fn destinations_ready(outcome: &Outcome<'_>, receivers: &[Item]) -> Verdict {
    let named = |number: usize, message: &str| match receivers.len() {
        1 => message.to_owned(),
        _ => format!("destination {}: {message}", number + 1),
    };
    let failed = receivers.iter().enumerate().find_map(|(number, item)| match item {
        Item::Failed(problem) => Some(Problem::new(&problem.reason, named(number, &problem.message))),
        _ => None,
    });
    if let Some(problem) = failed {
        return Err(problem);
    }
    if let Some(problem) = standing_problem(outcome) {
        return Err(problem);
    }
    let waiting = receivers.iter().enumerate().find_map(|(number, item)| match item {
        Item::Waiting(message) => Some(format!("waiting {}", named(number, message))),
        _ => None,
    });
    match waiting {
        Some(message) => Err(Problem::new(reason::WAITING, message)),
        None => Ok(Problem::new(
            reason::AVAILABLE,
            count(receivers.len(), "destination is ready", "destinations are ready"),
        )),
    }
}

fn tapped(
    outcome: &Outcome<'_>,
    items: &[(&PodFact, Item)],
    knowledge: Knowledge<'_>,
    targets_resolved: &Verdict,
    destinations_ready: &Verdict,
) -> Verdict {
    if let Some(problem) = standing_problem(outcome) {
        return Err(problem);
    }
    if items.is_empty() {
        let why = targets_resolved.as_ref().err();
        return Err(why.cloned().unwrap_or_else(|| Problem::new(reason::NO_PODS_MATCH, "there is no pod to tap")));
    }
    if let (false, Err(problem)) = (outcome.is_executed(), destinations_ready) {
        return Err(Problem::new(
            &problem.reason,
            format!("nothing is copied until a destination is there: {}", problem.message),
        ));
    }
    let active = items.iter().filter(|(_, item)| *item == Item::Active).count();
    let progress = format!("{active} of {} tapped", count(items.len(), "pod", "pods"));
    let failed = items.iter().find_map(|(pod, item)| match item {
        Item::Failed(problem) => Some((pod, problem)),
        _ => None,
    });
    if let Some((pod, problem)) = failed {
        return Err(Problem::new(&problem.reason, format!("{progress}; pod {}: {}", pod.name, problem.message)));
    }
    let waiting = items.iter().find_map(|(pod, item)| match item {
        Item::Waiting(message) => Some(format!("{progress}; pod {} waits {message}", pod.name)),
        _ => None,
    });
    if let Some(message) = waiting {
        return Err(Problem::new(reason::WAITING, message));
    }
    if let Some(flaw) = outcome.tap.spec.as_ref().ok().and_then(|spec| spec.treatment.flaw()) {
        return Err(Problem::new(&flaw.reason, format!("{progress}, with the expression before: {}", flaw.message)));
    }
    // What stands goes on without its helper; what changes from now on does not arrive.
    let unattended = items.iter().find_map(|(pod, _)| knowledge.applied.helper_problems.get(pod.node.as_ref()?));
    if let Some(problem) = unattended {
        return Err(Problem::new(
            &problem.reason,
            format!("{progress}, but changes are not followed: {}", problem.message),
        ));
    }
    Ok(Problem::new(reason::ESTABLISHED, progress))
}

/// Holds where something is missing: the other way round than the others.
fn degraded(outcome: &Outcome<'_>, items: &[(&PodFact, Item)], knowledge: Knowledge<'_>) -> Verdict {
    if let Some(problem) = standing_problem(outcome) {
        return Err(problem);
    }
    let active = || items.iter().filter(|(_, item)| *item == Item::Active).map(|(pod, _)| *pod);
    match super::degraded::shortfall(outcome, active(), knowledge.applied) {
        Some(problem) => Ok(problem),
        None if active().next().is_none() => {
            Err(Problem::new(reason::WAITING, "nothing is known before the first pod is tapped"))
        }
        None => Err(Problem::new(reason::NOTHING_MISSING, "what is in place is as spec says")),
    }
}

fn ready(outcome: &Outcome<'_>, others: [&Verdict; 3], items: &[(&PodFact, Item)], degraded: &Verdict) -> Verdict {
    if let Some(problem) = standing_problem(outcome) {
        return Err(problem);
    }
    if let Some(problem) = others.into_iter().find_map(|verdict| verdict.as_ref().err()) {
        return Err(problem.clone());
    }
    let to: Vec<&str> = outcome.destinations.iter().map(|d| d.text.as_str()).collect();
    let pods = count(items.len(), "pod is", "pods are");
    let but = match degraded {
        Ok(problem) => format!(", but not as spec says ({CONDITION_DEGRADED}): {}", problem.message),
        Err(_) => String::new(),
    };
    Ok(Problem::new(reason::ESTABLISHED, format!("{pods} copied to {}{but}", to.join(", "))))
}

/// Why nothing of the tap is carried out.
fn standing_problem(outcome: &Outcome<'_>) -> Option<Problem> {
    match &outcome.standing {
        Standing::Active => None,
        Standing::Suspended => Some(Problem::new(reason::SUSPENDED, "spec.suspend is true: set it to false to go on")),
        Standing::Expired => Some(Problem::new(
            reason::EXPIRED,
            "spec.durationSeconds are over, and nothing is copied any more: delete the object, or raise the number to go on",
        )),
        Standing::Refused(problem) => Some(problem.clone()),
    }
}

fn failures(outcome: &Outcome<'_>, items: &[(&PodFact, Item)]) -> Vec<TapFailure> {
    let failure = |pod: &PodFact, problem: &Problem| TapFailure {
        pod: pod.name.clone(),
        node: pod.node.clone().unwrap_or_default(),
        reason: problem.reason.clone(),
        message: problem.message.clone(),
    };
    if outcome.standing != Standing::Active {
        return Vec::new();
    }
    let unfit = outcome.targets.pods.iter().filter_map(|target| Some(failure(&target.pod, target.problem.as_ref()?)));
    let failed = items.iter().filter_map(|(pod, item)| match item {
        Item::Failed(problem) => Some(failure(pod, problem)),
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
