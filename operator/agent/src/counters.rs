//! Asks the tap-helper what it counted: when somebody wants to know, and at no other time.
//!
//! # Guarantees
//! Who asks is told what was read after they asked, or within [`DEADLINE`] that there is no answer; never something older. Those
//! who ask at the same time share one answer, and the tap-helper has one question to answer at a time, and no more than one per
//! [`PAUSE`], however many ask.

use std::{sync::Arc, time::Duration};

use tap_wire::Counters;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

/// Reading takes some milliseconds per pod; a scrape is usually waited for no longer than ten seconds.
pub const DEADLINE: Duration = Duration::from_secs(1);
/// Anybody who reaches the port can ask.
const PAUSE: Duration = Duration::from_millis(100);
/// Those who may wait at the same time. Not a limit on connections: further ones wait to wait.
const WAITING: usize = 32;

/// Somebody who waits.
type Asker = oneshot::Sender<Arc<Counters>>;

/// Where to ask. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<Asker>);

/// What a desk is served from.
#[derive(Debug)]
pub struct Queue(mpsc::Receiver<Asker>);

/// A desk, and its queue.
pub fn desk() -> (Desk, Queue) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Desk(sender), Queue(receiver))
}

impl Desk {
    /// What the tap-helper has counted until now; none if it does not say so in time.
    pub async fn ask(&self) -> Option<Arc<Counters>> {
        let (asker, answer) = oneshot::channel();
        let ask = async {
            self.0.send(asker).await.ok()?;
            answer.await.ok()
        };
        timeout(DEADLINE, ask).await.ok().flatten()
    }
}

/// Serves a desk, for ever: numbers requests, and tells the answers to those who wait.
pub async fn run(mut queue: Queue, requests: watch::Sender<u64>, mut answers: watch::Receiver<Option<Arc<Counters>>>) {
    let mut waiting = Vec::new();
    for request in 1.. {
        if queue.0.recv_many(&mut waiting, WAITING).await == 0 {
            return;
        }
        waiting.retain(|asker| !asker.is_closed());
        if waiting.is_empty() {
            continue;
        }
        requests.send_replace(request);
        let answered = answers.wait_for(|answer| answer.as_ref().is_some_and(|answer| answer.request == request));
        let answer = match timeout(DEADLINE, answered).await {
            Ok(Ok(answer)) => answer.clone(),
            // Those who wait give up by themselves; no connection any more, or none yet.
            Ok(Err(_)) | Err(_) => None,
        };
        for asker in waiting.drain(..) {
            if let Some(answer) = &answer {
                // One that does not wait any more is its own business.
                let _ = asker.send(answer.clone());
            }
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests;
