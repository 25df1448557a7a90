//! The task of a sink.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use podtap_runtime::backoff::Backoff;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::{Failure, FailureKind, Sink};
use crate::{figures::SinkFigures, policy::Permit, queue::Queue, record::Record};

/// How often a sink without records is told so.
const IDLE: Duration = Duration::from_secs(1);
/// How long an attempt may take.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a sink takes records. Clones share it.
#[derive(Clone, Debug)]
pub struct Condition(Arc<Mutex<Told>>);

/// What is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    sink: String,
    /// `None`: there was no attempt yet.
    exporting: Option<bool>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Condition {
    pub fn new(sink: &str) -> Self {
        Self(Arc::new(Mutex::new(Told { sink: sink.to_owned(), exporting: None, message: None })))
    }

    pub fn told(&self) -> Told {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs changes only.
    fn set(&self, failure: Option<&Failure>, figures: &SinkFigures) {
        let told = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = told.exporting != Some(failure.is_none());
        told.exporting = Some(failure.is_none());
        told.message = failure.map(|failure| failure.message.clone());
        figures.up.set(failure.is_none());
        match failure {
            Some(Failure { kind, message, .. }) => {
                figures.failures.inc();
                let next = match kind {
                    FailureKind::Unavailable | FailureKind::PartitionUnavailable => "retrying",
                    FailureKind::Refused => "these records are dropped",
                };
                if is_new {
                    warn!(sink = told.sink, error = message, "the sink does not take records; {next}");
                }
            }
            None if is_new => info!(sink = told.sink, "the sink takes records"),
            None => {}
        }
    }
}

/// Records that were taken from the queue, until they are counted as something else.
struct Taken<'a>(u64, &'a SinkFigures);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.1.unsent.inc_by(self.0);
    }
}

/// Delivers until the queue is closed and empty.
pub async fn run<S: Sink>(mut sink: S, mut permit: Permit, queue: Queue, figures: SinkFigures, condition: Condition) {
    // Whether the last failure was one of `idle`.
    let mut has_failed_idle = false;
    // What is delivered again when it is due, and the partitions of it: their other records stay in the queue until it is delivered.
    let (mut kept, mut due) = (Vec::new(), Instant::now());
    let (mut partitions, mut unavailable) = (sink.partitions(), BTreeSet::new());
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut taken = Taken(0, &figures);
    loop {
        let is_retry = !kept.is_empty() && due <= Instant::now();
        let mut records = if is_retry {
            queue.restore();
            std::mem::take(&mut kept)
        } else {
            let accepts = |record: &Record| kept.is_empty() || !unavailable.contains(&S::partition(record, partitions));
            let records = tokio::select! {
                records = queue.take(S::MOST, &kept, accepts) => records,
                () = sleep_until(due), if !kept.is_empty() => continue,
                () = sleep(IDLE) => {
                    let told = in_time(async {
                        renew(&mut permit, &mut sink).await?;
                        sink.idle().await
                    });
                    let told = told.await;
                    if told.is_err() || (has_failed_idle && kept.is_empty()) {
                        condition.set(told.as_ref().err(), &figures);
                        has_failed_idle = told.is_err();
                    }
                    tell_attempted(&mut sink, &condition, &figures);
                    continue;
                }
            };
            match records {
                Some(records) => records,
                None if kept.is_empty() => break,
                None => {
                    sleep_until(due).await;
                    continue;
                }
            }
        };
        let count = records.len();
        taken.0 = (kept.len() + count) as u64;
        figures.queued.set(i64::try_from(queue.size()).unwrap_or(i64::MAX));
        if queue.is_closed() {
            permit.keep();
        }
        let result = in_time(async {
            renew(&mut permit, &mut sink).await?;
            sink.deliver(&records).await
        })
        .await;
        has_failed_idle = false;
        let (failure, mut refused) = (result.err(), 0);
        match &failure {
            None => records.clear(),
            Some(failure) => {
                refused = (0..count).filter(|index| failure.has_refused(*index)).count();
                let mut indices = 0..;
                records.retain(|_| indices.next().is_some_and(|index| failure.keeps(index)));
            }
        }
        figures.sent.inc_by((count - refused - records.len()) as u64);
        figures.refused.inc_by(refused as u64);
        let was_empty = kept.is_empty();
        kept.append(&mut records);
        taken.0 = kept.len() as u64;
        // While something is kept, the sink does not take records, although others are delivered.
        if failure.is_some() || (S::IS_ATTEMPT && kept.is_empty()) {
            condition.set(failure.as_ref(), &figures);
        }
        tell_attempted(&mut sink, &condition, &figures);
        match failure.map(|failure| failure.kind) {
            Some(FailureKind::Unavailable) => {
                sleep(backoff.pause()).await;
                due = Instant::now();
            }
            // Those that fail meanwhile do not delay those that were kept before.
            Some(FailureKind::PartitionUnavailable) if was_empty => due = Instant::now() + backoff.pause(),
            Some(FailureKind::PartitionUnavailable | FailureKind::Refused) | None => {}
        }
        if kept.is_empty() {
            backoff.reset();
        }
        partitions = sink.partitions();
        unavailable = kept.iter().map(|record| S::partition(record, partitions)).collect();
    }
    // They are counted if this ends, or is ended, without success.
    let mut held = Taken(sink.held(), &figures);
    permit.keep();
    let finished = in_time(async {
        renew(&mut permit, &mut sink).await?;
        sink.finish().await
    });
    match finished.await {
        Ok(()) => {
            held.0 = 0;
            if !S::IS_ATTEMPT {
                condition.set(None, &figures);
            }
        }
        Err(failure) => condition.set(Some(&failure), &figures),
    }
}

