//! The socket on which the agent speaks.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::AsFd,
    os::unix::fs::FileTypeExt,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

use nix::{
    poll::{PollFd, PollFlags},
    sys::{
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, umask},
    },
};
use tap_wire::{Desired, FromHelper, MAX_MESSAGE, ToHelper};

use crate::log::Log;

/// So many messages in one go that nobody understands end the connection: whoever has taken over the agent must not fill this
/// process's memory with answers.
const MAX_REJECTIONS: usize = 16;

/// Listens, and speaks with one peer: the newest one.
pub struct Door {
    listener: UnixListener,
    agent: u32,
    peer: Option<Peer>,
    log: Log,
}

struct Peer {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// A report that waits until the peer has taken what is in `output`; a newer one takes its place.
    report: Option<Vec<u8>>,
    /// Counters that wait likewise.
    counters: Option<Vec<u8>>,
}

/// What the agent said: of each kind, the newest.
#[derive(Debug, Default)]
pub struct Heard {
    /// What the node is to hold.
    pub desired: Option<Desired>,
    /// The number of a request for counters.
    pub counters: Option<u64>,
}

impl Door {
    /// Listens at a path, as owner and group may (mode 0660). A socket that a dead helper left there is replaced; anything else is not.
    pub fn open(path: &Path, agent: u32, log: Log) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "something that is no socket is in its place",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Before the socket is there, so that it never has wider rights. Nothing else of this program makes files.
        let before = umask(Mode::from_bits_truncate(0o117));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, agent, peer: None, log })
    }

    /// What to wait for.
    #[must_use]
    pub fn descriptors(&self) -> Vec<PollFd<'_>> {
        let mut all = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if let Some(peer) = &self.peer {
            let writes = if peer.output.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            all.push(PollFd::new(peer.stream.as_fd(), PollFlags::POLLIN | writes));
        }
        all
    }

    /// Lets in whoever knocks and is the agent; whether somebody came in.
    pub fn accept(&mut self) -> bool {
        let mut came = false;
        // An error is that of one that knocked and went; the next event comes anyway.
        while let Ok((stream, _)) = self.listener.accept() {
            let user = getsockopt(&stream, PeerCredentials).map(|credentials| credentials.uid());
            match user {
                Ok(user) if user == self.agent && stream.set_nonblocking(true).is_ok() => {
                    let (input, output) = (Vec::new(), Vec::new());
                    self.peer = Some(Peer { stream, input, output, report: None, counters: None });
                    came = true;
                }
                user => {
                    let user = user.map_or_else(|error| error.to_string(), |user| user.to_string());
                    self.log.warn("peer refused", &[("user", &user), ("agent", &self.agent.to_string())]);
                }
            }
        }
        came
    }

    /// What has arrived. What cannot be read is answered, and goes no further.
    pub fn receive(&mut self) -> Heard {
        let mut heard = Heard::default();
        let Some(peer) = self.peer.as_mut() else { return heard };
        let (open, too_long) = peer.read();
        let mut rejections = Vec::new();
        for line in peer.lines() {
            match serde_json::from_slice(&line) {
                Ok(ToHelper::Desired(desired)) => heard.desired = Some(desired),
                Ok(ToHelper::Counters(request)) => heard.counters = Some(request),
                Err(error) => rejections.push(format!("this is not a message that the tap-helper knows: {error}")),
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
            self.log.warn("message rejected", &[("error", &rejection)]);
            self.send(&FromHelper::Rejected(rejection));
        }
        if ends {
            self.peer = None;
        }
        heard
    }

    /// Sends a message as soon as the peer takes it. Of reports that could not be sent yet, only the newest one is, and of counters.
    pub fn send(&mut self, message: &FromHelper) {
        let Some(peer) = self.peer.as_mut() else { return };
        // These types have no form that cannot be written.
        let Ok(mut line) = serde_json::to_vec(message) else { return };
        line.push(b'\n');
        match message {
            FromHelper::Rejected(_) => peer.output.extend_from_slice(&line),
            FromHelper::Report(_) => peer.report = Some(line),
            FromHelper::Counters(_) => peer.counters = Some(line),
        }
        self.flush();
    }

    /// Goes on sending.
    pub fn flush(&mut self) {
        if self.peer.as_mut().is_some_and(|peer| peer.write().is_err()) {
            self.peer = None;
        }
    }
}

impl Peer {
    /// Reads what is there: whether the peer may say more, and whether it said too much.
    fn read(&mut self) -> (bool, bool) {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return (false, false),
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (error.kind() == io::ErrorKind::WouldBlock, false),
            }
            let unfinished = self.input.iter().rev().take_while(|byte| **byte != b'\n').count();
            if unfinished > MAX_MESSAGE {
                return (true, true);
            }
            // Complete lines are taken before more is read: otherwise they could be of any number.
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
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
