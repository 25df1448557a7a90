//! Allows one helper per node at a time.

use std::{fs::File, io};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// The file that helpers lock. Only a process with the capability `SYS_PTRACE` or all rights of process 1 may open it
/// (`proc_pid_environ(5)`), so nothing else can hold the lock. It leads through the root directory of process 1 to the node's own `/proc`,
/// which is the same file for all helpers, whatever they have mounted; nothing is written to the node.
const FILE: &str = "/proc/1/root/proc/1/environ";

/// The right to change this node. Ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock; none if another helper holds it.
    pub fn take() -> io::Result<Option<Self>> {
        match Flock::lock(File::open(FILE)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }
}
