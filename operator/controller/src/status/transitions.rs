//! The events that follow from the difference between two statuses: one per transition. A status is written once, and so each event is
//! published once, even across restarts. Pure.

use podtap_api::{
    CONDITION_DEGRADED, CONDITION_DELIVERING, CONDITION_DESTINATIONS_READY, CONDITION_READY, CONDITION_TAPPED,
    PodTapStatus, TapFailure,
};
use podtap_model::Reason;

use crate::{events::Occurrence, failure::count};

/// What to report about the change from one status to the next.
pub fn occurrences(old: &PodTapStatus, new: &PodTapStatus) -> Vec<Occurrence> {
    let mut occurrences = Vec::new();
    let mut add = |is_warning, reason, note: &str| {
        occurrences.push(Occurrence { is_warning, reason, note: note.to_owned() });
    };
    match changed(old, new, CONDITION_READY) {
        Some((true, _, message)) => add(false, Reason::TapEstablished, message),
        Some((false, reason @ (Reason::Expired | Reason::Suspended), message)) => add(false, reason, message),
        Some((false, reason, message)) if is_about_tap(reason, new) => add(true, reason, message),
        _ => {}
    }
    let mut has_helper_event = false;
    for kind in [CONDITION_DESTINATIONS_READY, CONDITION_TAPPED] {
        let Some((false, reason, message)) = changed(old, new, kind) else { continue };
        match reason {
            Reason::HelperPodFailed | Reason::HelperPodRejected => {
                if !has_helper_event {
                    add(true, Reason::HelperPodFailed, message);
                }
                has_helper_event = true;
            }
            _ if kind == CONDITION_DESTINATIONS_READY && is_about_destination(reason, new) => {
                add(true, Reason::DestinationUnavailable, message);
            }
            _ => {}
        }
    }
    if let Some((false, reason @ (Reason::NoProbeFromNode | Reason::PortBlocked | Reason::PathMtu), message)) =
        changed(old, new, CONDITION_DELIVERING)
    {
        add(true, reason, message);
    }
    if let Some((true, _, message)) = changed(old, new, CONDITION_DEGRADED) {
        add(true, Reason::Degraded, message);
    }
    for (failure, others) in failures_by_node(old, new) {
        let others =
            if others == 0 { String::new() } else { format!(", and {}", count(others, "other pod", "other pods")) };
        let note = format!("pod {}{others}: {}", failure.pod, failure.message);
        match failure.reason {
            // Reported once for the node, not once for each pod.
            Reason::HelperPodFailed | Reason::HelperPodRejected => {}
            Reason::TargetUnsupported
            | Reason::HostNetwork
            | Reason::PodFinished
            | Reason::DestinationIsTarget
            | Reason::Excluded
            | Reason::TooManyTaps => add(true, Reason::TargetUnsupported, &note),
            _ => add(true, Reason::TapFailed, &note),
        }
    }
    occurrences
}

/// The first new failure of each node and reason, and how many more there are: when a node goes, all of its pods fail for the same
/// reason.
fn failures_by_node<'a>(old: &PodTapStatus, new: &'a PodTapStatus) -> Vec<(&'a TapFailure, usize)> {
    let is_known =
        |failure: &TapFailure| old.failures.iter().any(|f| f.pod == failure.pod && f.reason == failure.reason);
    let mut found: Vec<(&TapFailure, usize)> = Vec::new();
    for failure in new.failures.iter().filter(|failure| !is_known(failure)) {
        match found.iter_mut().find(|(first, _)| first.node == failure.node && first.reason == failure.reason) {
            Some((_, others)) => *others += 1,
            None => found.push((failure, 0)),
        }
    }
    found
}

/// Whether the tap as a whole is not carried out.
fn is_about_tap(reason: Reason, status: &PodTapStatus) -> bool {
    match reason {
        // A destination can be the reason, too. Then DestinationsReady has the message.
        Reason::NotAllowedByPolicy => message(status, CONDITION_READY) != message(status, CONDITION_DESTINATIONS_READY),
        Reason::VniInUse
        | Reason::VniExhausted
        | Reason::MirroringLoop
        | Reason::InvalidSpec
        | Reason::NodeFull
        | Reason::TooManyPods
        | Reason::NamespaceExcluded => true,
        _ => false,
    }
}

fn is_about_destination(reason: Reason, status: &PodTapStatus) -> bool {
    match reason {
        Reason::Pending
        | Reason::Suspended
        | Reason::Expired
        | Reason::VniInUse
        | Reason::VniExhausted
        | Reason::MirroringLoop
        | Reason::NodeFull
        | Reason::InvalidSpec => false,
        reason => reason != Reason::NotAllowedByPolicy || !is_about_tap(reason, status),
    }
}

/// Status, reason and message of a condition whose status is new, or that is False for a new reason.
fn changed<'a>(old: &PodTapStatus, new: &'a PodTapStatus, kind: &str) -> Option<(bool, Reason, &'a str)> {
    let new = new.conditions.iter().find(|condition| condition.type_ == kind)?;
    let old = old.conditions.iter().find(|condition| condition.type_ == kind);
    let is_true = new.status == "True";
    let is_new = old.is_none_or(|old| old.status != new.status || (!is_true && old.reason != new.reason));
    is_new.then_some((is_true, reason(&new.reason), new.message.as_str()))
}

fn message<'a>(status: &'a PodTapStatus, kind: &str) -> Option<&'a str> {
    status.conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.message.as_str())
}

fn reason(text: &str) -> Reason {
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == text).unwrap_or(Reason::Unknown)
}

#[cfg(test)]
mod tests;
