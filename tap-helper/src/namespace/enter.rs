use std::{io, thread};

use nix::sched::{CloneFlags, setns};

use super::Namespace;

/// Runs something inside a network namespace, on a thread that ends with it; meant to open sockets, which then belong there.
///
/// The caller's thread never changes its namespace, so that no path through the program can forget to change back.
pub fn within<T: Send>(namespace: &Namespace, inside: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let entered =
            thread::Builder::new().name("namespace".to_owned()).stack_size(256 << 10).spawn_scoped(scope, || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(inside())
            })?;
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}
