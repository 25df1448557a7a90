use std::{
    io,
    os::fd::OwnedFd,
    task::{Context, Poll},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

/// A reference to a process (a pidfd), which reports its end.
#[derive(Debug)]
pub struct PidfdRef(AsyncFd<OwnedFd>);

impl PidfdRef {
    /// Refers to a process (Linux 5.3). `ESRCH` if it has ended.
    pub fn to(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        #[expect(deprecated, reason = "its replacement is unsafe, for types that could replace their descriptor")]
        Ok(Self(AsyncFd::new(pidfd_open(pid, PidfdFlags::empty())?)?))
    }

    /// Ready as soon as the process has ended, and from then on.
    pub fn poll_ended(&self, context: &mut Context<'_>) -> Poll<()> {
        self.0.poll_read_ready(context).map(drop)
    }
}
