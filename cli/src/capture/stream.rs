//! The stream of a capture's pod, through a port that the API server forwards.
//!
//! The pod keeps what was not confirmed: after a connection was cut, the stream continues where it ended. Confirmations are also how the pod
//! knows that this program runs (docs/collector.md, "Streaming to a client"). What comes is always read, since a connection that is not read
//! carries no confirmations either; confirmed is what was written, so that the pod keeps back what this program has no room for.

use std::time::Duration;

use kube::api::Portforwarder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, split},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    blocks::{Blocks, Counts, Malformed},
    objects::PORT,
    output::Writing,
    session::Session,
};
use crate::{
    exit::{Exit, Failure, Outcome},
    forward::not_forwarded,
    pod_state::State,
};

/// How often the pod is told that this program runs.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Bytes after which the pod is told that they were written.
const CONFIRMED_EVERY: u64 = 1 << 20;
/// A connection that is silent for so long may be cut: another one is made. The pod sends statistics every 10 seconds once there are frames.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the end of the stream may take to be written: as long as the pod waits for its confirmation.
const LAST: Duration = Duration::from_secs(20);
const BUFFER: usize = 1 << 20;
const RETRY: Duration = Duration::from_millis(500);

/// Why a stream is over.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The pod has sent all of it.
    Complete,
    /// Blocks are not taken any more.
    NotRead,
    /// The pod has ended without that, and why.
    Cut(String),
}

/// Why a connection is over.
#[derive(PartialEq, Eq)]
enum Closed {
    /// The pod has ended the stream, and all of it was written.
    Complete,
    Cut,
    NotRead,
}

/// A stream that is read.
pub struct Stream<'a> {
    session: &'a Session,
    pod: &'a str,
    /// Where whole blocks go.
    output: &'a Writing,
    blocks: Blocks,
    /// How far it has come, and what was confirmed, as places in the stream.
    received: u64,
    confirmed: u64,
    /// Whether the pod has closed the last connection with nothing left to be written, as it does at the end of the stream.
    has_all: bool,
    /// How long the pod waits for this program.
    patience: Duration,
}

impl<'a> Stream<'a> {
    /// Nothing is read yet.
    pub fn new(session: &'a Session, pod: &'a str, blocks: Blocks, output: &'a Writing, patience: Duration) -> Self {
        Self { session, pod, output, blocks, received: 0, confirmed: 0, has_all: false, patience }
    }

    /// Reads until its end. Connects again for as long as the pod waits for that.
    pub async fn read(&mut self, on_blocks: &mut impl FnMut(&Counts)) -> Outcome<End> {
        let mut contact = Instant::now();
        loop {
            match timeout(ANSWER, self.session.pods().portforward(self.pod, &[PORT])).await {
                Ok(Ok(forwarder)) => match self.follow(forwarder, &mut contact, on_blocks).await? {
                    Closed::Complete => return Ok(End::Complete),
                    Closed::NotRead => return Ok(End::NotRead),
                    Closed::Cut => {}
                },
                Ok(Err(error)) => {
                    let failure = not_forwarded(error, self.pod);
                    if failure.exit == Exit::NotPermitted && self.received == 0 {
                        return Err(failure);
                    }
                }
                Err(_) => {}
            }
            match timeout(ANSWER, self.session.state(self.pod)).await {
                Ok(Ok(State::Ended(_))) if self.has_all => return Ok(End::Complete),
                Ok(Ok(State::Ended(why))) => return Ok(End::Cut(why)),
                Ok(Ok(State::Runs | State::Waits(_))) => contact = Instant::now(),
                Ok(Err(_)) | Err(_) => {}
            }
            if contact.elapsed() > self.patience {
                let seconds = self.patience.as_secs();
                return Ok(End::Cut(format!("it was without contact for {seconds} seconds")));
            }
            sleep(RETRY).await;
        }
    }

