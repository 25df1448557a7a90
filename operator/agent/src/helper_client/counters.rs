//! Requests for counters: sent when someone waits for them, and at no other time.
//!
//! # Guarantees
//! A waiter gets counters that were read after it began to wait, or [`NoAnswer`] within [`DEADLINE`]; never older counters. Waiters
//! at the same time share an answer. However many there are, the tap-helper has at most one request to answer, and receives at
//! most one per [`PAUSE`].

use std::{sync::Arc, time::Duration};

use podtap_model::Counters;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{sleep, timeout},
};

/// Reading takes a few milliseconds per pod. Prometheus waits for a scrape for 10 seconds by default.
pub const DEADLINE: Duration = Duration::from_secs(1);
/// Everyone who reaches the metrics port can cause requests.
const PAUSE: Duration = Duration::from_millis(100);
/// Waiters in the queue. More wait for a place in it.
const QUEUED: usize = 32;

/// The tap-helper did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tap-helper did not answer within {} s; see the log of its container", DEADLINE.as_secs())]
pub struct NoAnswer;

type Waiter = oneshot::Sender<Arc<Counters>>;

/// Where waiters queue up.
#[derive(Clone, Debug)]
pub struct Queue(mpsc::Sender<Waiter>);

/// The waiters of a queue.
#[derive(Debug)]
pub struct Waiters(mpsc::Receiver<Waiter>);

/// A queue, and its other end.
pub fn queue() -> (Queue, Waiters) {
    let (sender, receiver) = mpsc::channel(QUEUED);
    (Queue(sender), Waiters(receiver))
}

impl Queue {
    /// Waits for the counters of now.
    pub async fn wait(&self) -> Result<Arc<Counters>, NoAnswer> {
        let (waiter, answer) = oneshot::channel();
        let answer = async {
            self.0.send(waiter).await.map_err(|_| NoAnswer)?;
            answer.await.map_err(|_| NoAnswer)
        };
        timeout(DEADLINE, answer).await.map_err(|_| NoAnswer)?
    }
}

/// Serves a queue: numbers the requests, and gives each answer to those who wait for it.
pub async fn run(
    mut queue: Waiters,
    requests: watch::Sender<u64>,
    mut answers: watch::Receiver<Option<Arc<Counters>>>,
) {
    let mut waiters = Vec::new();
    for request in 1.. {
        if queue.0.recv_many(&mut waiters, QUEUED).await == 0 {
            return;
        }
        waiters.retain(|waiter| !waiter.is_closed());
        if waiters.is_empty() {
            continue;
        }
        requests.send_replace(request);
        let answered = answers.wait_for(|answer| answer.as_ref().is_some_and(|answer| answer.request == request));
        let answer = match timeout(DEADLINE, answered).await {
            Ok(Ok(answer)) => answer.clone(),
            // The waiters time out by themselves.
            Ok(Err(_)) | Err(_) => None,
        };
        for waiter in waiters.drain(..) {
            if let Some(answer) = &answer {
                // Fails if the waiter has timed out.
                let _ = waiter.send(answer.clone());
            }
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests;
