//! `tap-helper serve`: one thread that waits for the agent, for the kernel, and for nothing else.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use tap_wire::{FromHelper, Report};

use crate::{
    contract::Door,
    lock::Lock,
    log::Log,
    node::{Node, NodeError, Source},
};

/// How often a helper that found another one at work looks whether that one has gone.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The kernel cannot be asked.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The agent cannot be heard.
    #[error("cannot listen at {path}: {error}")]
    Listen {
        /// Where.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The lock, signals or waiting failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// Serves until SIGTERM or SIGINT. Leaves the kernel's state as it is then: the next helper goes on with it.
pub fn serve(path: &Path, agent: u32, log: Log) -> Result<(), ServeError> {
    let signals = signals()?;
    raise_descriptor_limit();
    let node = Node::open(log)?;
    let Some(_lock) = wait_for_lock(&node, &signals, log)? else { return Ok(()) };
    let listen = |error| ServeError::Listen { path: path.display().to_string(), error };
    let door = Door::open(path, agent, log).map_err(listen)?;
    log.info("serving", &[("socket", &path.display().to_string()), ("agent", &agent.to_string())]);
    let mut server = Server { node, door, sent: None };
    while server.step(&signals)? {}
    log.info("ending", &[]);
    // So that the agent sees at once that nobody is there. If it cannot be removed, the next helper replaces it.
    let _ = std::fs::remove_file(path);
    Ok(())
}

struct Server {
    node: Node,
    door: Door,
    sent: Option<Report>,
}

/// What poll said.
#[derive(Default)]
struct Ready {
    signal: bool,
    listener: bool,
    peer: bool,
    sources: Vec<Source>,
}

impl Server {
    /// Waits for something and does it; whether to go on.
    fn step(&mut self, signals: &SignalFd) -> Result<bool, ServeError> {
        let ready = self.wait(signals)?;
        if ready.signal {
            return Ok(false);
        }
        let now = Instant::now();
        if ready.listener && self.door.accept() {
            self.sent = None;
        }
        let mut counters = None;
        if ready.peer {
            self.door.flush();
            let heard = self.door.receive();
            if let Some(desired) = heard.desired {
                self.node.want(desired, now)?;
                self.sent = None;
            }
            counters = heard.counters;
        }
        for source in ready.sources {
            self.node.heard(source, now)?;
        }
        self.node.turn(now)?;
        self.tell();
        // Last: what an order that came with it makes or finds is counted, too.
        if let Some(request) = counters {
            let counters = self.node.counters(request);
            self.door.send(&FromHelper::Counters(counters));
        }
        self.node.prepare();
        Ok(true)
    }

    /// Sends the report if it is not the one that was sent last.
    fn tell(&mut self) {
        let report = self.node.report();
        if let Some(report) = report.filter(|report| self.sent.as_ref() != Some(report)) {
            self.door.send(&FromHelper::Report(report.clone()));
            self.sent = Some(report);
        }
    }

    fn wait(&self, signals: &SignalFd) -> Result<Ready, ServeError> {
        let mut descriptors = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        descriptors.extend(self.door.descriptors());
        let first = descriptors.len();
        let sources = self.node.descriptors();
        descriptors.extend(sources.iter().map(|(_, descriptor)| PollFd::new(*descriptor, PollFlags::POLLIN)));
        match poll(&mut descriptors, timeout(self.node.deadline())) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Ready::default()),
            Err(error) => return Err(ServeError::System("wait", error.into())),
        }
        let is_ready = |position: usize| descriptors.get(position).is_some_and(|polled| polled.any().unwrap_or(true));
        Ok(Ready {
            signal: is_ready(0),
            listener: is_ready(1),
            peer: first > 2 && is_ready(2),
            sources: sources
                .iter()
                .enumerate()
                .filter(|(position, _)| is_ready(first + position))
                .map(|(_, (source, _))| *source)
                .collect(),
        })
    }
}

/// Until a moment, rounded up to the next millisecond, so that it has come when poll returns.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    let rounded = u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    PollTimeout::try_from(Duration::from_millis(rounded)).unwrap_or(PollTimeout::MAX)
}

/// SIGTERM and SIGINT as something to wait for: a first process of a container ignores them otherwise.
fn signals() -> Result<SignalFd, ServeError> {
    let failed = |error: nix::errno::Errno| ServeError::System("receive signals", error.into());
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block().map_err(failed)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// Each tapped pod takes four descriptors; with 250 pods the usual limit of 1024 is near. Without the right to raise it, or
/// above the hard limit, pods beyond it fail with a message of their own.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// During an upgrade the old helper may still be ending. None if a signal came first.
fn wait_for_lock(node: &Node, signals: &SignalFd, log: Log) -> Result<Option<Lock>, ServeError> {
    let mut told = false;
    loop {
        if let Some(lock) = Lock::take(node.own()).map_err(|error| ServeError::System("take the node's lock", error))? {
            return Ok(Some(lock));
        }
        if !told {
            log.info("waiting for another tap-helper of this node to end", &[]);
            told = true;
        }
        let mut descriptor = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let pause = PollTimeout::try_from(LOCK_PAUSE).unwrap_or(PollTimeout::ZERO);
        if poll(&mut descriptor, pause).is_ok_and(|count| count > 0) {
            return Ok(None);
        }
    }
}
