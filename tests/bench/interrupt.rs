//! Ctrl-C ends the bench after the measurement that runs, so that it can take back what it made.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use nix::sys::signal::{SigSet, Signal};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// To be called before any other thread is there: all of them leave these signals to one that waits for them.
pub fn watch() {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().expect("signals can be blocked");
    thread::spawn(move || {
        for _ in 0..2 {
            let _ = signals.wait();
            if STOPPED.swap(true, Ordering::Relaxed) {
                // Asked twice: the next run takes away what is left.
                process::exit(130);
            }
            eprintln!("ending after this measurement; once more to end at once");
        }
    });
}

/// Whether the bench was asked to end.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}
