use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// A network namespace, kept alive until this is dropped.
#[derive(Debug)]
pub struct Network {
    file: File,
    path: PathBuf,
}

impl Network {
    /// Creates one whose only device, the loopback, is up.
    ///
    /// # Panics
    /// If this process may not create one.
    #[must_use]
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made (root only)");
            File::open("/proc/thread-self/ns/net").expect("/proc is mounted")
        });
        let file = file.join().expect("the thread does not panic");
        let path = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
        let network = Self { file, path };
        // Multicast listener reports are repeated within this interval, by default a second. With the least one, all of them are
        // sent before a test starts to capture.
        for kind in ["default", "all"] {
            network.set(&format!("ipv6/conf/{kind}/mldv2_unsolicited_report_interval"), "1");
        }
        network.ip("link set lo up\n");
        network
    }

    /// Opens one that exists, by its path.
    ///
    /// # Panics
    /// If there is no such file.
    #[must_use]
    #[track_caller]
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let path = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
        Self { file, path }
    }

    /// A path by which other processes of the machine can open it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a closure on a thread inside it.
    pub fn within<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
                inside()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command inside it, and returns its standard output.
    ///
    /// # Errors
    /// If it fails, with its standard error.
    pub fn try_run(&self, command: &[&str], input: &str) -> Result<String, String> {
        self.within(|| {
            let mut child = Command::new(command[0])
                .args(&command[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{command:?}: {error}"));
            // A command that has failed already has closed the pipe.
            let _ = std::io::Write::write_all(&mut child.stdin.take().expect("it is a pipe"), input.as_bytes());
            let output = child.wait_with_output().expect("a child can be waited for");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
        })
    }

    /// Runs a command inside it, and returns its standard output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.try_run(&words, "").unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Runs a batch of `ip` commands, one per line.
    ///
    /// # Panics
    /// If one fails.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        self.try_run(&["ip", "-batch", "-"], lines).unwrap_or_else(|error| panic!("{lines}: {error}"));
    }

    /// Runs `ip`, `tc` or `bridge`, with `-j` among the arguments.
    ///
    /// # Panics
    /// If it fails or prints no list.
    #[must_use]
    #[track_caller]
    pub fn json(&self, command: &str) -> Vec<Value> {
        self.try_json(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Likewise, for something that may just have been removed.
    ///
    /// # Errors
    /// If the command fails.
    ///
    /// # Panics
    /// If it prints no list.
    #[track_caller]
    pub fn try_json(&self, command: &str) -> Result<Vec<Value>, String> {
        let text = self.try_run(&command.split_whitespace().collect::<Vec<_>>(), "")?;
        // Some versions print nothing instead of an empty list.
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let mut list: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}"));
        // With a filter on the type, iproute2 prints an empty object for each other device.
        list.retain(|entry| entry.as_object().is_some_and(|object| !object.is_empty()));
        Ok(list)
    }

    /// Writes a sysctl below `/proc/sys/net`.
    ///
    /// # Panics
    /// If it does not exist.
    #[track_caller]
    pub fn set(&self, setting: &str, value: &str) {
        let file = format!("/proc/sys/net/{setting}");
        self.within(|| fs::write(&file, value)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// Makes an interface show frames as they are on the wire: no GSO packets, checksums filled in.
    pub fn as_on_the_wire(&self, interface: &str) {
        self.run(&format!("ethtool -K {interface} tso off gso off gro off tx off"));
        // TCP builds GSO packets even for devices without segmentation offload; it respects this limit.
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
