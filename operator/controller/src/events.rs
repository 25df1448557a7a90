//! Kubernetes events about a tap.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource as _,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use podtap_api::PodTap;
use podtap_model::{Reason, TapReference};
use podtap_runtime::client::in_time;
use tracing::debug;

use crate::names;

/// Something to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    pub is_warning: bool,
    pub reason: Reason,
    pub note: String,
}

/// Longest note that the API server accepts (`events.k8s.io/v1`).
const MAX_NOTE: usize = 1024;

/// Publishes events.
#[derive(Clone)]
pub struct Publisher(Recorder);

impl Publisher {
    /// `instance` tells replicas apart.
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter { controller: names::CONTROLLER.to_owned(), instance: Some(instance.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Publishes what happened to a tap.
    pub async fn publish(&self, tap: &TapReference, occurrences: Vec<Occurrence>) {
        let regarding = ObjectReference {
            api_version: Some(PodTap::api_version(&()).into_owned()),
            kind: Some(PodTap::kind(&()).into_owned()),
            namespace: Some(tap.namespace.clone()),
            name: Some(tap.name.clone()),
            uid: Some(tap.uid.to_string()),
            ..ObjectReference::default()
        };
        self.publish_about(&regarding, occurrences).await;
    }

    /// Best effort: an event that cannot be published is only logged.
    pub async fn publish_about(&self, regarding: &ObjectReference, occurrences: Vec<Occurrence>) {
        for Occurrence { is_warning, reason, note } in occurrences {
            let event = Event {
                type_: if is_warning { EventType::Warning } else { EventType::Normal },
                reason: reason.to_string(),
                note: Some(shortened(note)),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            if let Err(error) = in_time(self.0.publish(&event, regarding)).await {
                debug!(%error, %reason, "cannot publish an event");
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
mod tests {
    use super::*;

    #[test]
    fn notes_fit_whatever_the_message() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened("ü".repeat(1000));
        assert!(long.len() <= MAX_NOTE && long.ends_with(" ..."), "{}", long.len());
    }
}
