//! Network namespaces by their path.

use std::{fs, io, path::Path, thread};

use nix::sched::{CloneFlags, setns};

/// Opens something in a network namespace; it stays in that namespace.
///
/// # Errors
/// If the namespace cannot be entered, or whatever `open` returns.
pub fn within<T: Send + 'static>(
    network: &Path,
    open: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let network = fs::File::open(network)?;
    // A short-lived thread enters the namespace.
    let inside = move || {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        open()
    };
    thread::spawn(inside).join().map_err(|_| io::Error::other("the thread inside the namespace panicked"))?
}
