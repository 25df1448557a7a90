//! The stream of a capture's pod, through a port that the API server forwards.
//!
//! The pod keeps what was not confirmed: after a connection was cut, the stream continues where it ended. Confirmations are also how the pod
//! knows that this program runs (docs/collector.md, "A stream for one client").

use std::time::Duration;

use kube::api::Portforwarder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, split},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    blocks::{Blocks, Malformed},
    job::{ABANDONED_AFTER, PORT},
    session::Session,
};
use crate::{
    exit::{Exit, Failure, Outcome},
    forward::not_forwarded,
};

/// How often the pod is told that this program runs.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Bytes after which the pod is told that they have come.
const CONFIRMED_EVERY: u64 = 1 << 20;
/// The pod sends statistics every 10 seconds: a connection that is silent for longer is cut.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
const BUFFER: usize = 1 << 20;
const RETRY: Duration = Duration::from_millis(500);

/// Why a stream is over.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The pod has sent all of it.
    Complete,
    /// Blocks are not taken any more.
    NotRead,
}

/// Why a connection is over.
enum Cut {
    Closed,
    NotRead,
}

/// A stream that is read.
pub struct Stream<'a> {
    session: &'a Session,
    pod: &'a str,
    /// Where whole blocks go.
    output: mpsc::Sender<Vec<u8>>,
    blocks: Blocks,
    /// Bytes that have come.
    received: u64,
}

impl<'a> Stream<'a> {
    /// Nothing is read yet.
    pub fn new(session: &'a Session, pod: &'a str, blocks: Blocks, output: mpsc::Sender<Vec<u8>>) -> Self {
        Self { session, pod, output, blocks, received: 0 }
    }

    /// Reads until its end. Connects again for as long as the pod waits for that.
    pub async fn read(&mut self, on_blocks: &mut impl FnMut(&Blocks)) -> Outcome<End> {
        let mut contact = Instant::now();
        loop {
            match timeout(ANSWER, self.session.pods().portforward(self.pod, &[PORT])).await {
                Ok(Ok(forwarder)) => match self.follow(forwarder, &mut contact, on_blocks).await? {
                    Cut::NotRead => return Ok(End::NotRead),
                    Cut::Closed => {}
                },
                Ok(Err(error)) => {
                    let failure = not_forwarded(error, self.pod);
                    if failure.exit == Exit::NotPermitted {
                        return Err(failure);
                    }
                }
                Err(_) => {}
            }
            if matches!(timeout(ANSWER, self.session.is_running(self.pod)).await, Ok(Ok(false))) {
                return Ok(End::Complete);
            }
            if contact.elapsed() > ABANDONED_AFTER {
                let seconds = ABANDONED_AFTER.as_secs();
                return Err(Failure::error(format!(
                    "the capture has ended: it was without contact for {seconds} seconds"
                )));
            }
            sleep(RETRY).await;
        }
    }

    /// Reads from a connection until it is over.
    async fn follow(
        &mut self,
        mut forwarder: Portforwarder,
        contact: &mut Instant,
        on_blocks: &mut impl FnMut(&Blocks),
    ) -> Outcome<Cut> {
        let Some(stream) = forwarder.take_stream(PORT) else {
            return Err(Failure::error("the API server forwards no port"));
        };
        let (mut reader, mut writer) = split(stream);
        let mut confirmed = self.received;
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; BUFFER];
        let mut pending = None;
        let mut last = Instant::now();
        loop {
            tokio::select! {
                biased;
                // The first one at once: it tells where the stream continues.
                _ = heartbeat.tick() => {
                    if writer.write_all(&self.received.to_le_bytes()).await.is_err() || last.elapsed() > SILENCE {
                        return Ok(Cut::Closed);
                    }
                    confirmed = self.received;
                }
                () = self.output.closed() => return Ok(Cut::NotRead),
                permit = self.output.reserve(), if pending.is_some() => match (permit, pending.take()) {
                    (Ok(permit), Some(blocks)) => permit.send(blocks),
                    _ => return Ok(Cut::NotRead),
                },
                read = reader.read(&mut buffer), if pending.is_none() => {
                    let Ok(count @ 1..) = read else {
                        // At the end of the stream, the pod waits for the last number.
                        let _ = writer.write_all(&self.received.to_le_bytes()).await;
                        let _ = writer.shutdown().await;
                        return Ok(Cut::Closed);
                    };
                    last = Instant::now();
                    *contact = last;
                    self.received += count as u64;
                    let whole = self.blocks.push(&buffer[..count]).map_err(|Malformed| {
                        Failure::error(format!("the pod {} sends something else than frames", self.pod))
                    })?;
                    pending = Some(whole).filter(|blocks| !blocks.is_empty());
                    on_blocks(&self.blocks);
                    if self.received - confirmed >= CONFIRMED_EVERY {
                        if writer.write_all(&self.received.to_le_bytes()).await.is_err() {
                            return Ok(Cut::Closed);
                        }
                        confirmed = self.received;
                    }
                }
            }
        }
    }
}
