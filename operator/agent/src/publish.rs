//! Writes what the tap-helper reports into the `NodeTap`'s status.
//!
//! # Guarantees
//! Only a status that differs from what the API server has is written, always the newest, and never into an object other than
//! the one it is about (the UID goes along). A burst of changes takes at most [`BURST`] writes, then one per second.

use std::{fmt::Display, time::Duration};

use kube::{
    Api,
    api::{Patch, PatchParams, ResourceExt as _},
};
use podtap_api::NodeTapStatus;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{debug, warn};

use super::{
    convert,
    link::Answer,
    order::{RawNodeTap, Seen},
};
use podtap_runtime::backoff::Backoff;

const FIELD_MANAGER: &str = "podtap-agent";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes that may follow each other without a pause.
const BURST: u32 = 10;

/// Publishes the newest answer, for ever.
pub async fn run(
    api: Api<RawNodeTap>,
    node: &str,
    mut seen: watch::Receiver<Option<Seen>>,
    mut answers: watch::Receiver<Option<Answer>>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    let mut pace = Pace::new(Instant::now());
    let mut own = None;
    loop {
        let due = due(answers.borrow_and_update().as_ref(), seen.borrow_and_update().as_ref(), own.as_ref());
        let Some((uid, status)) = due else {
            let gone = tokio::select! {
                changed = seen.changed() => changed.is_err(),
                changed = answers.changed() => changed.is_err(),
            };
            if gone {
                return;
            }
            continue;
        };
        match timeout(REQUEST_TIMEOUT, write(&api, node, &uid, &status)).await {
            Ok(Ok(written)) => {
                backoff.reset();
                debug!(generation = status.observed_generation, "status written");
                own = Some(Seen { uid, version: written.resource_version().unwrap_or_default(), status: Some(status) });
                sleep_until(pace.next(Instant::now())).await;
            }
            Ok(Err(error)) => pause(&mut backoff, &error).await,
            Err(late) => pause(&mut backoff, &late).await,
        }
    }
}

async fn pause(backoff: &mut Backoff, error: &impl Display) {
    warn!(%error, "cannot write this node's status; trying again");
    sleep(backoff.pause()).await;
}

async fn write(
    api: &Api<RawNodeTap>,
    node: &str,
    uid: &str,
    status: &NodeTapStatus,
) -> Result<RawNodeTap, kube::Error> {
    let patch = json!({ "metadata": { "uid": uid }, "status": status });
    api.patch_status(
        node,
        &PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() },
        &Patch::Merge(patch),
    )
    .await
}

/// What is to be written into the object of which UID; `None` when the API server has it already, or nobody has asked yet.
fn due(answer: Option<&Answer>, seen: Option<&Seen>, own: Option<&Seen>) -> Option<(String, NodeTapStatus)> {
    let (answer, seen) = (answer?, seen?);
    if answer.origin.uid != seen.uid {
        return None;
    }
    let status = convert::status(&answer.report, &answer.origin.refused);
    let current = newest(seen, own);
    (current.status.as_ref() != Some(&status)).then(|| (seen.uid.clone(), status))
}

/// Of what the watch showed and what we wrote, what the API server has. The watch may lag behind an own write; versions of
/// one kind are numbers that grow (KEP-5504). Were they not, the worst would be a write that changes nothing.
fn newest<'a>(seen: &'a Seen, own: Option<&'a Seen>) -> &'a Seen {
    let number = |seen: &Seen| seen.version.parse::<u128>().ok();
    match own {
        Some(own) if own.uid == seen.uid && number(own) > number(seen) => own,
        _ => seen,
    }
}

/// [`BURST`] writes at once, refilled by one per second.
#[derive(Debug)]
struct Pace {
    /// When all writes that were made are paid for.
    paid: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { paid: now }
    }

    /// Counts a write at `now`; when the next one may follow.
    fn next(&mut self, now: Instant) -> Instant {
        self.paid = self.paid.max(now) + Duration::from_secs(1);
        now + self.paid.saturating_duration_since(now).saturating_sub(Duration::from_secs(1) * BURST)
    }
}

#[cfg(test)]
mod tests;
