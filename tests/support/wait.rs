//! Waiting on conditions, with a deadline.

use std::{
    io, thread,
    time::{Duration, Instant},
};

/// The deadline of what the product promises no time for: enough for an emulated machine on a busy one.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Checks `condition` until it returns a value, and returns that.
///
/// # Panics
/// After `deadline`, with `what` and the last error of `condition`.
#[track_caller]
pub fn until<T, E: std::fmt::Display>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > deadline => {
                panic!("{what}: not within {} s; last: {error}", deadline.as_secs_f32())
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Repeats a call that a signal interrupted: the kernel does not restart one on a socket with a timeout (signal(7)), and any thread of a
/// test can get the signal that a child has ended.
///
/// # Errors
/// Any other one of the call.
pub fn uninterrupted<T, E: Into<io::Error>>(mut call: impl FnMut() -> Result<T, E>) -> io::Result<T> {
    loop {
        match call().map_err(Into::into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
