//! Kubernetes events, most of them about a tap.
//!
//! # Guarantees
//! Events never delay a reconcile: they wait in a queue of [`QUEUE`], and a task of its own sends one at a time, at most
//! twenty per second. An event that finds the queue full is only logged.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use podtap_model::{Reason, TapReference};
use podtap_runtime::client::in_time;
use tokio::{sync::mpsc, task::AbortHandle, time::sleep};
use tracing::debug;

use crate::{names, store::tap};

/// Something to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    pub is_warning: bool,
    pub reason: Reason,
    pub note: String,
}

/// Longest note that the API server accepts (`events.k8s.io/v1`).
const MAX_NOTE: usize = 1024;

/// How many events wait at most. When a node goes, each of its taps has one or two.
const QUEUE: usize = 1024;
/// The pause after each event.
const PAUSE: Duration = Duration::from_millis(50);

/// Publishes events. They are sent until it is dropped.
pub struct Publisher {
    queue: mpsc::Sender<(ObjectReference, Occurrence)>,
    task: AbortHandle,
}

impl Publisher {
    /// `instance` tells replicas apart. Must be called on a tokio runtime.
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter { controller: names::CONTROLLER.to_owned(), instance: Some(instance.to_owned()) };
        let (queue, waiting) = mpsc::channel(QUEUE);
        let task = tokio::spawn(send_all(Recorder::new(client, reporter), waiting)).abort_handle();
        Self { queue, task }
    }

    /// Publishes what happened to a tap.
    pub fn publish(&self, tap: &TapReference, occurrences: impl IntoIterator<Item = Occurrence>) {
        self.publish_about(&object_reference(tap), occurrences);
    }

    /// Best effort: an event that cannot be published is only logged.
    pub fn publish_about(&self, regarding: &ObjectReference, occurrences: impl IntoIterator<Item = Occurrence>) {
        for occurrence in occurrences {
            if let Err(error) = self.queue.try_send((regarding.clone(), occurrence)) {
                debug!(%error, namespace = regarding.namespace, name = regarding.name, "cannot queue an event");
            }
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // A replica that does not lead any more reports nothing.
        self.task.abort();
    }
}

async fn send_all(recorder: Recorder, mut waiting: mpsc::Receiver<(ObjectReference, Occurrence)>) {
    while let Some((regarding, occurrence)) = waiting.recv().await {
        if let Err(error) = in_time(recorder.publish(&event(occurrence), &regarding)).await {
            debug!(%error, namespace = regarding.namespace, name = regarding.name, "cannot publish an event");
        }
        sleep(PAUSE).await;
    }
}

fn event(Occurrence { is_warning, reason, note }: Occurrence) -> Event {
    Event {
        type_: if is_warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_string(),
        note: Some(shortened(note)),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

fn object_reference(tap: &TapReference) -> ObjectReference {
    let resource = tap::resource(&tap.namespace);
    ObjectReference {
        api_version: Some(resource.api_version),
        kind: Some(resource.kind),
        namespace: Some(tap.namespace.clone()).filter(|_| !tap.is_cluster_scoped()),
        name: Some(tap.name.clone()),
        uid: Some(tap.uid.to_string()),
        ..ObjectReference::default()
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
    use crate::{fake_api::FakeApi, fixtures::uid};

    /// A task of its own sends the events: publishing awaits nothing, whatever the API server does.
    #[tokio::test(start_paused = true)]
    async fn a_full_queue_drops_events_and_delays_nothing() {
        let api = FakeApi::default();
        let publisher = Publisher::new(api.client(), "test");
        let publish = |name: String| {
            let tap = TapReference { namespace: "shop".into(), uid: uid(&name), name };
            publisher.publish(&tap, [Occurrence { is_warning: true, reason: Reason::TapFailed, note: "?".into() }]);
        };
        for number in 0..QUEUE + 100 {
            publish(format!("t{number}"));
        }
        assert_eq!(api.requests().len(), 0);
        sleep(Duration::from_secs(1)).await;
        let first = api.requests().len();
        assert!((15..=21).contains(&first), "{first} in a second");
        sleep(Duration::from_secs(600)).await;
        assert_eq!(first + api.requests().len(), QUEUE, "the others were dropped");
        publish("late".to_owned());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(api.requests().len(), 1, "there is room again");
    }

    #[test]
    fn notes_fit_whatever_the_message() {
        assert_eq!(shortened("short".into()), "short");
        let long = shortened("ü".repeat(1000));
        assert!(long.len() <= MAX_NOTE && long.ends_with(" ..."), "{}", long.len());
    }
}
