//! Series, and a limit on how many there are.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    ops::Bound,
};

/// Metrics that have the same labels.
#[derive(Debug)]
pub struct Family {
    pub labels: &'static [Label],
    pub metrics: &'static [Metric],
}

#[derive(Debug)]
pub struct Label {
    pub name: &'static str,
    pub detail: Detail,
}

/// How a label's value is folded when there is no room for another series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// It is [`OTHER`] if there is no room.
    Fine,
    /// Only if there is no room with all details left out, too.
    Coarse,
    /// It stays: it has one value.
    Constant,
}

#[derive(Debug)]
pub struct Metric {
    /// Without the suffix that counters have in Prometheus.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With this unit, in the notation of UCUM, which OTLP has.
    Counter(&'static str),
    /// A counter that does not have the suffix.
    Plain(&'static str),
    /// Of seconds.
    Histogram,
}

/// Upper bounds of buckets, in seconds: those of `NetObserv`. Another one is for what is beyond.
pub const BOUNDS: [f64; 10] = [0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 1.0];

impl Kind {
    /// How many series Prometheus makes of it.
    const fn series(self) -> usize {
        match self {
            Self::Counter(_) | Self::Plain(_) => 1,
            // Buckets, the last one, sum and count.
            Self::Histogram => BOUNDS.len() + 3,
        }
    }
}

/// The value of labels for which there is no room.
pub const OTHER: &str = "other";

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    Add(u64),
    /// In seconds.
    Observe(f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Count(u64),
    Histogram(Histogram),
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Not cumulative.
    pub buckets: [u64; BOUNDS.len() + 1],
    pub sum: f64,
}

impl Histogram {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Metrics of a family that have the same values of labels.
#[derive(Debug)]
pub struct Series {
    /// `None`: nothing was counted.
    pub values: Box<[Option<Value>]>,
    /// Since when it is counted, and when it was last, in milliseconds since 1970.
    pub since: u64,
    touched: u64,
}

/// Ends the value of a label in a key. Values do not have it.
const END: char = '\x1f';
/// After so many milliseconds without a change, a series ends: flows that last are reported each minute.
const IDLE: u64 = 10 * 60 * 1000;
/// So long, in milliseconds, others are told that it has ended, before it is forgotten. After that, Prometheus takes it for ended anyway.
const ENDED: u64 = 5 * 60 * 1000;
/// How often this is checked, in milliseconds.
const CHECK: u64 = 60 * 1000;

/// At most so many series. What finds no room is counted with labels that are [`OTHER`].
#[derive(Debug)]
pub struct Table {
    families: &'static [Family],
    /// By the values of labels. Their order lets [`Table::next`] continue in a table that has changed.
    series: Vec<BTreeMap<Box<str>, Series>>,
    /// How many may be added.
    room: usize,
    /// How many there are.
    count: usize,
    /// How often labels were left out.
    folded: u64,
    checked: u64,
    key: String,
}

/// The series of a table up to this one were passed on. By default, none were.
#[derive(Debug, Default)]
pub struct Position {
    family: usize,
    last: Option<Box<str>>,
}

impl Table {
    /// How many series there are if all labels are [`OTHER`]: a table always has room for these.
    pub fn least(families: &[Family]) -> usize {
        families.iter().map(Family::series).sum()
    }

    /// Of at most so many series.
    pub fn new(families: &'static [Family], most: usize) -> Self {
        Self {
            families,
            series: families.iter().map(|_| BTreeMap::new()).collect(),
            room: most.saturating_sub(Self::least(families)),
            count: 0,
            folded: 0,
            checked: 0,
            key: String::new(),
        }
    }

    /// Counts metrics of a family, which are given by their positions, each one once. `now` is in milliseconds since 1970.
    pub fn count(&mut self, family: usize, labels: &[&dyn Display], updates: &[(usize, Update)], now: u64) {
        let of = &self.families[family];
        debug_assert_eq!(labels.len(), of.labels.len());
        let series = &mut self.series[family];
        for finest in [Detail::Fine, Detail::Coarse, Detail::Constant] {
            of.key(&mut self.key, labels, finest);
            let found = series.get(&*self.key);
            let is_new = |metric: usize| found.is_none_or(|found| found.values[metric].is_none());
            let new = updates.iter().filter(|(metric, _)| is_new(*metric));
            let cost: usize = new.map(|(metric, _)| of.metrics[*metric].kind.series()).sum();
            if finest != Detail::Constant {
                if cost > self.room {
                    continue;
                }
                self.room -= cost;
            }
            self.count += cost;
            self.folded += u64::from(finest != Detail::Fine);
            if found.is_none() {
                let values = of.metrics.iter().map(|_| None).collect();
                series.insert((&*self.key).into(), Series { values, since: now, touched: now });
            }
            if let Some(found) = series.get_mut(&*self.key) {
                found.touched = now;
                for (metric, update) in updates {
                    found.values[*metric].get_or_insert(of.metrics[*metric].kind.zero()).update(*update);
                }
            }
            break;
        }
    }

    /// Forgets what ended long ago.
    pub fn forget_idle(&mut self, now: u64) {
        if now.abs_diff(self.checked) < CHECK {
            return;
        }
        self.checked = now;
        for (family, series) in self.families.iter().zip(&mut self.series) {
            series.retain(|key, series| {
                let is_kept = now.saturating_sub(series.touched) < IDLE + ENDED;
                if !is_kept {
                    let cost = family.cost(series);
                    self.count -= cost;
                    if !family.is_all_other(key) {
                        self.room += cost;
                    }
                }
                is_kept
            });
        }
    }

    /// How many series there are, as Prometheus counts them.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// How often labels were left out for want of room.
    pub const fn folded(&self) -> u64 {
        self.folded
    }

    /// Each metric with its series. `now` is in milliseconds since 1970.
    pub fn metrics(&self, now: u64) -> impl Iterator<Item = (&'static Metric, impl Iterator<Item = Shown<'_>>)> {
        self.families.iter().zip(&self.series).flat_map(move |(family, series)| family.metrics(series.iter(), now))
    }

    /// Likewise the next series of one family, at most so many, as Prometheus counts them, unless one label set has more. Moves the position
    /// behind them. What was added before it meanwhile is left out. `None`: there are no more.
    pub fn next(
        &self,
        position: &mut Position,
        most: usize,
        now: u64,
    ) -> Option<impl Iterator<Item = (&'static Metric, impl Iterator<Item = Shown<'_>>)>> {
        while let Some((family, series)) = self.families.get(position.family).zip(self.series.get(position.family)) {
            let last = position.last.take();
            let start = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut count = 0;
            let part = series.range::<str, _>((start, Bound::Unbounded)).take_while(|(_, series)| {
                let is_first = count == 0;
                count += family.cost(series);
                is_first || count <= most
            });
            if let Some((end, _)) = part.last() {
                position.last = Some(end.clone());
                let part = series.range::<str, _>((start, Bound::Included(&**end)));
                return Some(family.metrics(part, now));
            }
            position.family += 1;
        }
        None
    }
}

/// A series as others see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown<'a> {
    /// Without those that are unknown.
    pub labels: Vec<(&'static str, &'a str)>,
    pub value: Value,
    /// In milliseconds since 1970.
    pub since: u64,
    /// It has not changed for long.
    pub has_ended: bool,
}

impl Kind {
    fn zero(self) -> Value {
        match self {
            Self::Counter(_) | Self::Plain(_) => Value::Count(0),
            Self::Histogram => Value::Histogram(Histogram::default()),
        }
    }
}

impl Value {
    fn update(&mut self, update: Update) {
        match (self, update) {
            (Self::Count(count), Update::Add(more)) => *count = count.saturating_add(more),
            (Self::Histogram(histogram), Update::Observe(seconds)) => {
                let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
                histogram.buckets[bucket] += 1;
                histogram.sum += seconds;
            }
            (value, update) => debug_assert!(false, "{update:?} is not for {value:?}"),
        }
    }
}

impl Family {
    fn series(&self) -> usize {
        self.metrics.iter().map(|metric| metric.kind.series()).sum()
    }

    /// How many there are of what was counted.
    fn cost(&self, series: &Series) -> usize {
        let values = self.metrics.iter().zip(&series.values).filter(|(_, value)| value.is_some());
        values.map(|(metric, _)| metric.kind.series()).sum()
    }

    fn metrics<'a>(
        &'static self,
        all: impl Iterator<Item = (&'a Box<str>, &'a Series)> + Clone,
        now: u64,
    ) -> impl Iterator<Item = (&'static Metric, impl Iterator<Item = Shown<'a>>)> {
        self.metrics.iter().enumerate().map(move |(position, metric)| {
            let shown = all.clone().filter_map(move |(key, series)| {
                let value = series.values[position]?;
                let has_ended = now.saturating_sub(series.touched) >= IDLE;
                Some(Shown { labels: self.parse(key), value, since: series.since, has_ended })
            });
            (metric, shown)
        })
    }

    fn key(&self, key: &mut String, values: &[&dyn Display], finest: Detail) {
        key.clear();
        for (label, value) in self.labels.iter().zip(values) {
            if label.detail < finest {
                key.push_str(OTHER);
            } else {
                // It never fails.
                let _ = write!(Printable(key), "{value}");
            }
            key.push(END);
        }
    }

    fn is_all_other(&self, key: &str) -> bool {
        let mut folded = self.labels.iter().zip(key.split(END)).filter(|(label, _)| label.detail != Detail::Constant);
        folded.all(|(_, value)| value == OTHER)
    }

    fn parse<'a>(&self, key: &'a str) -> Vec<(&'static str, &'a str)> {
        let labels = self.labels.iter().zip(key.split(END));
        labels.filter(|(_, value)| !value.is_empty()).map(|(label, value)| (label.name, value)).collect()
    }
}

