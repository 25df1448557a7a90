use std::{
    fs::{self, File},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// A network namespace that lives as long as this.
#[derive(Debug)]
pub struct Network {
    file: File,
    path: PathBuf,
}

impl Network {
    /// A new one with nothing but a loopback device, which is up.
    ///
    /// # Panics
    /// Without the right to make one.
    #[must_use]
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made (root only)");
            File::open("/proc/thread-self/ns/net").expect("/proc is mounted")
        });
        let file = file.join().expect("the thread does not panic");
        let path = PathBuf::from(format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd()));
        let network = Self { file, path };
        // Reports of multicast groups are sent twice within this time, by default a second: tests want silence when
        // nothing is sent on purpose.
        for kind in ["default", "all"] {
            network.set(&format!("ipv6/conf/{kind}/mldv2_unsolicited_report_interval"), "1");
        }
        network.ip("link set lo up\n");
        network
    }

    /// One that exists already, by a path to it. It is kept alive from now on.
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

    /// A path that other processes of the machine can open.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs something on a thread inside of it.
    pub fn within<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
                inside()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command inside; what it printed, or what it complained of.
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
            // One that has failed already closes the pipe.
            let _ = std::io::Write::write_all(&mut child.stdin.take().expect("it is a pipe"), input.as_bytes());
            let output = child.wait_with_output().expect("a child can be waited for");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
        })
    }

    /// Runs a command inside, and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.try_run(&words, "").unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Runs lines of `ip`.
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        self.try_run(&["ip", "-batch", "-"], lines).unwrap_or_else(|error| panic!("{lines}: {error}"));
    }

    /// Runs `ip`, `tc` or `bridge` with `-j` among its words.
    ///
    /// # Panics
    /// When it fails or prints no list.
    #[must_use]
    #[track_caller]
    pub fn json(&self, command: &str) -> Vec<Value> {
        self.try_json(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Likewise, of something that may just have gone.
    ///
    /// # Errors
    /// When the command fails.
    ///
    /// # Panics
    /// When it prints no list.
    #[track_caller]
    pub fn try_json(&self, command: &str) -> Result<Vec<Value>, String> {
        let text = self.try_run(&command.split_whitespace().collect::<Vec<_>>(), "")?;
        // With nothing to show, some versions print nothing.
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let mut list: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}"));
        // For a filter on the type, an empty object stands for each device that was passed over.
        list.retain(|entry| entry.as_object().is_some_and(|object| !object.is_empty()));
        Ok(list)
    }

    /// Writes a setting below `/proc/sys/net`.
    ///
    /// # Panics
    /// When there is none of that name.
    #[track_caller]
    pub fn set(&self, setting: &str, value: &str) {
        let file = format!("/proc/sys/net/{setting}");
        self.within(|| fs::write(&file, value)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// Makes an interface show frames as they are on the wire: no superframes, checksums filled in.
    pub fn as_on_the_wire(&self, interface: &str) {
        self.run(&format!("ethtool -K {interface} tso off gso off gro off tx off"));
        // TCP makes superframes even for devices that cannot cut them; this it heeds.
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
