//! Programs that a test started.

use std::process::Child;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Sends a signal to a program that runs.
///
/// # Panics
/// If it does not run.
#[track_caller]
pub fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a PID fits");
    kill(Pid::from_raw(pid), signal).expect("it runs");
}

/// A program that is killed, and waited for, when this is dropped.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