async fn renew(permit: &mut Permit, sink: &mut impl Sink) -> Result<(), Failure> {
    permit.renew().await?;
    if permit.has_moved() {
        sink.disconnect();
    }
    Ok(())
}

fn tell_attempted(sink: &mut impl Sink, condition: &Condition, figures: &SinkFigures) {
    if let Some(result) = sink.attempted() {
        condition.set(result.as_ref().err(), figures);
    }
}

async fn in_time(attempt: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let late = |_| Err(Failure::unavailable(format!("no answer within {} seconds", PATIENCE.as_secs())));
    timeout(PATIENCE, attempt).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::{
        figures::Figures,
        policy::Policy,
        record::fixtures::record,
        sinks::{Sinks, WhenFull},
    };

    /// A sink that answers as told, and then takes everything.
    #[derive(Clone, Default)]
    struct Scripted {
        answers: Arc<Mutex<VecDeque<Failure>>>,
        got: Arc<Mutex<Vec<u16>>>,
        hangs: bool,
    }

    impl Sink for Scripted {
        const MOST: usize = 4;

        fn servers(&self) -> Vec<(String, u16)> {
            Vec::new()
        }

        fn disconnect(&mut self) {}

        async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            let failure = self.answers.lock().expect("no panic").pop_front();
            let is_delivered = |index| failure.as_ref().is_none_or(|failure| failure.has_delivered(index));
            let delivered = records.iter().enumerate().filter(|(index, _)| is_delivered(*index));
            let ports = delivered.filter_map(|(_, record)| record.sent.as_ref()?.flow.source.port);
            self.got.lock().expect("no panic").extend(ports);
            failure.map_or(Ok(()), Err)
        }
    }

    impl Scripted {
        fn new(answers: impl IntoIterator<Item = Failure>) -> Self {
            Self { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Self::default() }
        }

        fn got(&self) -> Vec<u16> {
            self.got.lock().expect("no panic").clone()
        }
    }

    async fn push(sinks: &Sinks, ports: std::ops::Range<u16>, when_full: WhenFull) {
        sinks.push(&mut ports.map(record).collect(), when_full).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_delivered_is_sent_again() {
        let sink = Scripted::new([Failure::unavailable("down"), Failure::unavailable("full").after(2)]);
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, sink.clone());
        push(&sinks, 10..16, WhenFull::DropOldest).await;
        let conditions = sinks.conditions();
        assert_eq!(sinks.finish(Duration::from_secs(60)).await, []);
        assert_eq!(sink.got(), [10, 11, 12, 13, 14, 15]);
        let of_sink = figures.of_sink("s");
        assert_eq!((of_sink.sent.get(), of_sink.failures.get(), of_sink.up.get()), (6, 2, Some(1)));
        assert_eq!(conditions[0].told(), Told { sink: "s".to_owned(), exporting: Some(true), message: None });
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_is_neither_up_nor_down_before_the_first_attempt() {
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, Scripted::new([Failure::unavailable("down")]));
        let (condition, of_sink) = (sinks.conditions().remove(0), figures.of_sink("s"));
        let told = async |waited| {
            sleep(waited).await;
            (condition.told().exporting, of_sink.up.get())
        };
        assert_eq!(told(2 * IDLE).await, (None, None));
        push(&sinks, 10..11, WhenFull::DropOldest).await;
        assert_eq!(told(FIRST_PAUSE / 2).await, (Some(false), Some(0)));
        assert_eq!(told(2 * FIRST_PAUSE).await, (Some(true), Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_sink_refuses_is_dropped_and_counted() {
        let sink = Scripted::new([Failure::refused("too old").after(1)]);
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, sink.clone());
        push(&sinks, 10..16, WhenFull::DropOldest).await;
        assert_eq!(sinks.finish(Duration::from_secs(60)).await, [("s".to_owned(), 3)]);
        assert_eq!(sink.got(), [10, 14, 15]);
        assert_eq!(figures.of_sink("s").refused.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_partition_has_is_not_sent_again() {
        let sink = Scripted::new([Failure::unavailable("one is down").after(1).except([3])]);
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, sink.clone());
        push(&sinks, 10..14, WhenFull::DropOldest).await;
        assert_eq!(sinks.finish(Duration::from_secs(60)).await, []);
        assert_eq!(sink.got(), [10, 13, 11, 12]);
        assert_eq!(figures.of_sink("s").sent.get(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_partition_refuses_is_dropped() {
        let sink = Scripted::new([Failure::refused("too large").except([0, 1, 3])]);
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, sink.clone());
        push(&sinks, 10..15, WhenFull::DropOldest).await;
        assert_eq!(sinks.finish(Duration::from_secs(60)).await, [("s".to_owned(), 1)]);
        assert_eq!(sink.got(), [10, 11, 13, 14]);
        assert_eq!((figures.of_sink("s").sent.get(), figures.of_sink("s").refused.get()), (4, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_hangs_costs_its_own_records_only() {
        let (hanging, other) = (Scripted { hangs: true, ..Scripted::default() }, Scripted::default());
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("hanging", 6 * record(10).size(), &figures, hanging);
        sinks.start("other", 6 * record(10).size(), &figures, other.clone());
        for port in 10..110 {
            push(&sinks, port..port + 1, WhenFull::DropOldest).await;
            tokio::task::yield_now().await;
        }
        // It is told, and tried again.
        let conditions = sinks.conditions();
        sleep(2 * PATIENCE).await;
        assert_eq!(serde_json::to_value(conditions[0].told()).expect("JSON")["message"], "no answer within 30 seconds");
        assert_eq!(sinks.finish(Duration::from_secs(5)).await, [("hanging".to_owned(), 100)]);
        assert_eq!(other.got(), (10..110).collect::<Vec<_>>());
        let hanging = figures.of_sink("hanging");
        assert_eq!(hanging.queue_full.get() + hanging.unsent.get(), 100);
        assert!(hanging.unsent.get() <= 10, "{}", hanging.unsent.get());
        assert_eq!((hanging.up.get(), figures.of_sink("other").up.get()), (Some(0), Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_may_wait_loses_nothing() {
        let sink = Scripted::new((0..5).map(|_| Failure::unavailable("down")));
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 4 * record(10).size(), &figures, sink.clone());
        push(&sinks, 10..200, WhenFull::Wait).await;
        assert_eq!(sinks.finish(Duration::from_secs(300)).await, []);
        assert_eq!(sink.got(), (10..200).collect::<Vec<_>>());
    }

    /// A sink with three partitions, by port. What some of them do is set.
    #[derive(Clone, Default)]
    struct Partitioned {
        unavailable: Arc<Mutex<BTreeSet<u32>>>,
        refusing: Arc<Mutex<BTreeSet<u32>>>,
        got: Arc<Mutex<Vec<u16>>>,
        /// Ports of what those got that were unavailable, in each attempt.
        tried: Arc<Mutex<Vec<Vec<u16>>>>,
    }

    fn port(record: &Record) -> u16 {
        record.sent.as_ref().and_then(|line| line.flow.source.port).expect("a port")
    }

    impl Sink for Partitioned {
        const MOST: usize = 4;

        fn partitions(&self) -> u32 {
            3
        }

        fn partition(record: &Record, partitions: u32) -> u32 {
            u32::from(port(record)) % partitions
        }

        fn servers(&self) -> Vec<(String, u16)> {
            Vec::new()
        }

        fn disconnect(&mut self) {}

        async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
            let of = |partitions: &Mutex<BTreeSet<u32>>| -> BTreeSet<usize> {
                let partitions = partitions.lock().expect("no panic");
                (0..records.len()).filter(|index| partitions.contains(&Self::partition(&records[*index], 3))).collect()
            };
            let (unavailable, refused) = (of(&self.unavailable), of(&self.refusing));
            let delivered = (0..records.len()).filter(|index| !unavailable.contains(index) && !refused.contains(index));
            let delivered: Vec<_> = delivered.collect();
            self.got.lock().expect("no panic").extend(delivered.iter().map(|index| port(&records[*index])));
            if !unavailable.is_empty() {
                let ports = unavailable.iter().map(|index| port(&records[*index])).collect();
                self.tried.lock().expect("no panic").push(ports);
                let failure = Failure::new(FailureKind::PartitionUnavailable, "one is unavailable");
                return Err(Failure { refused, ..failure.except(delivered) });
            }
            if refused.is_empty() { Ok(()) } else { Err(Failure::refused("one refuses").except(delivered)) }
        }
    }

    impl Partitioned {
        /// Partition 1 is unavailable.
        fn new() -> Self {
            Self { unavailable: Arc::new(Mutex::new([1].into())), ..Self::default() }
        }

        /// What each partition got, in order.
        fn got(&self) -> [Vec<u16>; 3] {
            let got = self.got.lock().expect("no panic").clone();
            [0, 1, 2].map(|partition| got.iter().copied().filter(|port| port % 3 == partition).collect())
        }

        async fn until_got(&self, expected: [Vec<u16>; 3]) {
            let start = Instant::now();
            while self.got() != expected {
                assert!(start.elapsed() < FIRST_PAUSE / 2, "{:?}, not {expected:?}", self.got());
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn of(partition: u16, ports: std::ops::Range<u16>) -> Vec<u16> {
        ports.filter(|port| port % 3 == partition).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn other_partitions_do_not_wait() {
        let sink = Partitioned::new();
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, sink.clone());
        push(&sinks, 10..30, WhenFull::DropOldest).await;
        sink.until_got([of(0, 10..30), vec![], of(2, 10..30)]).await;
        // Attempts to deliver it again have the same records, and nothing else of the partition.
        sleep(10 * LONGEST_PAUSE).await;
        push(&sinks, 30..50, WhenFull::DropOldest).await;
        sink.until_got([of(0, 10..50), vec![], of(2, 10..50)]).await;
        let tried = sink.tried.lock().expect("no panic").clone();
        assert!(tried.len() > 10 && tried.iter().all(|ports| *ports == [10, 13]), "{tried:?}");
        // It is told, although others are delivered.
        let condition = sinks.conditions().remove(0);
        assert_eq!(serde_json::to_value(condition.told()).expect("JSON")["message"], "one is unavailable");
        assert_eq!(figures.of_sink("s").sent.get(), (of(0, 10..50).len() + of(2, 10..50).len()) as u64);
        sink.unavailable.lock().expect("no panic").clear();
        assert_eq!(sinks.finish(2 * LONGEST_PAUSE).await, []);
        assert_eq!(sink.got(), [0, 1, 2].map(|partition| of(partition, 10..50)));
        assert_eq!((figures.of_sink("s").sent.get(), figures.of_sink("s").up.get()), (40, Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_stays_unavailable_costs_its_own_records_only() {
        let sink = Partitioned::new();
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 6 * record(10).size(), &figures, sink.clone());
        for port in 10..110 {
            push(&sinks, port..port + 1, WhenFull::DropOldest).await;
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(sink.got(), [of(0, 10..110), vec![], of(2, 10..110)]);
        let missing = of(1, 10..110).len() as u64;
        assert_eq!(sinks.finish(Duration::from_secs(5)).await, [("s".to_owned(), missing)]);
        let figures = figures.of_sink("s");
        assert_eq!(figures.sent.get() + missing, 100);
        assert_eq!(figures.queue_full.get() + figures.unsent.get(), missing);
        // The one that was tried first, and as many as the queue has room for.
        assert!((5..=7).contains(&figures.unsent.get()), "{}", figures.unsent.get());
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_partition_refuses_does_not_wait_for_another() {
        let sink = Partitioned::new();
        sink.refusing.lock().expect("no panic").insert(2);
        let (mut sinks, figures) = (Sinks::new(Policy::default()), Figures::default());
        sinks.start("s", 1 << 20, &figures, sink.clone());
        push(&sinks, 10..30, WhenFull::DropOldest).await;
        sink.until_got([of(0, 10..30), vec![], vec![]]).await;
        let figures = figures.of_sink("s");
        assert_eq!(figures.refused.get(), of(2, 10..30).len() as u64);
        let missing = (of(1, 10..30).len() + of(2, 10..30).len()) as u64;
        assert_eq!(sinks.finish(Duration::from_secs(5)).await, [("s".to_owned(), missing)]);
        assert_eq!(figures.unsent.get(), of(1, 10..30).len() as u64);
    }
}
