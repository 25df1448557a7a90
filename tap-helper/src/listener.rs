//! The socket on which the agent sends its requests.

use std::{
    fs, future,
    io::{self, ErrorKind},
    os::unix::fs::FileTypeExt as _,
    path::Path,
};

use nix::sys::stat::{Mode, umask};
use podtap_model::{DesiredState, MAX_MESSAGE, Renewal, Request, Response};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    select,
};
use tracing::warn;

/// This many unreadable messages at once end the connection: a compromised agent must not fill this process's memory with answers.
const MAX_REJECTIONS: usize = 16;

/// Listens for the agent, and serves one peer: the newest one.
pub struct Listener {
    socket: UnixListener,
    agent: u32,
    peer: Option<Peer>,
}

struct Peer {
    stream: UnixStream,
    input: Vec<u8>,
    /// Bytes of `input` after its last complete line.
    unfinished: usize,
    output: Vec<u8>,
    /// A report to send when the peer has taken `output`; a newer one replaces it.
    report: Option<Vec<u8>>,
    /// Counters to send, likewise.
    counters: Option<Vec<u8>>,
}

/// What ended a wait.
pub enum Incoming {
    /// A process connected; whether it is the agent.
    Connection(bool),
    /// The peer sent something, or took some output.
    Requests(Box<Requests>),
}

/// What the agent sent: of each kind, the newest.
#[derive(Debug, Default)]
pub struct Requests {
    /// A new desired state.
    pub desired: Option<DesiredState>,
    /// A renewal.
    pub renewal: Option<Renewal>,
    /// The number of a request for counters.
    pub counters: Option<u64>,
}

impl Listener {
    /// Listens at a path that owner and group may use (mode 0660). Replaces a socket that a dead helper left there, and nothing else.
    pub fn open(path: &Path, agent: u32) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(ErrorKind::AlreadyExists, "the path exists and is not a socket")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Before the socket exists, so that it never has wider rights. Nothing else in this program creates files.
        let before = umask(Mode::from_bits_truncate(0o117));
        let socket = UnixListener::bind(path);
        umask(before);
        Ok(Self { socket: socket?, agent, peer: None })
    }

    /// Waits for a connection or for messages of the peer, and meanwhile sends what that has not taken yet. Cancel safe: after the wait,
    /// nothing here waits.
    pub async fn next(&mut self) -> Incoming {
        let ready = select! {
            connection = self.socket.accept() => Some(connection),
            () = ready(self.peer.as_ref()) => None,
        };
        match ready {
            Some(Ok((stream, _))) => Incoming::Connection(self.admit(stream)),
            // The connection was closed again.
            Some(Err(_)) => Incoming::Connection(false),
            None => {
                self.flush();
                Incoming::Requests(Box::new(self.read()))
            }
        }
    }

    /// Makes a connection the peer if it is the agent's: whether it is. One of this process's own user is a [`probe`](crate::probe),
    /// which waits for the connection to be closed.
    fn admit(&mut self, stream: UnixStream) -> bool {
        let user = stream.peer_cred().map(|credentials| credentials.uid());
        if user.as_ref().is_ok_and(|user| *user == self.agent) {
            let (input, output) = (Vec::new(), Vec::new());
            self.peer = Some(Peer { stream, input, unfinished: 0, output, report: None, counters: None });
            return true;
        }
        if user.as_ref().is_ok_and(|user| *user == rustix::process::geteuid().as_raw()) {
            return false;
        }
        let user = user.map_or_else(|error| error.to_string(), |user| user.to_string());
        warn!(user, agent = self.agent, "peer refused");
        false
    }

    /// Takes the messages that have arrived. Those that cannot be read are answered and dropped.
    fn read(&mut self) -> Requests {
        let mut requests = Requests::default();
        let Some(peer) = self.peer.as_mut() else { return requests };
        let (open, too_long) = peer.read();
        let mut rejections = Vec::new();
        for line in peer.lines() {
            match serde_json::from_slice(&line) {
                Ok(Request::Apply(update)) => match update.decode() {
                    Ok(desired) => requests.desired = Some(desired),
                    Err(error) => rejections.push(error.to_string()),
                },
                Ok(Request::Renew(renewal)) => requests.renewal = Some(renewal),
                Ok(Request::Counters(number)) => requests.counters = Some(number),
                Err(error) => rejections.push(format!("not a message that the tap-helper knows: {error}")),
            }
            if rejections.len() == MAX_REJECTIONS {
                break;
            }
        }
        if too_long {
            rejections.push(format!("a message is longer than {MAX_MESSAGE} bytes"));
        }
        let ends = !open || too_long || rejections.len() >= MAX_REJECTIONS;
        for rejection in rejections {
            warn!(error = rejection, "message rejected");
            self.send(&Response::Rejected(rejection));
        }
        if ends {
            self.peer = None;
        }
        requests
    }

    /// Sends a message as soon as the peer takes it. Of unsent reports only the newest is kept, and of counters.
    pub fn send(&mut self, message: &Response) {
        let Some(peer) = self.peer.as_mut() else { return };
        // Every value of these types can be written.
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        match message {
            Response::Rejected(_) => peer.output.extend_from_slice(&line),
            Response::Report(_) => peer.report = Some(line),
            Response::Counters(_) => peer.counters = Some(line),
        }
        self.flush();
    }

    /// Sends what the peer takes now.
    fn flush(&mut self) {
        if self.peer.as_mut().is_some_and(|peer| peer.write().is_err()) {
            self.peer = None;
        }
    }
}

/// Waits until the peer has sent something, or has room for unsent output. An error shows when it is read.
async fn ready(peer: Option<&Peer>) {
    let Some(peer) = peer else { return future::pending().await };
    let writable = if peer.output.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
    let _ = peer.stream.ready(writable).await;
}

impl Peer {
    /// Reads what has arrived: whether the peer may send more, and whether it sent too much.
    fn read(&mut self) -> (bool, bool) {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return (false, false),
                Ok(count) => {
                    let arrived = &chunk[..count];
                    let end = arrived.iter().rposition(|byte| *byte == b'\n');
                    self.unfinished = end.map_or(self.unfinished + count, |end| count - end - 1);
                    self.input.extend_from_slice(arrived);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (error.kind() == ErrorKind::WouldBlock, false),
            }
            if self.unfinished > MAX_MESSAGE {
                return (true, true);
            }
            // Complete lines are processed before more is read, so that they cannot pile up.
            if self.input.len() > MAX_MESSAGE {
                return (true, false);
            }
        }
    }

    /// Takes the complete lines.
    fn lines(&mut self) -> Vec<Vec<u8>> {
        let Some(end) = self.input.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.input.split_off(end + 1);
        let complete = std::mem::replace(&mut self.input, rest);
        complete.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
    }

    fn write(&mut self) -> io::Result<()> {
        loop {
            if self.output.is_empty() {
                match self.report.take().or_else(|| self.counters.take()) {
                    Some(line) => self.output = line,
                    None => return Ok(()),
                }
            }
            match self.stream.try_write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
