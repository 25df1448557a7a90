//! Progress messages with the time that each step takes.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Runs one step of the work: prints that it is running, and how long it took.
pub fn step<T>(what: impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let what = what.to_string();
    let began = Instant::now();
    let (done, until_done) = channel::<()>();
    let result = thread::scope(|scope| {
        let what = &what;
        scope.spawn(move || show_time(what, began, &until_done));
        let result = work();
        drop(done);
        result
    });
    let result = result.with_context(|| format!("failed: {what}"))?;
    say(&format!("{what}: {:.1} s", began.elapsed().as_secs_f32()));
    Ok(result)
}

/// On a terminal the line counts the seconds; in a log a line every 15 seconds shows that nothing hangs.
fn show_time(what: &str, began: Instant, until_done: &std::sync::mpsc::Receiver<()>) {
    let terminal = std::io::stderr().is_terminal();
    let pause = Duration::from_secs(if terminal { 1 } else { 15 });
    while until_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let seconds = began.elapsed().as_secs();
        if terminal {
            eprint!("\r\x1b[Klab: {what} ... {seconds} s");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("lab: {what} ... {seconds} s");
        }
    }
}

/// Prints one line.
pub fn say(line: &str) {
    let clear = if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    eprintln!("{clear}lab: {line}");
}

/// Polls until `is_so`; false if it was not in time.
pub fn wait_until(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if is_so() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
