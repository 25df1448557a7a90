//! The client of the tap-helper: the agent's side of the protocol ([`podtap_model::Request`] and [`podtap_model::Response`]).
//!
//! # Guarantees
//! - The newest update is sent whenever it changes, and again on each new connection. Updates that were superseded while the
//!   tap-helper was away are never sent.
//! - Only what has just arrived from the API server counts as confirmed by it: an update that is sent again says nothing about that,
//!   and a renewal that finds no connection is dropped.
//! - Reports and counters are passed on unchanged. Requests for counters never overtake an update.
//! - Neither a tap-helper that is away nor one that sends invalid messages stops the client: it reconnects, with growing pauses.

mod connection;
mod counters;

use std::{path::PathBuf, sync::Arc};

use podtap_model::{Counters, DesiredUpdate, Renewal, Report, Request};
use podtap_runtime::{clock::ServerClock, http::Health};
use tokio::{sync::watch, task::JoinSet};

pub use self::{connection::Channels, counters::NoAnswer};

/// A client of the tap-helper. Dropping it closes the connection.
#[derive(Debug)]
pub struct HelperClient {
    /// [`Request::Apply`] with the newest update.
    desired: watch::Sender<Option<Request>>,
    renewals: watch::Sender<Option<Renewal>>,
    clock: ServerClock,
    /// How many connections there were.
    connections: watch::Receiver<u64>,
    reports: watch::Receiver<Option<Report>>,
    waiters: counters::Queue,
    tasks: JoinSet<()>,
}

impl HelperClient {
    /// Starts to connect to the tap-helper that listens at `socket`. `health` is ready while there is a connection.
    pub fn connect(socket: PathBuf, clock: ServerClock, health: Health) -> Self {
        let (mut client, channels) = Self::without_connection(clock, health);
        client.tasks.spawn(async move { connection::run(&socket, channels).await });
        client
    }

    /// A client, and the channels of its connection.
    pub fn without_connection(clock: ServerClock, health: Health) -> (Self, Channels) {
        let desired = watch::Sender::new(None);
        let renewals = watch::Sender::new(None);
        let (connected, connections) = watch::channel(0);
        let (reported, reports) = watch::channel(None);
        let (requests, requested) = watch::channel(0);
        let (answered, answers) = watch::channel(None);
        let (waiters, queue) = counters::queue();
        let mut tasks = JoinSet::new();
        tasks.spawn(counters::run(queue, requests, answers));
        let channels = Channels {
            desired: desired.subscribe(),
            renewals: renewals.subscribe(),
            clock: clock.clone(),
            connections: connected,
            requests: requested,
            reports: reported,
            counters: answered,
            health,
        };
        (Self { desired, renewals, clock, connections, reports, waiters, tasks }, channels)
    }

    /// Makes this the desired state of the node, which the API server has just confirmed. Nothing is sent if it is already the newest
    /// update.
    pub fn apply(&self, update: DesiredUpdate) {
        let request = Some(Request::Apply(update));
        self.desired.send_if_modified(|newest| {
            let changed = *newest != request;
            if changed {
                *newest = request;
            }
            changed
        });
    }

    /// The result of `read` for the newest update, if there is one.
    pub fn read_desired<T>(&self, read: impl FnOnce(&DesiredUpdate) -> T) -> Option<T> {
        match &*self.desired.borrow() {
            Some(Request::Apply(update)) => Some(read(update)),
            Some(Request::Renew(_) | Request::Counters(_)) | None => None,
        }
    }

    /// Lets the mirrors of the `NodeTap` with this UID run on: the API server has just confirmed that it exists.
    pub fn renew(&self, uid: String) {
        self.renewals.send_replace(Some(Renewal { uid, now: connection::unix_time(&self.clock) }));
    }

    /// Changes with the newest update.
    pub fn desired(&self) -> watch::Receiver<Option<Request>> {
        self.desired.subscribe()
    }

    /// Changes with each new connection. A tap-helper that has just started may be in need of a renewal.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.clone()
    }

    /// The newest report; `None` until there is one. A report outlives its connection.
    pub fn reports(&self) -> watch::Receiver<Option<Report>> {
        self.reports.clone()
    }

    /// The counters of all senders, read after this call. Calls at the same time share an answer.
    pub async fn counters(&self) -> Result<Arc<Counters>, NoAnswer> {
        self.waiters.wait().await
    }
}

#[cfg(test)]
mod tests;
