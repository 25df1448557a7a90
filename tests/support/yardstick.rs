//! Durations that grow with the load of the machine.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::wait::until;

/// A thread that starts processes one after the other, as container runtimes do for a pod. How many it has started since is a duration
/// that other work on the same machine takes in proportion, whatever else runs there.
#[derive(Debug)]
pub struct Yardstick {
    rounds: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Yardstick {
    /// Starts the thread, which runs until this value is dropped.
    #[must_use]
    pub fn start() -> Self {
        let (rounds, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, until) = (Arc::clone(&rounds), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                Command::new("true").status().expect("true is installed");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { rounds, ended, thread: Some(thread) }
    }

    /// Processes until now.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits for this many further processes.
    ///
    /// # Panics
    /// After a minute.
    pub fn wait(&self, rounds: u64) {
        let end = self.rounds() + rounds;
        until("the yardstick's processes have run", Duration::from_secs(60), || match self.rounds() {
            now if now < end => Err(format!("{} of {rounds} remain", end - now)),
            _ => Ok(()),
        });
    }
}

impl Drop for Yardstick {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
