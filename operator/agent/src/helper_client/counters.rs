//! Requests for counters: sent when someone waits for them, and at no other time.
//!
//! # Guarantees
//! A waiter gets counters, or [`NoAnswer`] within [`DEADLINE`]. Waiters at the same time share an answer. Later ones get it, too, for three
//! times as long as it took, and for [`CACHED`] at most; if it took no time, they get counters that were read after they began to wait.
//! However many there are, the tap-helper has at most one request to answer, receives at most one per [`PAUSE`], and reads counters for
//! a quarter of the time at most.

use std::{sync::Arc, time::Duration};

use podtap_model::Counters;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

/// The tap-helper takes a few milliseconds per pod, and a pause behind each. Prometheus waits for a scrape for 10 seconds by default.
pub const DEADLINE: Duration = Duration::from_secs(8);
/// Prometheus scrapes less often.
const CACHED: Duration = Duration::from_secs(10);
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
    /// Waits for counters.
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
    let mut waiters: Vec<Waiter> = Vec::new();
    let mut cached: Option<(Arc<Counters>, Instant)> = None;
    for request in 1.. {
        if queue.0.recv_many(&mut waiters, QUEUED).await == 0 {
            return;
        }
        waiters.retain(|waiter| !waiter.is_closed());
        if waiters.is_empty() {
            continue;
        }
        if let Some((answer, _)) = cached.as_ref().filter(|(_, end)| Instant::now() < *end) {
            give(&mut waiters, answer);
            continue;
        }
        let start = Instant::now();
        requests.send_replace(request);
        let answered = answers.wait_for(|answer| answer.as_ref().is_some_and(|answer| answer.request == request));
        // Without an answer, the waiters time out by themselves.
        if let Ok(Ok(answer)) = timeout(DEADLINE, answered).await
            && let Some(answer) = answer.as_ref()
        {
            give(&mut waiters, answer);
            cached = Some((answer.clone(), Instant::now() + (3 * start.elapsed()).min(CACHED)));
        }
        waiters.clear();
        sleep(PAUSE).await;
    }
}

fn give(waiters: &mut Vec<Waiter>, answer: &Arc<Counters>) {
    for waiter in waiters.drain(..) {
        // Fails if the waiter has timed out.
        let _ = waiter.send(answer.clone());
    }
}

#[cfg(test)]
mod tests;
