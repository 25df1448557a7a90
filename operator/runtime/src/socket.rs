//! Sockets that listen: Unix sockets between the containers of a pod, and connections to sockets of any kind.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use tokio::{net::UnixListener, time::sleep};
use tracing::warn;

/// Pause after an error. Most likely the process is out of file descriptors: an immediate retry would only burn CPU.
const PAUSE: Duration = Duration::from_millis(500);

/// Accepts a connection. Errors are logged, and retried. Cancel safe if `accept` is.
pub async fn accept<Stream, Address, Accepted>(mut accept: impl FnMut() -> Accepted) -> Stream
where
    Accepted: Future<Output = io::Result<(Stream, Address)>>,
{
    loop {
        match accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Listens, for other users of the group. What an earlier run has left at the path is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The containers of a pod have different users, and the same group.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_each_error_is_a_pause() {
        let no_descriptors = || Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()));
        let mut results = VecDeque::from([no_descriptors(), no_descriptors(), Ok(("a stream", ()))]);
        let start = Instant::now();
        let stream = accept(|| std::future::ready(results.pop_front().expect("there is no further attempt"))).await;
        assert_eq!((stream, start.elapsed()), ("a stream", 2 * PAUSE));
    }
}
