//! Events about a tap: one per transition, taken from the difference between two statuses. A status that is written once
//! tells once, also across restarts.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource as _,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use podtap_api::{
    CONDITION_DEGRADED, CONDITION_DESTINATIONS_READY, CONDITION_READY, CONDITION_TAPPED, PodTap, PodTapStatus,
    TapFailure, TapReference,
};
use tracing::debug;

use crate::{names, reason};
use podtap_runtime::client::in_time;

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    pub is_warning: bool,
    pub reason: &'static str,
    pub note: String,
}

/// Longest note that the API server takes (`events.k8s.io/v1`).
const MAX_NOTE: usize = 1024;

/// What the change from one status to the next is worth telling.
pub fn occurrences(old: &PodTapStatus, new: &PodTapStatus) -> Vec<Occurrence> {
    let mut occurrences = Vec::new();
    let mut tell = |is_warning, reason, note: &str| {
        occurrences.push(Occurrence { is_warning, reason, note: note.to_owned() });
    };
    if let Some((status, reason, message)) = changed(old, new, CONDITION_READY) {
        match reason {
            _ if status == "True" => tell(false, reason::TAP_ESTABLISHED, message),
            reason::EXPIRED => tell(false, reason::EXPIRED, message),
            reason::SUSPENDED => tell(false, reason::SUSPENDED, message),
            reason::VNI_IN_USE => tell(true, reason::VNI_IN_USE, message),
            reason::VNI_NOT_ALLOWED => tell(true, reason::VNI_NOT_ALLOWED, message),
            reason::VNI_EXHAUSTED => tell(true, reason::VNI_EXHAUSTED, message),
            reason::MIRRORING_LOOP => tell(true, reason::MIRRORING_LOOP, message),
            reason::INVALID_SPEC => tell(true, reason::INVALID_SPEC, message),
            reason::TOO_MANY_PODS => tell(true, reason::TOO_MANY_PODS, message),
            reason::NAMESPACE_EXCLUDED => tell(true, reason::NAMESPACE_EXCLUDED, message),
            _ => {}
        }
    }
    let mut helper_told = false;
    for kind in [CONDITION_DESTINATIONS_READY, CONDITION_TAPPED] {
        let Some(("False", why, message)) = changed(old, new, kind) else { continue };
        match why {
            reason::HELPER_FAILED | reason::HELPER_REJECTED if !helper_told => {
                helper_told = true;
                tell(true, reason::HELPER_FAILED, message);
            }
            reason::HELPER_FAILED | reason::HELPER_REJECTED => {}
            _ if kind == CONDITION_DESTINATIONS_READY && is_about_destinations(why) => {
                tell(true, reason::DESTINATION_UNAVAILABLE, message);
            }
            _ => {}
        }
    }
    if let Some(("True", _, message)) = changed(old, new, CONDITION_DEGRADED) {
        tell(true, reason::DEGRADED, message);
    }
    let known = |failure: &TapFailure| old.failures.iter().any(|f| f.pod == failure.pod && f.reason == failure.reason);
    for failure in new.failures.iter().filter(|failure| !known(failure)) {
        let note = format!("pod {}: {}", failure.pod, failure.message);
        match failure.reason.as_str() {
            // Told once for the node, not once for each pod.
            reason::HELPER_FAILED | reason::HELPER_REJECTED => {}
            reason::TARGET_UNSUPPORTED | reason::DESTINATION_IS_TARGET | reason::EXCLUDED | reason::TOO_MANY_TAPS => {
                tell(true, reason::TARGET_UNSUPPORTED, &note);
            }
            _ => tell(true, reason::TAP_FAILED, &note),
        }
    }
    occurrences
}

fn is_about_destinations(why: &str) -> bool {
    !matches!(
        why,
        reason::WAITING
            | reason::SUSPENDED
            | reason::EXPIRED
            | reason::VNI_IN_USE
            | reason::VNI_NOT_ALLOWED
            | reason::VNI_EXHAUSTED
            | reason::MIRRORING_LOOP
            | reason::INVALID_SPEC
    )
}

/// Status, reason and message of a condition whose status or reason is new.
fn changed<'a>(old: &PodTapStatus, new: &'a PodTapStatus, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let new = new.conditions.iter().find(|condition| condition.type_ == kind)?;
    let old = old.conditions.iter().find(|condition| condition.type_ == kind);
    let is_new = old.is_none_or(|old| old.status != new.status || old.reason != new.reason);
    is_new.then_some((new.status.as_str(), new.reason.as_str(), new.message.as_str()))
}

/// Publishes events.
#[derive(Clone)]
pub struct Publisher(Recorder);

impl Publisher {
    /// `instance` tells replicas apart.
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter { controller: names::CONTROLLER.to_owned(), instance: Some(instance.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Best effort: an event that cannot be published is not worth failing for.
    pub async fn publish(&self, tap: &TapReference, occurrences: Vec<Occurrence>) {
        let regarding = ObjectReference {
            api_version: Some(PodTap::api_version(&()).into_owned()),
            kind: Some(PodTap::kind(&()).into_owned()),
            namespace: Some(tap.namespace.clone()),
            name: Some(tap.name.clone()),
            uid: Some(tap.uid.clone()),
            ..ObjectReference::default()
        };
        for Occurrence { is_warning, reason, note } in occurrences {
            let event = Event {
                type_: if is_warning { EventType::Warning } else { EventType::Normal },
                reason: reason.to_owned(),
                note: Some(shortened(note)),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            if let Err(error) = in_time(self.0.publish(&event, &regarding)).await {
                debug!(%error, reason, "cannot publish an event");
            }
        }
    }
}

fn shortened(mut note: String) -> String {
    if note.len() > MAX_NOTE {
        let end = (0..=MAX_NOTE - 4).rev().find(|index| note.is_char_boundary(*index)).unwrap_or_default();
        note.truncate(end);
        note.push_str(" ...");
    }
    note
}

#[cfg(test)]
mod tests;