    /// Reads from a connection until it is over.
    async fn follow(
        &mut self,
        mut forwarder: Portforwarder,
        contact: &mut Instant,
        on_blocks: &mut impl FnMut(&Counts),
    ) -> Outcome<Closed> {
        let Some(stream) = forwarder.take_stream(PORT) else {
            return Err(Failure::error("the API server forwards no port"));
        };
        let (mut reader, mut writer) = split(stream);
        // It tells where the stream continues.
        if writer.write_all(&self.received.to_le_bytes()).await.is_err() {
            return Ok(Closed::Cut);
        }
        let Ok(Ok(from)) = timeout(ANSWER, reader.read_u64_le()).await else { return Ok(Closed::Cut) };
        self.begin(from)?;
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; BUFFER];
        let (mut last, mut ended, mut leaves) = (Instant::now(), None, false);
        loop {
            let is_due = tokio::select! {
                () = self.output.closed() => return Ok(Closed::NotRead),
                () = self.session.left(), if ended.is_none() => {
                    (ended, leaves) = (Some(Instant::now()), true);
                    true
                }
                _ = heartbeat.tick() => true,
                () = self.output.progress() => self.written() >= self.confirmed + CONFIRMED_EVERY || ended.is_some(),
                read = reader.read(&mut buffer), if ended.is_none() => {
                    match read {
                        Ok(0) => ended = Some(Instant::now()),
                        Ok(count) => {
                            last = Instant::now();
                            *contact = last;
                            self.take(&buffer[..count], on_blocks)?;
                        }
                        Err(_) => return Ok(Closed::Cut),
                    }
                    ended.is_some()
                }
            };
            if is_due {
                self.confirmed = self.confirmed.max(self.written());
                if writer.write_all(&self.confirmed.to_le_bytes()).await.is_err() {
                    return Ok(Closed::Cut);
                }
            }
            match ended {
                // Of a block that is not whole, nothing is written.
                Some(_) if leaves && self.confirmed == self.received => {
                    let _ = writer.shutdown().await;
                    return Ok(Closed::NotRead);
                }
                // The pod waits for this.
                Some(_) if self.confirmed == self.received && self.blocks.is_at_an_end() => {
                    let _ = writer.shutdown().await;
                    self.has_all = true;
                    return Ok(if self.has_ended_by_itself().await { Closed::Complete } else { Closed::Cut });
                }
                Some(since) if since.elapsed() > LAST => return Ok(Closed::Cut),
                None if last.elapsed() > SILENCE => return Ok(Closed::Cut),
                _ => {}
            }
        }
    }

    /// Takes note of where the stream begins: where it was before, unless this is the first connection, or the pod has kept less.
    fn begin(&mut self, from: u64) -> Outcome<()> {
        if self.received > 0 && from != self.received {
            return Err(Failure::error(
                "what followed was read by another --resume, or overwritten by newer frames while this program was away: continue with \
                 --resume, in another file",
            ));
        }
        if self.received == 0 {
            (self.received, self.confirmed) = (from, from);
        }
        self.session.set_connected();
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], on_blocks: &mut impl FnMut(&Counts)) -> Outcome<()> {
        self.received += bytes.len() as u64;
        self.has_all = false;
        let whole = self
            .blocks
            .push(bytes)
            .map_err(|Malformed| {
                let message = "sends something else than frames: is this program of the release of the installation? See kubectl podtap version";
                Failure::error(format!("the pod {} {message}", self.pod))
            })?;
        self.output.send(whole);
        on_blocks(&self.blocks.counts);
        Ok(())
    }

    /// Bytes of the stream that were written, or need not be: a block that is not whole waits here.
    fn written(&self) -> u64 {
        self.output.written() + (self.received - self.blocks.counts.bytes)
    }

    /// Whether the pod ends, as it does when the stream is complete: a connection may also be closed in between.
    async fn has_ended_by_itself(&self) -> bool {
        let deadline = Instant::now() + ANSWER;
        while Instant::now() < deadline {
            if !matches!(timeout(ANSWER, self.session.state(self.pod)).await, Ok(Ok(State::Runs | State::Waits(_)))) {
                return true;
            }
            sleep(RETRY).await;
        }
        false
    }
}
