use std::{io, path::PathBuf};

use nix::errno::Errno;

use super::{Namespace, mounts, process};

/// A way to a network namespace.
#[derive(Clone, Debug)]
pub enum Source {
    /// A process is in it.
    Process(u32),
    /// It is mounted: a path in the helper's view of the node.
    Mount(PathBuf),
}

impl Source {
    /// Opens the namespace; none if the process has ended, or the mount is gone or covered by another one.
    pub fn open(&self) -> io::Result<Option<Namespace>> {
        let opened = match self {
            Self::Process(pid) => Namespace::of_process(*pid),
            Self::Mount(path) => mounts::open(path).and_then(Namespace::from_file),
        };
        match opened {
            Ok(namespace) => Ok(Some(namespace)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    let no_such_process = Errno::ESRCH as i32;
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(no_such_process)
}

/// All ways to network namespaces of this node: its processes, then its mounts.
pub fn sources() -> io::Result<Vec<Source>> {
    let processes = process::pids()?.into_iter().map(Source::Process);
    Ok(processes.chain(mounts::mounted()?.into_iter().map(Source::Mount)).collect())
}
