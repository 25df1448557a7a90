//! Work that may take longer than a reconcile.

use std::{collections::VecDeque, mem};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// Tasks that run beside reconciles, and the results that no reconcile has taken yet. Dropping it cancels the tasks.
#[derive(Debug)]
pub struct InFlight<T> {
    tasks: JoinSet<T>,
    answered: VecDeque<T>,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self { tasks: JoinSet::new(), answered: VecDeque::new() }
    }
}

impl<T: Send + 'static> InFlight<T> {
    /// How many tasks run.
    pub fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Starts a task.
    pub fn spawn(&mut self, task: impl Future<Output = T> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Returns when a task has ended; never if none runs. Cancel safe.
    pub async fn answer(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(answered)) => self.answered.push_back(answered),
            // It panicked; nothing cancels it.
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => std::future::pending().await,
        }
    }

    /// Waits until a task has ended. Returns false if none runs, or none ends in time.
    pub async fn answers_until(&mut self, deadline: Instant) -> bool {
        !self.tasks.is_empty() && timeout_at(deadline, self.answer()).await.is_ok()
    }

    /// Takes the results, oldest first.
    pub fn take(&mut self) -> VecDeque<T> {
        mem::take(&mut self.answered)
    }
}
