//! Network namespaces: whose they are, and how to act in them.

pub mod cgroup;
mod enter;
mod locate;
mod process;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    os::unix::fs::MetadataExt,
};

pub use enter::within;
pub use locate::{Anchor, Candidate, locate, namespaces};
pub use process::{last_pid, pids};

/// What tells one network namespace from another while either is held open: the kernel uses numbers of dead ones again at once.
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

/// A network namespace, held open: it lives at least as long as this.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    id: NamespaceId,
}

impl Namespace {
    /// That of a process. Needs `CAP_SYS_PTRACE` for processes of others.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let file = File::open(process::path(pid, "ns/net"))?;
        let id = NamespaceId::of(&file.metadata()?);
        Ok(Self { file, id })
    }

    /// The node's: that of the first process, which the helper sees since its pod shares the node's process identifiers.
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
