//! Watches this node's `NodeTap`.
//!
//! As long as it is unknown whether the object exists, the tap-helper gets no update. If the object does not exist, the update is to
//! remove everything, but only after a complete list or a deletion has shown it, and for [`GRACE`]. The controller deletes a `NodeTap`
//! only when its node is clean, so that waiting costs nothing. If an administrator deletes one, the controller recreates it, and
//! that must not interrupt the mirrors.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use kube::{
    Api,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{LastStatus, RawNodeTap, remove_everything};
use crate::helper_client::HelperClient;

/// How long the object has to be missing before everything is removed.
pub const GRACE: Duration = Duration::from_secs(5);

/// Watches the `NodeTap` of `node` forever: applies its spec, and keeps `last_status` current (`None` while there is no object).
pub async fn run(
    api: Api<RawNodeTap>,
    node: &str,
    client: &HelperClient,
    last_status: &watch::Sender<Option<LastStatus>>,
) {
    let only_this_node = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let events = watcher(api, only_this_node).default_backoff();
    process(std::pin::pin!(events), node, client, last_status).await;
}

async fn process(
    mut events: impl Stream<Item = watcher::Result<Event<RawNodeTap>>> + Unpin,
    node: &str,
    client: &HelperClient,
    last_status: &watch::Sender<Option<LastStatus>>,
) {
    let mut presence = Presence::default();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = until(presence.missing_since.map(|since| since + GRACE)) => {
                info!("this node has no NodeTap: removing everything");
                client.apply(remove_everything());
                presence.missing_since = None;
                continue;
            }
        };
        let event = match event {
            Some(Ok(event)) => event,
            Some(Err(error)) => {
                warn!(%error, "cannot watch this node's NodeTap; mirrors stay as they are, retrying");
                continue;
            }
            // A watcher never ends, but the stream of a test does.
            None => return,
        };
        if let Err(error) = object(&event).map_or(Ok(()), |object| object.check_node(node)) {
            warn!(%error, "ignored an object of the watch");
            continue;
        }
        match presence.observe(event, Instant::now()).map(RawNodeTap::into_parts) {
            Some(Ok((update, status))) => {
                last_status.send_replace(Some(status));
                client.apply(update);
            }
            Some(Err(error)) => warn!(%error, "cannot apply this node's NodeTap; mirrors stay as they are"),
            None if presence.missing_since.is_some() => {
                last_status.send_if_modified(|status| status.take().is_some());
            }
            None => {}
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The object of an event, if it has one.
fn object(event: &Event<RawNodeTap>) -> Option<&RawNodeTap> {
    match event {
        Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => Some(object),
        Event::Init | Event::InitDone => None,
    }
}

/// Whether the object exists.
#[derive(Debug, Default)]
struct Presence {
    /// Whether the list that is being read contains it.
    listed: bool,
    /// Since when it is known to be missing.
    missing_since: Option<Instant>,
}

impl Presence {
    /// Observes an event at `now`. Returns the object if it exists.
    fn observe(&mut self, event: Event<RawNodeTap>, now: Instant) -> Option<RawNodeTap> {
        match event {
            Event::Init => self.listed = false,
            Event::InitApply(object) | Event::Apply(object) => {
                self.listed = true;
                self.missing_since = None;
                return Some(object);
            }
            Event::InitDone if self.listed => {}
            Event::InitDone | Event::Delete(_) => {
                self.missing_since.get_or_insert(now);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
