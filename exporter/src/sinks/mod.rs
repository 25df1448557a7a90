//! Where records go. Each sink has a queue and a task of its own: none waits for another one.

pub mod files;
pub mod ipfix;
pub mod kafka;
pub mod otlp;
mod push;
pub mod remote_write;
mod run;
pub mod stdout;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};

pub use self::run::Condition;
use crate::{
    figures::{Figures, SinkFigures},
    policy::{Permit, Policy},
    queue::Queue,
    record::Record,
};

/// Delivers records.
pub trait Sink: Send + 'static {
    /// Records that are delivered at once, at most.
    const MOST: usize;
    /// Whether [`Sink::deliver`] reaches the sink. If it only counts, [`Sink::attempted`] tells of attempts.
    const IS_ATTEMPT: bool = true;
    /// Whether it asks the policy itself, before each request, instead of before each delivery: see [`Sink::permitted`].
    const ASKS_ITSELF: bool = false;

    /// How many partitions it has. In each, records stay in order, and what one cannot take does not hold up the others.
    fn partitions(&self) -> u32 {
        1
    }

    /// Which of so many partitions a record goes to.
    fn partition(_record: &Record, _partitions: u32) -> u32 {
        0
    }

    /// Its servers, each as a host and a port: the policy must allow all their addresses. None: it connects to nothing.
    fn servers(&self) -> Vec<(String, u16)>;

    /// Gets what it asks the policy by, before anything else, if [`Sink::ASKS_ITSELF`].
    fn permitted(&mut self, _permit: Permit) {}

    /// Closes connections to its servers, which have other addresses now.
    fn disconnect(&mut self);

    /// Delivers records, in order. After an error, those that it does not tell as delivered are delivered again, in the same
    /// order, or dropped: of each partition the same ones, without others.
    fn deliver(&mut self, records: &[Arc<Record>]) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Called about every second in which there is nothing to deliver.
    fn idle(&mut self) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Ok(()) }
    }

    /// The result of an attempt that was made beside deliveries, once.
    fn attempted(&mut self) -> Option<Result<(), Failure>> {
        None
    }

    /// Records that were taken, and are lost if [`Sink::finish`] does not succeed.
    fn held(&self) -> u64 {
        0
    }

    /// Called at the end.
    fn finish(&mut self) -> impl Future<Output = Result<(), Failure>> + Send {
        async { Ok(()) }
    }
}

/// Records were not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How many of them were,
    pub delivered: usize,
    /// and which ones after these: not all partitions of a sink fail together.
    pub others: BTreeSet<usize>,
    /// Which ones are dropped in any case.
    pub refused: BTreeSet<usize>,
    pub kind: FailureKind,
    pub message: String,
}

/// What is done with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// They are sent again: the sink cannot be reached, or is busy.
    Unavailable,
    /// Likewise, but only their partitions: records of others do not wait.
    PartitionUnavailable,
    /// They are dropped: the sink does not take them, and would not do so later.
    Refused,
}

impl Failure {
    /// None was delivered; later, they may be.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Unavailable, message)
    }

    /// None was delivered, or will be.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Refused, message)
    }

    /// None was delivered.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { delivered: 0, others: BTreeSet::new(), refused: BTreeSet::new(), kind, message: message.into() }
    }

    /// Likewise, after so many that were.
    #[must_use]
    pub fn after(self, delivered: usize) -> Self {
        Self { delivered, ..self }
    }

    /// Likewise, although these were, by their indices.
    #[must_use]
    pub fn except(self, others: impl IntoIterator<Item = usize>) -> Self {
        Self { others: others.into_iter().collect(), ..self }
    }

    /// Whether the record with this index was delivered.
    fn has_delivered(&self, index: usize) -> bool {
        index < self.delivered || self.others.contains(&index)
    }

    /// Whether it is dropped.
    fn has_refused(&self, index: usize) -> bool {
        !self.has_delivered(index) && (self.kind == FailureKind::Refused || self.refused.contains(&index))
    }

    /// Whether it is delivered again.
    fn keeps(&self, index: usize) -> bool {
        !self.has_delivered(index) && !self.has_refused(index)
    }
}

/// What happens to a record if the queue of a sink is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest one is dropped.
    DropOldest,
    /// It waits, and so do the other sinks.
    Wait,
}

/// All sinks.
#[derive(Debug)]
pub struct Sinks {
    policy: Policy,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    name: String,
    queue: Queue,
    figures: SinkFigures,
    condition: Condition,
    task: JoinHandle<()>,
}

impl Sinks {
    /// None yet.
    pub const fn new(policy: Policy) -> Self {
        Self { policy, running: Vec::new() }
    }

    /// Starts one, with a queue of so many bytes.
    pub fn start<S: Sink>(&mut self, name: &str, capacity: usize, figures: &Figures, mut sink: S) {
        let (queue, figures, condition) = (Queue::new(capacity), figures.of_sink(name), Condition::new(name));
        let mut permit = self.policy.clone().permit(sink.servers());
        if S::ASKS_ITSELF {
            let own = std::mem::replace(&mut permit, Policy::default().permit(Vec::new()));
            sink.permitted(own);
        }
        let task = tokio::spawn(run::run(sink, permit, queue.clone(), figures.clone(), condition.clone()));
        self.running.push(Running { name: name.to_owned(), queue, figures, condition, task });
    }

    /// Hands records to all sinks.
    pub async fn push(&self, records: &mut Vec<Arc<Record>>, when_full: WhenFull) {
        for record in records.drain(..) {
            for sink in &self.running {
                if when_full == WhenFull::Wait {
                    sink.queue.room().await;
                }
                sink.figures.queue_full.inc_by(sink.queue.push(Arc::clone(&record)));
            }
        }
    }

    /// What each one's last attempt was.
    pub fn conditions(&self) -> Vec<Condition> {
        self.running.iter().map(|sink| sink.condition.clone()).collect()
    }

    /// Waits until all records are delivered, at most so long. Returns the sinks that did not get all, and how many they did not get.
    pub async fn finish(self, patience: Duration) -> Vec<(String, u64)> {
        let until = Instant::now() + patience;
        for sink in &self.running {
            sink.queue.close();
        }
        let mut incomplete = Vec::new();
        for mut sink in self.running {
            if timeout_at(until, &mut sink.task).await.is_err() {
                sink.task.abort();
                // It counts what it was about to deliver, when it is dropped.
                let _ = sink.task.await;
                sink.figures.unsent.inc_by(sink.queue.len() as u64);
            }
            let SinkFigures { queue_full, refused, unsent, lost, .. } = &sink.figures;
            let missing = queue_full.get() + refused.get() + unsent.get() + lost.get();
            if missing > 0 {
                incomplete.push((sink.name, missing));
            }
        }
        incomplete
    }
}
