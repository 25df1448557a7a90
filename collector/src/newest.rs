//! The newest records of flows, for readers.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use podtap_flow::{Record, Timestamp, named::NamedRecord, names::Names, packet};

/// Records at most: each takes up to 340 bytes, and up to 1.15 KB with its names from DNS and TLS, so all take up to 11.5 MB.
pub const CAPACITY: usize = 10_000;
/// How long they are kept. They are named when they are read, so their pods must not have been forgotten
/// ([`podtap_flow::names::TOMBSTONE`]).
pub const AGE: Duration = Duration::from_secs(25 * 60);

/// The last records in the order in which they were reported. Those that only end a flow, without frames, are not among them.
#[derive(Debug, Default)]
pub struct Newest {
    records: VecDeque<Record>,
    /// The number of the first one: all records have numbers, from 0.
    first: u64,
}

impl Newest {
    /// Adds a record. When it is full, the oldest one makes room.
    pub fn push(&mut self, record: Record) {
        let is_empty = [record.sent, record.received].iter().all(|counts| counts.frames == 0 && counts.payload == 0);
        if is_empty {
            return;
        }
        if self.records.len() >= CAPACITY {
            self.pop();
        }
        self.records.push_back(record);
    }

    /// Forgets what is older than [`AGE`].
    pub fn expire(&mut self, now: Timestamp) {
        while self.records.front().is_some_and(|record| now.since(record.to) > AGE) {
            self.pop();
        }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        while self.pop() {}
    }

    fn pop(&mut self) -> bool {
        let is_some = self.records.pop_front().is_some();
        self.first += u64::from(is_some);
        is_some
    }

    /// Those before a number with their numbers, the newest first; named as far as is known now.
    pub fn before<'a>(&'a self, end: u64, names: &'a Names) -> impl Iterator<Item = (u64, NamedRecord<'a>)> {
        let count = usize::try_from(end.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.records.len());
        let last = self.first + count as u64;
        let newest_first = self.records.range(..count).rev();
        newest_first.zip(1..).map(move |(record, back)| (last - back, NamedRecord::new(record, names)))
    }

    /// Of the TCP flows in these records, how many there are, and of how many the mirror lost frames.
    pub fn completeness(&self) -> (usize, usize) {
        let of_tcp = self.records.iter().filter(|record| record.protocol == packet::TCP);
        let mut incomplete: HashMap<_, bool> = HashMap::new();
        for record in of_tcp {
            let is_incomplete = record.totals.iter().any(|totals| totals.missing.by_mirror > 0);
            *incomplete.entry((record.source, record.client, record.server, record.start)).or_default() |=
                is_incomplete;
        }
        (incomplete.len(), incomplete.values().filter(|is_incomplete| **is_incomplete).count())
    }
}

#[cfg(test)]
mod tests {
    use podtap_flow::Counts;

    use super::*;
    use crate::fixtures::record;

    fn numbers(newest: &Newest, end: u64) -> Vec<u64> {
        newest.before(end, &Names::default()).map(|(number, _)| number).collect()
    }

    #[test]
    fn it_never_has_more_than_its_capacity() {
        let mut newest = Newest::default();
        for number in 0..CAPACITY as u64 + 5 {
            newest.push(record(number));
        }
        let all = numbers(&newest, u64::MAX);
        assert_eq!((all.len(), all[0], all.last()), (CAPACITY, CAPACITY as u64 + 4, Some(&5)));
        assert_eq!(numbers(&newest, 8), [7, 6, 5], "those before a number, the newest first");
        assert_eq!(numbers(&newest, 3), [0; 0], "those are gone");
        assert_eq!(newest.completeness(), (CAPACITY, CAPACITY / 2));
        newest.clear();
        assert_eq!(numbers(&newest, u64::MAX), [0; 0]);
        newest.push(record(0));
        assert_eq!(numbers(&newest, u64::MAX), [CAPACITY as u64 + 5], "numbers are not used again");
    }

    #[test]
    fn what_is_old_or_empty_is_not_in_it() {
        let mut newest = Newest::default();
        newest.push(Record { sent: Counts::default(), ..record(0) });
        assert_eq!(numbers(&newest, u64::MAX), [0; 0]);
        for number in 0..10 {
            newest.push(record(number));
        }
        newest.expire(Timestamp::from_seconds(3).plus(AGE));
        assert_eq!(numbers(&newest, u64::MAX).len(), 7);
    }

    #[test]
    fn it_takes_no_more_memory_than_documented() {
        // Three names of 253 bytes, and the rest of a DNS question.
        let most = size_of::<Record>() + 3 * 253 + size_of::<podtap_flow::Query>();
        assert!(size_of::<Record>() <= 340 && most <= 1152 && AGE < podtap_flow::names::TOMBSTONE, "{most}");
    }
}
