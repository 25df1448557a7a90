use std::{fmt, io};

use nix::errno::Errno;

/// A request that the kernel refused, with all it said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetlinkError {
    /// What was tried, in words that follow "cannot".
    pub operation: String,
    /// The kernel's error number.
    pub errno: Errno,
    /// The text of its extended acknowledgement (`NLMSGERR_ATTR_MSG`), if it gave one.
    pub text: Option<String>,
}

impl NetlinkError {
    /// An error of the socket itself.
    pub(super) fn socket(operation: &str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Self { operation: operation.to_owned(), errno, text: None }
    }

    /// Whether what was to be removed, or looked at, is not there: removal treats this as done.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.errno, Errno::ENODEV | Errno::ENOENT | Errno::ENXIO)
    }
}

impl std::error::Error for NetlinkError {}

impl fmt::Display for NetlinkError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot {}: {} (errno {})", self.operation, self.errno.desc(), self.errno as i32)?;
        match &self.text {
            Some(text) => write!(formatter, ", the kernel says: {text}"),
            None => Ok(()),
        }
    }
}
