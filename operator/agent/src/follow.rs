//! Follows this node's `NodeTap`.
//!
//! "Not known yet" gives no order. "Not there" is an order to remove everything, but only when a complete list or a deletion
//! said so, and only when it stays so for [`GRACE`]: the controller deletes the object of a node only when the node is clean,
//! so that there is nothing to lose; somebody who deletes it by hand gets it back from the controller, and the mirrors
//! must not be interrupted by that.

use std::{sync::Arc, time::Duration};

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

use super::order::{Order, RawNodeTap, Seen};

/// How long the object may be missing before that counts.
pub const GRACE: Duration = Duration::from_secs(5);

/// Where what is seen goes.
pub struct Outlets {
    /// The newest order; `None` while nothing is known.
    pub orders: watch::Sender<Option<Arc<Order>>>,
    /// The object's status as the API server has it; `None` while there is no object.
    pub seen: watch::Sender<Option<Seen>>,
}

/// Follows the object named `node`, for ever.
pub async fn run(api: Api<RawNodeTap>, node: &str, outlets: &Outlets) {
    let only_ours = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let events = watcher(api, only_ours).default_backoff();
    follow(std::pin::pin!(events), outlets).await;
}

async fn follow(mut events: impl Stream<Item = watcher::Result<Event<RawNodeTap>>> + Unpin, outlets: &Outlets) {
    let mut presence = Presence::default();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = until(presence.missing_since.map(|since| since + GRACE)) => {
                info!("this node has no work any more");
                outlets.order(Order::nothing());
                presence.missing_since = None;
                continue;
            }
        };
        match event {
            Some(Ok(event)) => {
                if let Some(object) = presence.after(event, Instant::now()) {
                    outlets.seen.send_replace(Some(Seen::new(&object)));
                    outlets.order(Order::new(&object));
                } else if presence.missing_since.is_some() {
                    outlets.seen.send_if_modified(|seen| seen.take().is_some());
                }
            }
            Some(Err(error)) => {
                warn!(%error, "cannot follow this node's NodeTap; what is in place stays, trying again");
            }
            // A watcher has no end; a test's stream has.
            None => return,
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Outlets {
    pub fn new() -> Self {
        Self { orders: watch::Sender::new(None), seen: watch::Sender::new(None) }
    }

    /// An event that changes only the status does not make the tap-helper work.
    fn order(&self, order: Order) {
        self.orders.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&order);
            if changed {
                *current = Some(Arc::new(order));
            }
            changed
        });
    }
}

/// Whether the object is there.
#[derive(Debug, Default)]
struct Presence {
    /// Whether the list that is being read had it.
    listed: bool,
    /// Since when it is known not to be there.
    missing_since: Option<Instant>,
}

impl Presence {
    /// Takes in an event; the object if it brought one.
    fn after(&mut self, event: Event<RawNodeTap>, now: Instant) -> Option<RawNodeTap> {
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
