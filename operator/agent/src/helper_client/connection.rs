//! The connection to the tap-helper: one line of JSON per message, see [`HelperClient`](super::HelperClient).

use std::{io, path::Path, sync::Arc, time::Duration};

use podtap_model::{Counters, DesiredUpdate, MAX_MESSAGE, Renewal, Report, Request, Response, UnixTime};
use podtap_runtime::{backoff::Backoff, clock::ServerClock, http::Health};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

/// The containers of the helper pod start together: the socket exists within milliseconds, or something is wrong.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long the tap-helper may take to listen before that is worth a warning.
const START: Duration = Duration::from_secs(5);

/// How much of the receive buffer is kept between two messages.
const KEPT_BUFFER: usize = 16 << 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Disconnected {
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("the tap-helper closed the connection")]
    Closed,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the tap-helper sent a line of more than {MAX_MESSAGE} bytes")]
    LineTooLong,
    #[error("the tap-helper sent an invalid message: {0}")]
    InvalidMessage(#[source] serde_json::Error),
    #[error("the client was dropped")]
    ClientDropped,
}

/// The connection's ends of the client's channels. Each holds the newest value only.
#[derive(Debug)]
pub struct Channels {
    /// The newest [`Request::Apply`].
    pub desired: watch::Receiver<Option<Request>>,
    /// The newest renewal.
    pub renewals: watch::Receiver<Option<Renewal>>,
    pub clock: ServerClock,
    /// How many connections there were.
    pub connections: watch::Sender<u64>,
    /// Number of the newest request for counters.
    pub requests: watch::Receiver<u64>,
    /// The newest report.
    pub reports: watch::Sender<Option<Report>>,
    /// The newest counters.
    pub counters: watch::Sender<Option<Arc<Counters>>>,
    /// Ready while there is a connection.
    pub health: Health,
}

/// Keeps up a connection to the tap-helper at `socket` until the client is dropped.
pub async fn run(socket: &Path, mut channels: Channels) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    // When to warn that there is no connection; none after that.
    let mut warn_at = Some(Instant::now() + START);
    loop {
        let reason = match UnixStream::connect(socket).await {
            Ok(stream) => {
                info!("connected to the tap-helper");
                warn_at = Some(Instant::now());
                channels.health.set_ready(true);
                let reason = exchange(stream, &mut channels, &mut backoff).await;
                channels.health.set_ready(false);
                reason
            }
            Err(error) => Disconnected::Connect(error),
        };
        if matches!(reason, Disconnected::ClientDropped) {
            return;
        }
        // Once per disconnection: further attempts are not news.
        if warn_at.is_some_and(|at| at <= Instant::now()) {
            warn_at = None;
            warn!(
                error = %reason, socket = %socket.display(),
                "not connected to the tap-helper; mirrors stay as they are, retrying"
            );
        } else {
            debug!(error = %reason, "not connected to the tap-helper");
        }
        sleep(backoff.pause()).await;
    }
}

/// Sends and receives over one connection, until it ends.
async fn exchange(stream: UnixStream, channels: &mut Channels, backoff: &mut Backoff) -> Disconnected {
    let Channels { desired, renewals, clock, connections, requests, reports, counters, .. } = channels;
    let (reader, writer) = stream.into_split();
    // The API server's confirmation is not of this moment.
    renewals.mark_unchanged();
    connections.send_modify(|number| *number += 1);
    // Concurrently: two processes that both write and do not read would deadlock.
    tokio::select! {
        reason = send(writer, desired, renewals, clock, requests) => reason,
        reason = receive(reader, reports, counters, backoff) => reason,
    }
}

async fn send(
    mut writer: OwnedWriteHalf,
    desired: &mut watch::Receiver<Option<Request>>,
    renewals: &mut watch::Receiver<Option<Renewal>>,
    clock: &ServerClock,
    requests: &mut watch::Receiver<u64>,
) -> Disconnected {
    let mut next = desired.borrow_and_update().clone();
    loop {
        if let Some(line) = next.as_ref().and_then(encode) {
            if let Err(error) = writer.write_all(&line).await {
                return Disconnected::Io(error);
            }
            debug!(bytes = line.len(), "sent a request");
        }
        next = tokio::select! {
            // Updates first: renewals and counters are about the newest one.
            biased;
            Ok(()) = desired.changed() => desired.borrow_and_update().clone().map(|request| confirmed(request, clock)),
            Ok(()) = renewals.changed() => renewals.borrow_and_update().clone().map(Request::Renew),
            Ok(()) = requests.changed() => Some(Request::Counters(*requests.borrow_and_update())),
            else => return Disconnected::ClientDropped,
        };
    }
}

/// The request if it has just arrived from the API server.
fn confirmed(request: Request, clock: &ServerClock) -> Request {
    match request {
        Request::Apply(update) => Request::Apply(DesiredUpdate { now: Some(unix_time(clock)), ..update }),
        request => request,
    }
}

/// The API server's clock, in the protocol's type.
pub fn unix_time(clock: &ServerClock) -> UnixTime {
    UnixTime::from_seconds(clock.now().as_second())
}

/// The line of a request, unless the tap-helper would reject it.
fn encode(request: &Request) -> Option<Vec<u8>> {
    match serde_json::to_vec(request) {
        Ok(mut line) if line.len() <= MAX_MESSAGE => {
            line.push(b'\n');
            return Some(line);
        }
        Ok(line) => {
            warn!(bytes = line.len(), "the update is too long for the tap-helper; the previous one stays in force");
        }
        Err(error) => warn!(%error, "cannot encode the update; the previous one stays in force"),
    }
    None
}

async fn receive(
    reader: OwnedReadHalf,
    reports: &watch::Sender<Option<Report>>,
    counters: &watch::Sender<Option<Arc<Counters>>>,
    backoff: &mut Backoff,
) -> Disconnected {
    let mut reader = BufReader::with_capacity(4 << 10, reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.shrink_to(KEPT_BUFFER);
        let limit = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX) + 1;
        match (&mut reader).take(limit).read_until(b'\n', &mut line).await {
            Ok(0) => return Disconnected::Closed,
            Ok(_) if line.pop_if(|last| *last == b'\n').is_some() => {}
            Ok(_) if line.len() > MAX_MESSAGE => return Disconnected::LineTooLong,
            // The connection was closed within a line.
            Ok(_) => return Disconnected::Closed,
            Err(error) => return Disconnected::Io(error),
        }
        match serde_json::from_slice(&line) {
            Ok(Response::Report(report)) => {
                backoff.reset();
                debug!(generation = report.status.observed_generation, "received a report");
                reports.send_replace(Some(report));
            }
            Ok(Response::Counters(answer)) => {
                backoff.reset();
                counters.send_replace(Some(answer.into()));
            }
            Ok(Response::Rejected(error)) => {
                warn!(error, "the tap-helper rejected a request; the previous update stays in force");
            }
            Err(error) => return Disconnected::InvalidMessage(error),
        }
    }
}

#[cfg(test)]
mod tests;
