//! The connection to the tap-helper.
//!
//! # Guarantees
//! The newest order is sent whenever it changes, and again on each new connection; orders that were overtaken while the
//! tap-helper was away are not sent at all. A report is handed on together with the order that it answers. Requests for counters
//! go behind the order, and what answers them is handed on as it comes. Neither a tap-helper that is away nor one that sends
//! nonsense ends this: it connects anew, with growing pauses.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tap_wire::{Counters, FromHelper, MAX_MESSAGE, Report, ToHelper};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::sleep,
};
use tracing::{debug, info, warn};

use super::order::{Order, Origin};
use podtap_runtime::{backoff::Backoff, http::Health};

/// The helper's containers start together: the socket is there within milliseconds, or something is wrong.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Orders that wait for an answer; a tap-helper that answers none of so many gets no more remembered.
const UNANSWERED: usize = 64;

/// What is kept of the receive buffer between two reports.
const KEPT_BUFFER: usize = 16 << 10;

/// What the tap-helper says, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub origin: Arc<Origin>,
    pub report: Report,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("the tap-helper closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the tap-helper sent a line of more than {MAX_MESSAGE} bytes")]
    Oversize,
    #[error("the tap-helper sent something that is no message: {0}")]
    Garbage(#[source] serde_json::Error),
    #[error("nobody gives orders any more")]
    Orphaned,
}

/// What the connection joins.
pub struct Ends {
    /// What the tap-helper is to be told.
    pub orders: watch::Receiver<Option<Arc<Order>>>,
    /// The number of the newest request for counters.
    pub requests: watch::Receiver<u64>,
    /// Where reports go.
    pub answers: watch::Sender<Option<Answer>>,
    /// Where counters go.
    pub counters: watch::Sender<Option<Arc<Counters>>>,
    /// Is ready while there is a connection.
    pub health: Health,
}

/// Carries orders and requests to the tap-helper at `socket` and what it says back, for ever.
pub async fn run(socket: &Path, mut ends: Ends) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut away = false;
    loop {
        let ended = match UnixStream::connect(socket).await {
            Ok(stream) => {
                info!("connected to the tap-helper");
                away = false;
                ends.health.set_ready(true);
                let ended = session(stream, &mut ends, &mut backoff).await;
                ends.health.set_ready(false);
                ended
            }
            Err(error) => Ended::Connect(error),
        };
        // Once per absence: the attempts themselves are not news.
        if away {
            debug!(error = %ended, "still no tap-helper");
        } else {
            warn!(error = %ended, socket = %socket.display(), "no tap-helper; what is in place stays, trying again");
        }
        away = true;
        sleep(backoff.pause()).await;
    }
}

/// One connection, until it ends.
async fn session(stream: UnixStream, ends: &mut Ends, backoff: &mut Backoff) -> Ended {
    let Ends { orders, requests, answers, counters, .. } = ends;
    let (reading, writing) = stream.into_split();
    let unanswered = Unanswered::default();
    // Side by side, and not one after the other: two processes that both write and do not read would wait for ever.
    tokio::select! {
        ended = send(writing, orders, requests, &unanswered) => ended,
        ended = receive(reading, answers, counters, &unanswered, backoff) => ended,
    }
}

async fn send(
    mut writing: OwnedWriteHalf,
    orders: &mut watch::Receiver<Option<Arc<Order>>>,
    requests: &mut watch::Receiver<u64>,
    unanswered: &Unanswered,
) -> Ended {
    orders.mark_changed();
    loop {
        let line = tokio::select! {
            // Orders first: what is asked for is then counted of what was ordered.
            biased;
            changed = orders.changed() => {
                if changed.is_err() {
                    return Ended::Orphaned;
                }
                let Some(order) = orders.borrow_and_update().clone() else { continue };
                let Some(line) = line(&order.message) else { continue };
                unanswered.add(order.origin.clone());
                debug!(generation = order.origin.generation, bytes = line.len(), "ordered");
                line
            }
            Ok(()) = requests.changed() => {
                let request = *requests.borrow_and_update();
                let Some(line) = line(&ToHelper::Counters(request)) else { continue };
                line
            }
        };
        if let Err(error) = writing.write_all(&line).await {
            return Ended::Broken(error);
        }
    }
}

/// A message as it is sent, if it can be.
fn line(message: &ToHelper) -> Option<Vec<u8>> {
    match serde_json::to_vec(message) {
        Ok(mut line) if line.len() <= MAX_MESSAGE => {
            line.push(b'\n');
            return Some(line);
        }
        Ok(line) => {
            warn!(bytes = line.len(), "the order is too long for the tap-helper; the one before stays in force");
        }
        Err(error) => warn!(%error, "the order cannot be written; the one before stays in force"),
    }
    None
}

async fn receive(
    reading: OwnedReadHalf,
    answers: &watch::Sender<Option<Answer>>,
    counters: &watch::Sender<Option<Arc<Counters>>>,
    unanswered: &Unanswered,
    backoff: &mut Backoff,
) -> Ended {
    let mut reading = BufReader::with_capacity(4 << 10, reading);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.shrink_to(KEPT_BUFFER);
        let limit = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX) + 1;
        match (&mut reading).take(limit).read_until(b'\n', &mut line).await {
            Ok(0) => return Ended::Closed,
            Ok(_) if line.pop_if(|last| *last == b'\n').is_some() => {}
            Ok(_) if line.len() > MAX_MESSAGE => return Ended::Oversize,
            // The end came within a line.
            Ok(_) => return Ended::Closed,
            Err(error) => return Ended::Broken(error),
        }
        match serde_json::from_slice(&line) {
            Ok(FromHelper::Report(report)) => {
                backoff.reset();
                if let Some(origin) = unanswered.answered(report.generation) {
                    answers.send_replace(Some(Answer { origin, report }));
                } else {
                    // To an order of the agent before this one; ours is answered next.
                    debug!(generation = report.generation, "a report on something that was not ordered here");
                }
            }
            Ok(FromHelper::Counters(answer)) => {
                backoff.reset();
                counters.send_replace(Some(answer.into()));
            }
            Ok(FromHelper::Rejected(why)) => {
                warn!(why, "the tap-helper cannot take the order; the one before stays in force");
            }
            Err(error) => return Ended::Garbage(error),
        }
    }
}

/// Orders that were sent over a connection, oldest first, from the one that was answered last.
#[derive(Debug, Default)]
struct Unanswered(Mutex<VecDeque<Arc<Origin>>>);

impl Unanswered {
    fn add(&self, origin: Arc<Origin>) {
        let mut origins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if origins.len() == UNANSWERED {
            origins.pop_front();
        }
        origins.push_back(origin);
    }

    /// The newest order of `generation`; what was ordered before it will not be answered any more.
    fn answered(&self, generation: i64) -> Option<Arc<Origin>> {
        let mut origins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let position = origins.iter().rposition(|origin| origin.generation == generation)?;
        origins.drain(..position);
        origins.front().cloned()
    }
}

#[cfg(test)]
mod tests;
