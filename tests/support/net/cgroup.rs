use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::wait::{PATIENCE, until};

/// Prefix of the name of every cgroup of this tier. The PID and a number follow.
pub(super) const PREFIX: &str = "podtap-dataplane.";

/// A cgroup for a node's pods, removed with all its children when dropped.
#[derive(Debug)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = hierarchy().join(format!("{PREFIX}{}.{number}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// Creates a cgroup below it.
    pub(super) fn below(&self, path: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            until("the cgroup's processes have ended", PATIENCE, || remove(&self.0));
        }
        // After a failed test, removes as much as possible.
        let _ = remove(&self.0);
    }
}

/// A cgroup that counts the memory of a process and of what it creates in the kernel, removed when dropped.
#[derive(Debug)]
pub struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    /// Creates one. It can be removed only after its processes have ended.
    ///
    /// # Panics
    /// When no hierarchy is mounted below `/sys/fs/cgroup`.
    #[must_use]
    pub fn new() -> Self {
        let version_1 = Path::new("/sys/fs/cgroup/memory");
        let top = if version_1.exists() { version_1 } else { Path::new("/sys/fs/cgroup") };
        let path = top.join(format!("{PREFIX}{}.memory", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    /// Adds a process. What it has allocated before does not count.
    ///
    /// # Panics
    /// When the process has ended.
    pub fn add(&self, process: u32) {
        fs::write(self.0.join("cgroup.procs"), process.to_string()).expect("a process can be moved");
    }

    /// Bytes that are charged to it.
    ///
    /// # Panics
    /// When the hierarchy has no memory controller.
    #[must_use]
    pub fn usage(&self) -> u64 {
        let files = ["memory.current", "memory.usage_in_bytes"].map(|name| self.0.join(name));
        let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).expect("a memory controller");
        text.trim().parse().expect("a number")
    }
}

impl Default for MemoryCgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // A child of a process that was killed ends a moment later.
            until("the cgroup's processes have ended", PATIENCE, || remove(&self.0));
        }
        let _ = remove(&self.0);
    }
}

/// A hierarchy in which cgroups can be created: version 2, or any of version 1.
pub(super) fn hierarchy() -> PathBuf {
    let top = Path::new("/sys/fs/cgroup");
    let candidates = ["", "pids", "freezer", "systemd", "unified"].map(|name| top.join(name));
    let found = candidates.into_iter().find(|path| path.join("cgroup.procs").exists());
    found.expect("a cgroup hierarchy is mounted below /sys/fs/cgroup")
}

/// Removes a cgroup and its children.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
