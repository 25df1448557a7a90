use std::{io, thread};

use nix::sched::{CloneFlags, setns};

use super::Namespace;

/// Runs a closure inside a network namespace, on a thread of its own that ends with it. It opens sockets, which stay in that namespace.
///
/// The caller's thread never changes its namespace, so no path through the program can forget to change back.
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
