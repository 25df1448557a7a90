use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tap_wire::{Counters, Desired, FromHelper, Report, State, ToHelper};

/// The user that the agent runs as, and its group.
pub const AGENT_UID: u32 = 65532;

/// Longest wait for a report.
const PATIENCE: Duration = Duration::from_secs(10);

/// The other end of the helper's socket.
#[derive(Debug)]
pub struct Agent {
    reader: BufReader<UnixStream>,
    /// The last report that was read.
    last: Option<Report>,
}

impl Agent {
    /// Knocks as a user, with the group of the same number.
    ///
    /// # Errors
    /// When the file's rights forbid it.
    ///
    /// # Panics
    /// Without the right to change users.
    pub fn connect(socket: &Path, user: u32) -> io::Result<Self> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_user(user);
                UnixStream::connect(socket)
            });
            let stream = thread.join().expect("the thread does not panic")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(Self { reader: BufReader::new(stream), last: None })
        })
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When nobody takes them.
    pub fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends a desired state.
    ///
    /// # Panics
    /// When it is not taken.
    #[track_caller]
    pub fn want(&mut self, desired: &Desired) {
        self.tell(&ToHelper::Desired(desired.clone()));
    }

    #[track_caller]
    fn tell(&mut self, message: &ToHelper) {
        let mut line = serde_json::to_vec(message).expect("it can be written");
        line.push(b'\n');
        self.say(&line).expect("the helper listens");
    }

    /// Asks for counters, and waits for them. Reports that come first are passed over.
    ///
    /// # Panics
    /// When they do not come within ten seconds.
    #[track_caller]
    pub fn counters(&mut self, request: u64) -> Counters {
        self.tell(&ToHelper::Counters(request));
        loop {
            match self.hear().expect("the helper answers") {
                FromHelper::Counters(counters) if counters.request == request => return counters,
                FromHelper::Report(report) => self.last = Some(report),
                other => panic!("to the request {request}: {other:?}"),
            }
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// When there is none for ten seconds, or never again.
    pub fn hear(&mut self) -> io::Result<FromHelper> {
        let mut line = String::new();
        match self.reader.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => serde_json::from_str(&line).map_err(io::Error::other),
        }
    }

    /// Whether something has come that was not read yet.
    #[must_use]
    pub fn has_spoken(&self) -> bool {
        let mut polled = libc::pollfd { fd: self.reader.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        #[expect(unsafe_code, reason = "std has no poll")]
        // SAFETY: one live pollfd.
        let ready = unsafe { libc::poll(&raw mut polled, 1, 0) };
        ready > 0 || !self.reader.buffer().is_empty()
    }

    /// Waits for a report of which something holds.
    ///
    /// # Panics
    /// When none comes within ten seconds.
    #[track_caller]
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Report) -> bool) -> Report {
        let start = Instant::now();
        loop {
            match self.hear() {
                Ok(FromHelper::Report(report)) => {
                    self.last = Some(report.clone());
                    if wanted(&report) {
                        return report;
                    }
                }
                // Asked for by somebody who did not wait.
                Ok(FromHelper::Counters(_)) => {}
                Ok(FromHelper::Rejected(why)) => panic!("{what}: rejected: {why}"),
                Err(error) => panic!("{what}: {error}; the last report: {:#?}", self.last),
            }
            assert!(start.elapsed() < PATIENCE, "{what}: not in time; the last report: {:#?}", self.last);
        }
    }

    /// Sends a desired state, and waits until all of it is in place, and nothing else.
    ///
    /// # Panics
    /// When it is not within ten seconds.
    #[track_caller]
    pub fn establish(&mut self, desired: &Desired) -> Report {
        self.want(desired);
        self.until("all is active", |report| {
            let senders = report.senders.iter().map(|sender| sender.status.state);
            let receivers = report.receivers.iter().map(|receiver| receiver.status.state);
            report.generation == desired.generation && senders.chain(receivers).all(|state| state == State::Active)
        })
    }
}

/// Changes the user of the calling thread, and of no other.
#[expect(unsafe_code, reason = "the C library's functions change all threads")]
fn become_user(user: u32) {
    // SAFETY: system calls without pointers but for an empty list.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) == 0
            && libc::syscall(libc::SYS_setresgid, user, user, user) == 0
            && libc::syscall(libc::SYS_setresuid, user, user, user) == 0
    };
    assert!(done, "root may be anyone: {}", io::Error::last_os_error());
}
