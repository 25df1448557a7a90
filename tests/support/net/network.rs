use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// A network namespace that lives as long as this value.
#[derive(Debug)]
pub struct Network {
    file: File,
    path: PathBuf,
}

impl Network {
    /// Creates a network namespace with only a loopback device, which is up.
    ///
    /// # Panics
    /// When the test may not create one.
    #[must_use]
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be created (root only)");
            File::open("/proc/thread-self/ns/net").expect("/proc is mounted")
        });
        let file = file.join().expect("the thread does not panic");
        let path = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
        let network = Self { file, path };
        // IPv6 repeats multicast listener reports after this interval in milliseconds, by default a second. Shortened so that they do
        // not interfere with tests.
        for kind in ["default", "all"] {
            network.set(&format!("ipv6/conf/{kind}/mldv2_unsolicited_report_interval"), "1");
        }
        network.ip("link set lo up\n");
        network
    }

    /// Opens an existing network namespace by its path, and keeps it alive.
    ///
    /// # Panics
    /// If the file does not exist.
    #[must_use]
    #[track_caller]
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let path = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
        Self { file, path }
    }

    /// A path that other processes of the machine can open.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a function on a thread inside it.
    pub fn within<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
                inside()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command inside, and returns its output.
    ///
    /// # Errors
    /// When it fails, with its standard error.
    pub fn try_run(&self, command: &[&str], input: &str) -> Result<String, String> {
        self.within(|| {
            let mut child = Command::new(command[0])
                .args(&command[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}"));
            // A command that has already failed closes the pipe.
            let _ = std::io::Write::write_all(&mut child.stdin.take().expect("stdin is a pipe"), input.as_bytes());
            let output = child.wait_with_output().expect("a child can be waited for");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
        })
    }

    /// Runs a command inside, and returns its output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.try_run(&words, "").unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Runs `ip` with a batch of lines.
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        self.try_run(&["ip", "-batch", "-"], lines).unwrap_or_else(|error| panic!("{lines}: {error}"));
    }

    /// Runs `ip`, `tc` or `bridge` with `-j` among the arguments.
    ///
    /// # Panics
    /// When it fails or does not print a list.
    #[must_use]
    #[track_caller]
    pub fn json(&self, command: &str) -> Vec<Value> {
        self.try_json(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Like [`json`](Self::json), for something that may have been deleted.
    ///
    /// # Errors
    /// When the command fails.
    ///
    /// # Panics
    /// When it does not print a list.
    #[track_caller]
    pub fn try_json(&self, command: &str) -> Result<Vec<Value>, String> {
        let text = self.try_run(&command.split_whitespace().collect::<Vec<_>>(), "")?;
        // Some versions print nothing instead of an empty list.
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let mut list: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}"));
        // With a filter on the type, `ip` prints an empty object for each device that does not match.
        list.retain(|entry| entry.as_object().is_some_and(|object| !object.is_empty()));
        Ok(list)
    }

    /// Writes a sysctl below `/proc/sys/net`.
    ///
    /// # Panics
    /// When it does not exist.
    #[track_caller]
    pub fn set(&self, setting: &str, value: &str) {
        let file = format!("/proc/sys/net/{setting}");
        self.within(|| fs::write(&file, value)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// Makes an interface show frames as they are on the wire: no GSO packets, and complete checksums.
    pub fn as_on_the_wire(&self, interface: &str) {
        self.run(&format!("ethtool -K {interface} tso off gso off gro off tx off"));
        // TCP builds GSO packets even for devices that cannot segment them, but it respects this limit.
        self.ip(&format!("link set {interface} gso_max_segs 1\n"));
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
