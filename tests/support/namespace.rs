//! Network namespaces by their path.

use std::{fs, io, path::Path, thread};

use nix::sched::{CloneFlags, setns};

/// Opens something in a network namespace, for example a socket, which then belongs to that namespace.
///
/// # Errors
/// When the namespace cannot be entered, or `open` fails.
pub fn within<T: Send + 'static>(
    network: &Path,
    open: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let network = fs::File::open(network)?;
    // A new thread enters the namespace, and ends afterwards.
    let inside = move || {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        open()
    };
    thread::spawn(inside).join().map_err(|_| io::Error::other("the thread inside the namespace panicked"))?
}
