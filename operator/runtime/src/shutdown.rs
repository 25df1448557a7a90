//! The signals that stop a process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives SIGTERM, which the kubelet sends, and SIGINT, which a terminal sends.
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
    is_requested: bool,
}

impl Shutdown {
    /// From now on, neither signal kills the process. An error means that the handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            is_requested: false,
        })
    }

    /// Waits for one of the signals. One that arrived since [`Shutdown::new`] counts, also if an earlier call has returned because of it.
    pub async fn requested(&mut self) {
        if self.is_requested {
            return;
        }
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        self.is_requested = true;
    }
}
