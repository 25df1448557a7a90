//! Network namespaces: which pod they belong to, and how to enter them.

pub mod cgroup;
mod enter;
mod locate;
mod mounts;
mod pidfd;
mod process;
mod source;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    os::unix::fs::MetadataExt,
};

pub use enter::{within, within_each};
pub use locate::{Candidate, locate, namespaces};
pub use pidfd::PidfdRef;
pub use process::{is_process, last_pid, max_pid, pids};
pub use source::{Source, sources};

/// Identifies a network namespace while it is held open: the kernel reuses the numbers of deleted ones at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// The number that `ip netns` and `lsns` show.
    #[must_use]
    pub fn inode(self) -> u64 {
        self.inode
    }

    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A network namespace, held open: it exists at least as long as this.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    id: NamespaceId,
}

impl Namespace {
    /// The namespace of a process. Needs `CAP_SYS_PTRACE` for processes of other users.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::from_file(File::open(process::path(pid, "ns/net"))?)
    }

    fn from_file(file: File) -> io::Result<Self> {
        let id = NamespaceId::of(&file.metadata()?);
        Ok(Self { file, id })
    }

    /// The node's: that of process 1, which the helper sees because its pod has hostPID.
    pub fn node() -> io::Result<Self> {
        Self::of_process(1)
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> NamespaceId {
        self.id
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
