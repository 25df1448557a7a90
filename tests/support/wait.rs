//! Waiting on conditions, with a deadline.

use std::{
    thread,
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
