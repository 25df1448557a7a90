//! Waiting for a tap, and saying for what.

use std::{ops::ControlFlow, time::Duration};

use futures_util::StreamExt as _;
use kube::runtime::{
    WatchStreamExt as _,
    watcher::{self, Event},
};
use podtap_api::{CONDITION_DELIVERING, CONDITION_DESTINATIONS_READY, CONDITION_TAPPED, CONDITION_TARGETS_RESOLVED};
use podtap_model::Reason;
use tokio::time::{Instant, timeout_at};

use crate::{
    connection::Cluster,
    console::Console,
    exit::{Failure, Outcome, page_of},
    tap::Tap,
};

/// How far a tap is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is Ready, and what is mirrored arrives, or is not known to.
    Ready,
    /// It mirrors nothing, as its spec or the policy asks for.
    Suspended(Why),
    /// It waits for something that may happen by itself.
    Waiting(Why),
    /// Some pods are tapped, and the others cannot be.
    Partly(Why),
    /// It cannot become Ready as it is.
    Refused(Why),
}

/// Why a tap is not Ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// The condition that is not True.
    pub condition: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
}

impl std::fmt::Display for Why {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { condition, reason, message } = self;
        write!(formatter, "{condition} ({reason})")?;
        if message.is_empty() { Ok(()) } else { write!(formatter, ": {message}") }
    }
}

impl Why {
    /// With the page of the reason.
    pub fn with_page(&self) -> String {
        format!("{self}. See {}", page_of(&self.reason))
    }
}

/// Reasons that an edit of the tap or of the policy has to end.
const REFUSALS: [Reason; 10] = [
    Reason::InvalidSpec,
    Reason::MirroringLoop,
    Reason::NamespaceExcluded,
    Reason::NotAllowedByPolicy,
    Reason::PolicyNotFound,
    Reason::ClusterAddress,
    Reason::AddressFamilyMismatch,
    Reason::TooManyTaps,
    Reason::VniInUse,
    Reason::VniExhausted,
];

/// Reasons of `TargetsResolved` that are about some of the pods.
const REFUSALS_OF_PODS: [Reason; 6] = [
    Reason::HostNetwork,
    Reason::TargetUnsupported,
    Reason::Excluded,
    Reason::DestinationIsTarget,
    Reason::PodFinished,
    Reason::TooManyPods,
];

/// How far a tap is, by its conditions.
pub fn progress(tap: &Tap) -> Progress {
    let Some(ready) = tap.ready() else {
        let message = "the controller has not seen it yet".to_owned();
        return Progress::Waiting(Why { condition: "Ready".to_owned(), reason: "Pending".to_owned(), message });
    };
    if ready.status == "True" {
        return Progress::Ready;
    }
    let parts = [CONDITION_TARGETS_RESOLVED, CONDITION_DESTINATIONS_READY, CONDITION_TAPPED, CONDITION_DELIVERING];
    let failed = parts.iter().filter_map(|kind| tap.condition(kind)).find(|condition| condition.status == "False");
    let failed = failed.unwrap_or(ready);
    let why = Why { condition: failed.type_.clone(), reason: ready.reason.clone(), message: ready.message.clone() };
    let is_one_of = |reasons: &[Reason]| reasons.iter().any(|reason| reason.as_str() == ready.reason);
    if is_one_of(&[Reason::Suspended]) {
        return Progress::Suspended(why);
    }
    if is_one_of(&[Reason::Expired]) || is_one_of(&REFUSALS) {
        return Progress::Refused(why);
    }
    let status = tap.status().cloned().unwrap_or_default();
    let refused = i32::try_from(status.failures.len()).unwrap_or(i32::MAX);
    let is_complete = status.tapped_pods.saturating_add(refused) >= status.matched_pods;
    // Those above the limit match, too.
    let is_at_limit = is_one_of(&[Reason::TooManyPods]) && status.tapped_pods > 0 && status.pending_pods == 0;
    match failed.type_.as_str() {
        CONDITION_TARGETS_RESOLVED if is_one_of(&REFUSALS_OF_PODS) && (is_complete || is_at_limit) => {
            if status.tapped_pods > 0 { Progress::Partly(why) } else { Progress::Refused(why) }
        }
        _ => Progress::Waiting(why),
    }
}

/// Watches a tap until `decide` returns a value, or until it has taken too long, which returns none. `decide` gets no tap when it is
/// gone.
pub async fn until<T>(
    cluster: &Cluster,
    tap: &Tap,
    limit: Duration,
    mut decide: impl FnMut(Option<&Tap>) -> ControlFlow<T>,
) -> Outcome<Option<T>> {
    let deadline = Instant::now() + limit;
    let (kind, uid) = (tap.kind(), tap.uid());
    let config = watcher::Config::default().fields(&format!("metadata.name={}", tap.name()));
    let mut events = watcher::watcher(tap.api(cluster), config).default_backoff().boxed();
    // Whether the list that a watch begins with has the tap.
    let mut is_listed = false;
    while let Ok(Some(event)) = timeout_at(deadline, events.next()).await {
        let current = match event {
            Ok(Event::Init) => {
                is_listed = false;
                continue;
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                is_listed = true;
                Some(Tap::of(kind, object)?)
            }
            Ok(Event::InitDone) if is_listed => continue,
            Ok(Event::InitDone | Event::Delete(_)) => None,
            Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error))
                if is_final(&error) =>
            {
                return Err(error.into());
            }
            // The watch is retried.
            Err(_) => continue,
        };
        // Another one of the same name does not count.
        let current = current.filter(|tap| tap.uid() == uid);
        if let ControlFlow::Break(value) = decide(current.as_ref()) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

