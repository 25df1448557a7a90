//! Ctrl-C ends the bench after the current measurement, so that it can clean up.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tokio::{
    select,
    signal::unix::{SignalKind, signal},
};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Catches signals. Does not block them, because children would inherit that and only SIGKILL could end them.
pub fn watch() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(async {
            let caught = |kind| signal(kind).expect("a signal can be caught");
            let [mut int, mut term, mut hup] =
                [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(caught);
            loop {
                select! { _ = int.recv() => {}, _ = term.recv() => {}, _ = hup.recv() => {} }
                if STOPPED.swap(true, Ordering::Relaxed) {
                    // The second signal: the next run cleans up.
                    process::exit(130);
                }
                eprintln!("ending after this measurement; interrupt again to end immediately");
            }
        });
    });
}

/// Whether the bench was interrupted.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}
