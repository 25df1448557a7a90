use std::{io, thread};

use nix::sched::{CloneFlags, setns};
use tracing::debug;

use super::Namespace;

/// Runs a closure inside a network namespace, on a thread of its own that ends with it. It opens sockets, which stay in that namespace.
///
/// The caller's thread never changes its namespace, so no path through the program can forget to change back.
pub fn within<T: Send>(namespace: &Namespace, inside: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(inside())
    };
    on_thread(enter)
}

/// Likewise, on one thread for several namespaces, each with what the closure gets there. Those that cannot be entered are left out.
pub fn within_each<T: Send>(namespaces: Vec<(&Namespace, T)>, inside: impl Fn(T) + Send) -> io::Result<()> {
    let enter = move || {
        for (namespace, value) in namespaces {
            match setns(namespace, CloneFlags::CLONE_NEWNET) {
                Ok(()) => inside(value),
                Err(error) => debug!(%error, "cannot enter a network namespace"),
            }
        }
        Ok(())
    };
    on_thread(enter)
}

fn on_thread<T: Send>(run: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespace".to_owned()).stack_size(256 << 10);
        let thread = thread.spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}