/// Says once for what a command waits, and how long it has.
pub struct Waiting {
    console: Console,
    since: Instant,
    last: String,
}

impl Waiting {
    /// Begins to wait.
    pub fn new(console: Console) -> Self {
        Self { console, since: Instant::now(), last: String::new() }
    }

    /// What it waits for now.
    pub fn reports(&mut self, text: String) {
        if text != self.last {
            self.console.step(&format!("waiting for {text} [{} s]", self.since.elapsed().as_secs()));
            self.last = text;
        }
    }
}

/// Waits for a signal that asks this program to end: SIGINT, and on Unix SIGTERM and SIGHUP, by which a terminal closes. From the call
/// on, these do not end the program by themselves.
pub fn interrupted() -> Outcome<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else {
            return Err(Failure::error("signals cannot be handled"));
        };
        Ok(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}

/// What `work` returns, or none at such a signal.
pub async fn interruptible<T>(work: impl Future<Output = T>) -> Option<T> {
    match interrupted() {
        Ok(signal) => tokio::select! {
            value = work => Some(value),
            () = signal => None,
        },
        // Without a handler, signals end the process by themselves.
        Err(_) => Some(work.await),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tap(conditions: &[(&str, &str, &str)]) -> Tap {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status, reason)| {
                json!({"type": kind, "status": status, "reason": reason, "message": "", "observedGeneration": 2,
                       "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let tap = json!({
            "metadata": {"name": "web", "namespace": "shop", "generation": 2},
            "spec": {"targets": {"podSelector": {}}, "destinations": [{"node": {"name": "n1"}}]},
            "status": {"conditions": conditions},
        });
        Tap::Namespaced(Box::new(serde_json::from_value(tap).expect("a tap")))
    }

    #[test]
    fn progress_by_conditions() {
        let condition = |progress: &Progress| match progress {
            Progress::Waiting(why) => format!("waiting {} {}", why.condition, why.reason),
            Progress::Refused(why) => format!("refused {} {}", why.condition, why.reason),
            Progress::Partly(why) => format!("partly {} {}", why.condition, why.reason),
            Progress::Suspended(why) => format!("suspended {} {}", why.condition, why.reason),
            other @ Progress::Ready => format!("{other:?}"),
        };
        for (conditions, expected) in [
            (&[][..], "waiting Ready Pending"),
            (&[("Ready", "True", "AsExpected"), ("Delivering", "Unknown", "ExternalDestination")], "Ready"),
            (&[("Ready", "False", "Suspended")], "suspended Ready Suspended"),
            (
                &[("Ready", "False", "NoProbeFromNode"), ("Delivering", "False", "NoProbeFromNode")],
                "waiting Delivering NoProbeFromNode",
            ),
            (
                &[("Ready", "False", "NoPodsMatch"), ("TargetsResolved", "False", "NoPodsMatch")],
                "waiting TargetsResolved NoPodsMatch",
            ),
            (
                &[("Ready", "False", "PolicyNotFound"), ("DestinationsReady", "False", "PolicyNotFound")],
                "refused DestinationsReady PolicyNotFound",
            ),
            (&[("Ready", "False", "Expired")], "refused Ready Expired"),
        ] {
            assert_eq!(condition(&progress(&tap(conditions))), expected);
        }
    }

    #[test]
    fn pods_that_are_refused_do_not_hide_those_that_are_tapped() {
        let progress = |matched: i32, tapped: i32| {
            let mut tap = tap(&[("Ready", "False", "HostNetwork"), ("TargetsResolved", "False", "HostNetwork")]);
            if let Tap::Namespaced(tap) = &mut tap {
                let status = tap.status.as_mut().expect("it has one");
                let failure = json!({"pod": "host", "reason": "HostNetwork", "message": ""});
                status.failures = vec![serde_json::from_value(failure).expect("a failure")];
                (status.matched_pods, status.tapped_pods) = (matched, tapped);
            }
            progress(&tap)
        };
        assert!(matches!(progress(1, 0), Progress::Refused(_)), "no other pod matches");
        assert!(matches!(progress(2, 0), Progress::Waiting(_)), "the other one is about to be tapped");
        assert!(matches!(progress(2, 1), Progress::Partly(_)));
    }

    #[test]
    fn conditions_about_another_spec_do_not_count() {
        let mut old = tap(&[("Ready", "True", "AsExpected")]);
        if let Tap::Namespaced(tap) = &mut old {
            tap.metadata.generation = Some(3);
        }
        assert!(matches!(progress(&old), Progress::Waiting(_)));
    }
}
