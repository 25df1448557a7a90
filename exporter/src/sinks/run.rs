//! The task of a sink.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use podtap_runtime::backoff::Backoff;
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Failure, FailureKind, Sink};
use crate::{figures::SinkFigures, policy::Permit, queue::Queue};

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
                    FailureKind::Unavailable => "retrying",
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
    loop {
        let records = tokio::select! {
            records = queue.take(S::MOST) => records,
            () = sleep(IDLE) => {
                let told = in_time(async {
                    renew(&mut permit, &mut sink).await?;
                    sink.idle().await
                });
                let told = told.await;
                if told.is_err() || has_failed_idle {
                    condition.set(told.as_ref().err(), &figures);
                    has_failed_idle = told.is_err();
                }
                tell_attempted(&mut sink, &condition, &figures);
                continue;
            }
        };
        let Some(mut records) = records else { break };
        let mut taken = Taken(records.len() as u64, &figures);
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        while !records.is_empty() {
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
            match &result {
                Ok(()) => records.clear(),
                Err(failure) => {
                    let mut indices = 0..;
                    records.retain(|_| indices.next().is_some_and(|index| !failure.has_delivered(index)));
                }
            }
            figures.sent.inc_by(taken.0 - records.len() as u64);
            taken.0 = records.len() as u64;
            if S::IS_ATTEMPT || result.is_err() {
                condition.set(result.as_ref().err(), &figures);
            }
            tell_attempted(&mut sink, &condition, &figures);
            match result {
                Ok(()) => {}
                Err(Failure { kind: FailureKind::Unavailable, .. }) => sleep(backoff.pause()).await,
                Err(Failure { kind: FailureKind::Refused, .. }) => {
                    figures.refused.inc_by(taken.0);
                    taken.0 = 0;
                    records.clear();
                }
            }
        }
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
        record::{Record, fixtures::record},
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
}
