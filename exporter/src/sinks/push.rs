//! Metrics that are sent at intervals, while counting continues.

use std::{sync::Arc, time::Duration};

use podtap_runtime::{backoff::Backoff, http::Bytes};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{Failure, FailureKind, Sink};
use crate::{
    http::Client,
    metrics::{Counted, now, table::Table},
    record::Record,
};

/// How metrics become requests.
pub trait Format: Send + 'static {
    const HEADERS: &[(&'static str, &'static str)];

    /// All series. `now` is in milliseconds since 1970.
    fn requests(&self, table: &Table, now: u64) -> Vec<Bytes>;

    /// Whether the answer says that all was taken.
    fn check(_answer: &[u8]) -> Result<(), Failure> {
        Ok(())
    }
}

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the last values are tried to be sent: sinks have 30 seconds at the end.
const LAST_VALUES: Duration = Duration::from_secs(15);

/// Counts records, and sends all series at intervals. What could not be sent is in the next values.
#[derive(Debug)]
pub struct Push<F> {
    counted: Counted,
    client: Arc<Client>,
    format: F,
    interval: Duration,
    next: Instant,
    backoff: Backoff,
    running: Option<JoinHandle<Result<(), Failure>>>,
    ended: Option<Result<(), Failure>>,
    /// Records since the values that were sent last, and how many of them are being sent.
    held: u64,
    sending: u64,
}

impl<F: Format> Push<F> {
    pub fn new(counted: Counted, client: Client, format: F, interval: Duration) -> Self {
        Self {
            counted,
            client: Arc::new(client),
            format,
            interval,
            next: Instant::now() + interval,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            running: None,
            ended: None,
            held: 0,
            sending: 0,
        }
    }

    /// Notes what has ended, and starts what is due.
    async fn advance(&mut self) {
        if self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            self.end().await;
        }
        if self.running.is_none() && self.next <= Instant::now() {
            self.next = Instant::now() + self.interval;
            self.start();
        }
    }

    fn start(&mut self) {
        let requests = self.format.requests(&self.counted.lock().table, now());
        self.sending = self.held;
        self.running = Some(tokio::spawn(send::<F>(Arc::clone(&self.client), requests)));
    }

    /// Waits for what is being sent.
    async fn end(&mut self) {
        let Some(running) = &mut self.running else { return };
        let result = running.await.unwrap_or_else(|error| Err(Failure::unavailable(error.to_string())));
        self.running = None;
        match &result {
            Ok(()) => {
                self.held -= self.sending;
                self.backoff.reset();
            }
            Err(_) => self.next = Instant::now() + self.backoff.pause(),
        }
        self.ended = Some(result);
    }
}

async fn send<F: Format>(client: Arc<Client>, requests: Vec<Bytes>) -> Result<(), Failure> {
    for request in requests {
        let answer = timeout(PATIENCE, client.post(request, F::HEADERS)).await;
        let late = |_| Err(Failure::unavailable(format!("no answer within {} seconds", PATIENCE.as_secs())));
        F::check(&answer.unwrap_or_else(late)?)?;
    }
    Ok(())
}

impl<F: Format> Sink for Push<F> {
    const MOST: usize = 1024;
    const IS_ATTEMPT: bool = false;

    fn servers(&self) -> Vec<(String, u16)> {
        vec![self.client.server()]
    }

    fn disconnect(&mut self) {}

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        // Counted once: nothing before it waits, so that no attempt ends there.
        self.counted.count(records);
        self.held += records.len() as u64;
        self.advance().await;
        Ok(())
    }

    async fn idle(&mut self) -> Result<(), Failure> {
        self.advance().await;
        Ok(())
    }

    fn attempted(&mut self) -> Option<Result<(), Failure>> {
        self.ended.take()
    }

    fn held(&self) -> u64 {
        self.held
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + LAST_VALUES;
        self.end().await;
        loop {
            self.start();
            self.end().await;
            match self.ended.take() {
                Some(Err(failure)) if failure.kind == FailureKind::Unavailable && Instant::now() < until => {
                    sleep_until(self.next).await;
                }
                Some(result) => return result,
                None => return Ok(()),
            }
        }
    }
}
