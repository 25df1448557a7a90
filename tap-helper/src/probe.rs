//! `tap-helper probe`: whether the tap-helper that listens on a socket works, for the kubelet.

use std::{
    io::{self, ErrorKind, Read as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long the tap-helper may take to answer: it processes one event after the other, and some take seconds.
const DEADLINE: Duration = Duration::from_secs(8);

/// Why the tap-helper does not work.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It does not listen, or the connection failed.
    #[error("cannot connect to the tap-helper: {0}")]
    Connection(#[from] io::Error),
    /// It does not accept the connection.
    #[error("the tap-helper has not answered within {} s", DEADLINE.as_secs())]
    NoAnswer,
    /// What listens there is no tap-helper.
    #[error("what listens there answers a probe with data")]
    NotATapHelper,
}

/// Connects as the tap-helper's own user. It closes such a connection as soon as it processes events, which is the answer.
pub fn probe(socket: &Path) -> Result<(), ProbeError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(ProbeError::NotATapHelper),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(ProbeError::NoAnswer),
        Err(error) => Err(error.into()),
    }
}