/// Leaves out control characters.
struct Printable<'a>(&'a mut String);

impl std::fmt::Write for Printable<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend(text.chars().filter(|c| !c.is_control()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILIES: &[Family] = &[Family {
        labels: &[
            Label { name: "event", detail: Detail::Constant },
            Label { name: "pod", detail: Detail::Coarse },
            Label { name: "peer", detail: Detail::Fine },
        ],
        metrics: &[
            Metric { name: "bytes", help: "", kind: Kind::Counter("By") },
            Metric { name: "time", help: "", kind: Kind::Histogram },
        ],
    }];

    fn add(table: &mut Table, pod: &str, peer: u32, now: u64) {
        table.count(0, &[&"e", &pod, &peer], &[(0, Update::Add(2))], now);
    }

    /// Sum of bytes by pod and peer.
    fn bytes(table: &Table) -> Vec<(String, u64)> {
        let metrics = table.metrics(0).filter(|(metric, _)| metric.name == "bytes");
        let mut found: Vec<_> = metrics
            .flat_map(|(_, series)| series)
            .map(|shown| {
                assert_eq!(shown.labels[0], ("event", "e"));
                let Value::Count(count) = shown.value else { panic!("{shown:?}") };
                (shown.labels[1..].iter().map(|(_, value)| *value).collect::<Vec<_>>().join(" "), count)
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn without_room_details_are_left_out_first() {
        // A counter and a histogram of 13 series are reserved.
        assert_eq!(Table::least(FAMILIES), 14);
        let mut table = Table::new(FAMILIES, 14 + 4);
        for peer in 0..10 {
            add(&mut table, "a", peer, 1);
        }
        // All room is taken by peers of a: b has none for its own.
        add(&mut table, "b", 1, 1);
        add(&mut table, "a", 3, 1);
        let expected = [("a 0", 2), ("a 1", 2), ("a 2", 2), ("a 3", 4), ("other other", 14)];
        assert_eq!(bytes(&table), expected.map(|(labels, count)| (labels.to_owned(), count)));
        assert_eq!((table.len(), table.folded()), (5, 7));
    }

    #[test]
    fn what_is_idle_makes_room() {
        let mut table = Table::new(FAMILIES, 14 + 2);
        for now in [0, IDLE / 2, IDLE] {
            table.forget_idle(now);
            add(&mut table, "a", 1, now);
        }
        let has_ended = |table: &Table, now| {
            let (_, series) = table.metrics(now).next().expect("bytes");
            series.map(|shown| shown.has_ended).collect::<Vec<_>>()
        };
        assert_eq!(has_ended(&table, 2 * IDLE - 1), [false]);
        assert_eq!(has_ended(&table, 2 * IDLE), [true]);
        add(&mut table, "b", 2, 0);
        table.count(0, &[&"e", &"b", &2], &[(1, Update::Observe(0.02))], 0);
        assert_eq!(table.len(), 2 + 13);
        table.forget_idle(IDLE + ENDED);
        assert_eq!(bytes(&table), [("a 1".to_owned(), 6)]);
        assert_eq!(table.len(), 1);
        add(&mut table, "c", 3, IDLE + ENDED);
        assert_eq!(table.len(), 2);
        assert_eq!(bytes(&table)[1], ("c 3".to_owned(), 2));
    }

    #[test]
    fn parts_have_each_series_once_whatever_changes_meanwhile() {
        let mut table = Table::new(FAMILIES, 1000);
        for (pod, now) in [("b", IDLE), ("c", 0), ("d", IDLE), ("f", IDLE)] {
            add(&mut table, pod, 0, now);
        }
        let (mut position, mut parts) = (Position::default(), Vec::<Vec<String>>::new());
        let mut next = |table: &Table| {
            let Some(metrics) = table.next(&mut position, 2, 0) else { return false };
            parts.push(metrics.flat_map(|(_, series)| series).map(|shown| shown.labels[1].1.to_owned()).collect());
            true
        };
        assert!(next(&table));
        // The last one that was passed on is forgotten, and others come before and after it.
        table.forget_idle(IDLE + ENDED);
        for pod in ["a", "e", "g"] {
            add(&mut table, pod, 0, 0);
        }
        table.count(0, &[&"e", &"g", &0], &[(1, Update::Observe(0.02))], 0);
        while next(&table) {}
        // A histogram of 13 series is not divided.
        let expected: [&[&str]; 4] = [&["b", "c"], &["d", "e"], &["f"], &["g", "g"]];
        assert_eq!(parts, expected);
    }

    #[test]
    fn values_are_separated_whatever_they_have() {
        let mut table = Table::new(FAMILIES, 100);
        table.count(0, &[&"e", &"a\x1fb\n", &""], &[(0, Update::Add(1))], 0);
        assert_eq!(bytes(&table), [("ab".to_owned(), 1)]);
    }

    #[test]
    fn times_are_in_buckets() {
        let mut table = Table::new(FAMILIES, 100);
        for seconds in [0.001, 0.005, 0.0051, 0.3, 2.0] {
            table.count(0, &[&"e", &"a", &1], &[(1, Update::Observe(seconds))], 0);
        }
        let (_, mut series) = table.metrics(0).find(|(metric, _)| metric.name == "time").expect("it is there");
        let Value::Histogram(histogram) = series.next().expect("one").value else { panic!("it is no histogram") };
        assert_eq!(histogram.buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(histogram.count(), 5);
        assert!((histogram.sum - 2.3111).abs() < 1e-9);
    }
}
