use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use podtap_model::{Counters, DesiredUpdate, NodeStatus, Renewal, Request, Response, State};

use super::Desired;

/// The user that the agent runs as, and its group.
pub const AGENT_UID: u32 = 2_000_014_789;

/// Timeout for a message.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The agent's connection to the helper's socket.
#[derive(Debug)]
pub struct Agent {
    reader: BufReader<UnixStream>,
    /// The status in the last report.
    last: Option<NodeStatus>,
}

impl Agent {
    /// Connects as a user, with the group of the same ID.
    ///
    /// # Errors
    /// When the mode of the socket forbids it.
    ///
    /// # Panics
    /// When the test may not change its user.
    pub fn connect(socket: &Path, user: u32) -> io::Result<Self> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_user(user);
                UnixStream::connect(socket)
            });
            let stream = thread.join().expect("the thread does not panic")?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            Ok(Self { reader: BufReader::new(stream), last: None })
        })
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Requests a desired state.
    ///
    /// # Panics
    /// When the connection is closed.
    #[track_caller]
    pub fn request(&mut self, desired: &Desired) {
        self.apply(desired.update());
    }

    /// Sends an update unchanged.
    ///
    /// # Panics
    /// When the connection is closed.
    #[track_caller]
    pub fn apply(&mut self, update: DesiredUpdate) {
        self.send(&Request::Apply(update));
    }

    /// Renews the mirrors of a `NodeTap`.
    ///
    /// # Panics
    /// When the connection is closed.
    #[track_caller]
    pub fn renew(&mut self, renewal: Renewal) {
        self.send(&Request::Renew(renewal));
    }

    #[track_caller]
    fn send(&mut self, message: &Request) {
        let mut line = serde_json::to_vec(message).expect("JSON");
        line.push(b'\n');
        self.send_bytes(&line).expect("the helper is connected");
    }

    /// Requests the counters, and waits for them. Skips reports that arrive before.
    ///
    /// # Panics
    /// When they do not arrive within ten seconds.
    #[track_caller]
    pub fn counters(&mut self, request: u64) -> Counters {
        self.send(&Request::Counters(request));
        loop {
            match self.receive().expect("the helper responds") {
                Response::Counters(counters) if counters.request == request => return counters,
                Response::Report(report) => self.last = Some(report.status),
                other => panic!("response to request {request}: {other:?}"),
            }
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// When none arrives for ten seconds, or the connection is closed.
    pub fn receive(&mut self) -> io::Result<Response> {
        let mut line = String::new();
        match self.reader.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => serde_json::from_str(&line).map_err(io::Error::other),
        }
    }

    /// Whether a message has arrived that was not read yet.
    #[must_use]
    pub fn has_message(&self) -> bool {
        let mut polled = libc::pollfd { fd: self.reader.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        #[expect(unsafe_code, reason = "std has no poll")]
        // SAFETY: one live pollfd.
        let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
        ready > 0 || !self.reader.buffer().is_empty()
    }

    /// Waits for a status that meets a condition.
    ///
    /// # Panics
    /// When none arrives within ten seconds.
    #[track_caller]
    pub fn until(&mut self, what: &str, condition: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let start = Instant::now();
        loop {
            match self.receive() {
                Ok(Response::Report(report)) => {
                    self.last = Some(report.status.clone());
                    if condition(&report.status) {
                        return report.status;
                    }
                }
                // The response to a request whose caller did not wait for it.
                Ok(Response::Counters(_)) => {}
                Ok(Response::Rejected(why)) => panic!("{what}: rejected: {why}"),
                Err(error) => panic!("{what}: {error}; the last status: {:#?}", self.last),
            }
            assert!(start.elapsed() < TIMEOUT, "{what}: timed out; the last status: {:#?}", self.last);
        }
    }

    /// Requests a desired state, and waits until every sender and receiver of it is active, and no other is left.
    ///
    /// # Panics
    /// After ten seconds.
    #[track_caller]
    pub fn establish(&mut self, desired: &Desired) -> NodeStatus {
        self.request(desired);
        self.until("everything is active", |status| {
            let senders = status.senders.iter().map(|sender| sender.state);
            let receivers = status.receivers.iter().map(|receiver| receiver.state);
            status.observed_generation == Some(desired.generation)
                && senders.chain(receivers).all(|state| state == State::Active)
        })
    }
}

/// Changes the user of the calling thread only.
#[expect(unsafe_code, reason = "the C library's functions change all threads")]
fn become_user(user: u32) {
    // SAFETY: system calls without pointers, except for an empty list.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) == 0
            && libc::syscall(libc::SYS_setresgid, user, user, user) == 0
            && libc::syscall(libc::SYS_setresuid, user, user, user) == 0
    };
    assert!(done, "cannot change the user (root only): {}", io::Error::last_os_error());
}
