//! Ctrl-C ends the bench after the measurement that runs, so that it can take back what it made.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use podtap_tests::cluster::Cluster;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Catches the signals. Not by blocking them: children would inherit that, and nothing could end them but a kill.
pub fn watch() {
    thread::spawn(|| {
        Cluster::lab().wait(async {
            let caught = |kind| signal(kind).expect("a signal can be caught");
            let [mut int, mut term, mut hup] =
                [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(caught);
            loop {
                select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
                if STOPPED.swap(true, Ordering::Relaxed) {
                    // Asked twice: the next run takes away what is left.
                    process::exit(130);
                }
                eprintln!("ending after this measurement; once more to end at once");
            }
        });
    });
}

/// Whether the bench was asked to end.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}
