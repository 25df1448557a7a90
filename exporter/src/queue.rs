//! Records that wait for a sink.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::record::Record;

/// Largest size of what is taken at once, in bytes: sinks make a copy of it, whose lines have half of that.
const LARGEST: usize = 3 << 19;

/// A bounded queue. Clones share it.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Bytes that may wait.
    capacity: usize,
    /// Something has come, or nothing will.
    changed: Notify,
    /// Something was taken.
    taken: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Those that were passed over: all are older than the others.
    passed: VecDeque<Arc<Record>>,
    records: VecDeque<Arc<Record>>,
    /// Of both, in bytes.
    size: usize,
    is_closed: bool,
}

impl Queue {
    /// Of so many bytes.
    pub fn new(capacity: usize) -> Self {
        let (changed, taken) = (Notify::new(), Notify::new());
        Self(Arc::new(Shared { waiting: Mutex::default(), capacity, changed, taken }))
    }

    /// Appends a record. Returns how many of the oldest ones were dropped to make room.
    pub fn push(&self, record: Arc<Record>) -> u64 {
        let mut waiting = self.lock();
        let mut dropped = 0;
        waiting.size += record.size();
        waiting.records.push_back(record);
        while waiting.size > self.0.capacity {
            let oldest = waiting.passed.pop_front().or_else(|| waiting.records.pop_front());
            let Some(oldest) = oldest else { break };
            waiting.size -= oldest.size();
            dropped += 1;
        }
        self.0.changed.notify_one();
        dropped
    }

    /// Returns when there is room for a record.
    pub async fn room(&self) {
        loop {
            let taken = self.0.taken.notified();
            // Half of it: a source that may wait should not run at each record.
            if self.lock().size <= self.0.capacity / 2 {
                return;
            }
            taken.await;
        }
    }

    /// Nothing more is appended.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.0.changed.notify_one();
    }

    /// Takes the oldest records that are accepted, at least one, and about as many as are sent at once together with those that the reader
    /// holds. Others are passed over until [`Self::restore`]. `None`: there are none, and none will come. For one reader.
    pub async fn take(
        &self,
        most: usize,
        held: &[Arc<Record>],
        accepts: impl Fn(&Record) -> bool,
    ) -> Option<Vec<Arc<Record>>> {
        loop {
            let taken = self.lock().take(most, held, &accepts);
            if !taken.is_empty() {
                self.0.taken.notify_one();
                return Some(taken);
            }
            {
                let waiting = self.lock();
                if waiting.is_closed && waiting.len() == 0 {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }

    /// Those that were passed over are taken next.
    pub fn restore(&self) {
        let Waiting { passed, records, .. } = &mut *self.lock();
        passed.append(records);
        std::mem::swap(passed, records);
    }

    /// Whether nothing more comes.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Bytes that wait.
    pub fn size(&self) -> usize {
        self.lock().size
    }

    /// Records that wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn take(&mut self, most: usize, held: &[Arc<Record>], accepts: &impl Fn(&Record) -> bool) -> Vec<Arc<Record>> {
        let mut size: usize = held.iter().map(|record| record.size()).sum();
        let mut taken = Vec::new();
        while let Some(record) = self.records.pop_front() {
            if !accepts(&record) {
                self.passed.push_back(record);
                continue;
            }
            size += record.size();
            if !taken.is_empty() && (held.len() + taken.len() >= most || size > LARGEST) {
                self.records.push_front(record);
                break;
            }
            self.size -= record.size();
            taken.push(record);
        }
        taken
    }

    fn len(&self) -> usize {
        self.passed.len() + self.records.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixtures::record;

    fn ports(records: &[Arc<Record>]) -> Vec<u16> {
        records.iter().filter_map(|record| record.sent.as_ref()?.flow.source.port).collect()
    }

    async fn take(queue: &Queue, most: usize) -> Option<Vec<Arc<Record>>> {
        queue.take(most, &[], |_| true).await
    }

    #[tokio::test]
    async fn the_oldest_are_dropped_when_it_is_full() {
        let queue = Queue::new(3 * record(10).size());
        assert_eq!((10..13).map(|port| queue.push(record(port))).sum::<u64>(), 0);
        assert_eq!((13..15).map(|port| queue.push(record(port))).sum::<u64>(), 2);
        assert_eq!(queue.len(), 3);
        assert_eq!(ports(&take(&queue, 2).await.expect("two")), [12, 13]);
        assert_eq!(queue.size(), record(14).size());
        queue.close();
        assert_eq!(ports(&take(&queue, 2).await.expect("one")), [14]);
        assert_eq!(take(&queue, 2).await, None);
        assert_eq!(queue.size(), 0);
    }

    #[tokio::test]
    async fn what_is_passed_over_stays_in_order_and_is_dropped_first() {
        let queue = Queue::new(6 * record(10).size());
        (10..16).for_each(|port| assert_eq!(queue.push(record(port)), 0));
        let port = |record: &Record| record.sent.as_ref().and_then(|line| line.flow.source.port).expect("a port");
        let odd = |record: &Record| port(record) % 2 == 1;
        assert_eq!(ports(&queue.take(2, &[], odd).await.expect("two")), [11, 13]);
        assert_eq!(ports(&queue.take(2, &[record(10)], odd).await.expect("one")), [15]);
        assert_eq!((queue.len(), queue.size()), (3, 3 * record(10).size()));
        assert_eq!((16..20).map(|port| queue.push(record(port))).sum::<u64>(), 1);
        queue.restore();
        queue.close();
        assert_eq!(ports(&queue.take(1, &[record(10)], |_| true).await.expect("one at least")), [12]);
        assert_eq!(ports(&take(&queue, 10).await.expect("the others")), [14, 16, 17, 18, 19]);
        assert_eq!((take(&queue, 1).await, queue.size()), (None, 0));
    }

    #[tokio::test]
    async fn what_is_taken_at_once_is_bounded() {
        let queue = Queue::new(4 * LARGEST);
        let most = LARGEST / record(10).size();
        for _ in 0..2 * most {
            queue.push(record(10));
        }
        assert_eq!(take(&queue, usize::MAX).await.expect("many").len(), most);
        assert_eq!(take(&queue, 10).await.expect("ten").len(), 10);
        let held = vec![record(10); most - 5];
        assert_eq!(queue.take(usize::MAX, &held, |_| true).await.expect("five").len(), 5);
    }

    #[tokio::test]
    async fn a_reader_waits_for_a_record_and_a_writer_for_room() {
        let queue = Queue::new(2 * record(10).size());
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move {
                let mut all = Vec::new();
                while let Some(records) = take(&queue, 1).await {
                    all.extend(ports(&records));
                }
                all
            }
        });
        for port in 10..30 {
            queue.room().await;
            assert_eq!(queue.push(record(port)), 0);
        }
        queue.close();
        assert_eq!(reader.await.expect("it does not panic"), (10..30).collect::<Vec<_>>());
    }
}
