//! What `top` shows, from taps and the counters of their nodes. Pure.

use std::{cmp::Reverse, time::Duration};

use podtap_api::{DestinationStatus, PodTapStatus};
use serde::Serialize;
use serde_json::Value;

use crate::{
    table::Columns,
    tap::{Kind, Tap},
    top::{
        metrics::{Counters, Received, Receiver, Sent, TapKey, Target},
        nodes::{History, Reading},
    },
};

/// The order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// Those that mirror most first
    Rate,
    /// Those that lose most first
    Loss,
}

impl Order {
    /// How people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Loss => "loss",
        }
    }

    /// The other one.
    pub const fn next(self) -> Self {
        match self {
            Self::Rate => Self::Loss,
            Self::Loss => Self::Rate,
        }
    }
}

/// What is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum View {
    /// Taps.
    Taps(Vec<TapRow>),
    /// A tap: its targets, and its destinations.
    Tap(Vec<TargetRow>, Vec<DestinationRow>),
}

/// A tap.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TapRow {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    name: String,
    /// Its name in the table.
    #[serde(skip)]
    shown: String,
    tapped_pods: i32,
    matched_pods: i32,
    #[serde(flatten)]
    mirrored: Mirrored,
    #[serde(flatten)]
    arrived: Option<Arrived>,
    destination: String,
}

/// A tapped interface of a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRow {
    /// In a `ClusterPodTap` as namespace/name.
    pod: String,
    interface: String,
    node: String,
    #[serde(flatten)]
    mirrored: Mirrored,
}

/// A destination of a tap.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRow {
    destination: String,
    address: String,
    #[serde(flatten)]
    arrived: Option<Arrived>,
}

/// How frames were processed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mirrored {
    #[serde(flatten)]
    rate: Option<Rate>,
    frames: u64,
    bytes: u64,
    failed: u64,
    truncated: u64,
    limited: u64,
}

/// What is mirrored per second, without the headers around it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Rate {
    #[serde(rename = "ingressBitsPerSecond")]
    ingress_bits: u64,
    #[serde(rename = "egressBitsPerSecond")]
    egress_bits: u64,
    #[serde(rename = "framesPerSecond")]
    frames: u64,
}

/// What receivers got of what was sent to them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Arrived {
    received: u64,
    lost: u64,
    /// How many of a million frames were lost in the last [`LOSS_PERIOD`](super::nodes::LOSS_PERIOD), or at all before that is over. None while nothing is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_per_million: Option<u64>,
}

/// What was read from nodes, by their names.
pub type Histories<'a> = [(&'a str, &'a History)];

impl View {
    /// The rows of taps; of those of all namespaces, with these.
    pub fn of_taps(taps: &[Tap], all_namespaces: bool, nodes: &Histories<'_>) -> Self {
        let row = |tap: &Tap| {
            let status = tap.status().cloned().unwrap_or_default();
            let key = key(tap);
            let mut mirrored = Mirrored::default();
            for (_, history) in nodes {
                mirrored_of(&key, history).for_each(|(_, of_target)| mirrored.add(&of_target));
            }
            let (kind, before) = match tap.kind() {
                Kind::PodTap => ("PodTap", tap.namespace().filter(|_| all_namespaces)),
                Kind::ClusterPodTap => ("ClusterPodTap", Some("cptap")),
            };
            TapRow {
                kind,
                namespace: tap.namespace().map(str::to_owned),
                name: tap.name().to_owned(),
                shown: before.map(|before| format!("{before}/")).unwrap_or_default() + tap.name(),
                tapped_pods: status.tapped_pods,
                matched_pods: status.matched_pods,
                mirrored,
                arrived: arrived(&key, None, nodes),
                destination: status.destination,
            }
        };
        Self::Taps(taps.iter().map(row).collect())
    }

    /// The rows of a tap.
    pub fn of_tap(tap: &Tap, nodes: &Histories<'_>) -> Self {
        let key = key(tap);
        let of_node = |(node, history): &(&str, &History)| {
            let row = |(target, mirrored): (&Target, Mirrored)| TargetRow {
                pod: tap.pod_name(&target.namespace, &target.pod),
                interface: target.interface.clone(),
                node: (*node).to_owned(),
                mirrored,
            };
            mirrored_of(&key, history).map(row).collect::<Vec<_>>()
        };
        let PodTapStatus { destinations, .. } = tap.status().cloned().unwrap_or_default();
        let row = |destination: &DestinationStatus| DestinationRow {
            destination: destination.name.clone(),
            address: place(destination),
            arrived: destination.vni.and_then(|vni| arrived(&key, Some(vni.get()), nodes)),
        };
        Self::Tap(nodes.iter().flat_map(of_node).collect(), destinations.iter().map(row).collect())
    }

    /// Sorts the rows; those that are equal by name.
    pub fn sort(&mut self, order: Order) {
        match self {
            Self::Taps(rows) => rows.sort_by_cached_key(|row| {
                let loss = row.arrived.as_ref().map(Arrived::rank).unwrap_or_default();
                (Reverse(row.mirrored.rank(order, loss)), row.namespace.clone(), row.name.clone())
            }),
            Self::Tap(rows, _) => rows.sort_by_cached_key(|row| {
                (Reverse(row.mirrored.rank(order, (0, 0))), row.pod.clone(), row.interface.clone())
            }),
        }
    }

    /// As tables.
    pub fn text(&self) -> String {
        match self {
            Self::Taps(rows) => {
                let heading = [&["NAME", "PODS"][..], &SENT, &ARRIVED, &OTHERS, &["TO"]].concat();
                let cells = |row: &TapRow| {
                    let names = [row.shown.clone(), format!("{}/{}", row.tapped_pods, row.matched_pods)];
                    let arrived = Arrived::cells(row.arrived.as_ref());
                    let to = [row.destination.clone()];
                    [&names[..], &row.mirrored.sent(), &arrived, &row.mirrored.others(), &to].concat()
                };
                table(&heading, rows.iter().map(cells))
            }
            Self::Tap(targets, destinations) => {
                let heading = [&["POD", "INTERFACE", "NODE"][..], &SENT, &OTHERS].concat();
                let cells = |row: &TargetRow| {
                    let names = [&row.pod, &row.interface, &row.node].map(String::clone);
                    [&names[..], &row.mirrored.sent(), &row.mirrored.others()].concat()
                };
                let targets = table(&heading, targets.iter().map(cells));
                let heading = [&["DESTINATION", "TO", "RECEIVED"][..], &ARRIVED].concat();
                let cells = |row: &DestinationRow| {
                    let received = row.arrived.as_ref().map(|arrived| arrived.received.to_string()).unwrap_or_default();
                    let names = [row.destination.clone(), row.address.clone(), received];
                    [&names[..], &Arrived::cells(row.arrived.as_ref())].concat()
                };
                format!("{targets}\n{}", table(&heading, destinations.iter().map(cells)))
            }
        }
    }

    /// As a document for each row.
    pub fn documents(&self) -> Vec<Value> {
        // A row has neither maps nor numbers that JSON lacks.
        fn all<T: Serialize>(rows: &[T]) -> impl Iterator<Item = Value> {
            rows.iter().map(|row| serde_json::to_value(row).unwrap_or_default())
        }
        match self {
            Self::Taps(rows) => all(rows).collect(),
            Self::Tap(targets, destinations) => all(targets).chain(all(destinations)).collect(),
        }
    }
}

const SENT: [&str; 3] = ["IN", "OUT", "FRAMES"];
const ARRIVED: [&str; 2] = ["LOST", "LOSS"];
const OTHERS: [&str; 3] = ["FAILED", "TRUNCATED", "LIMITED"];

fn table(heading: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let heading = heading.iter().map(|name| (*name).to_owned()).collect();
    Columns::default().text(&std::iter::once(heading).chain(rows).collect::<Vec<_>>())
}

fn key(tap: &Tap) -> TapKey {
    TapKey { namespace: tap.namespace().unwrap_or_default().to_owned(), name: tap.name().to_owned() }
}

/// Where a destination is.
fn place(destination: &DestinationStatus) -> String {
    let DestinationStatus { node, pod, interface_name, address, .. } = destination;
    let host = match (pod, node) {
        (Some(pod), _) => format!("pod/{pod}"),
        (None, Some(node)) => format!("node/{node}"),
        (None, None) => return address.clone().unwrap_or_default(),
    };
    interface_name.iter().fold(host, |host, interface| format!("{host}:{interface}"))
}

/// The latest counters of a node, those before, and the time between; the latter only if both exist.
fn readings(node: &History) -> Option<(&Counters, Option<(&Counters, Duration)>)> {
    let Reading { at, counters } = node.latest.as_ref()?;
    let before = node.previous.as_ref().map(|previous| (&previous.counters, at.duration_since(previous.at)));
    Some((counters, before))
}

/// The targets of a tap on a node, and what was mirrored of them.
fn mirrored_of<'a>(tap: &TapKey, node: &'a History) -> impl Iterator<Item = (&'a Target, Mirrored)> {
    let of_tap = |(now, before): (&'a Counters, Option<(&'a Counters, Duration)>)| {
        let targets = now.sent.iter().filter(|(target, _)| target.tap == *tap);
        let of_target = move |(target, sent): (&'a Target, &'a Sent)| {
            // One that has just been tapped has counted from 0.
            let before = before.map(|(before, time)| (before.sent.get(target).copied().unwrap_or_default(), time));
            (target, Mirrored::of(sent, before))
        };
        targets.map(of_target)
    };
    readings(node).into_iter().flat_map(of_tap)
}

/// What arrived at the receivers of a tap, or at that with this VNI; none if no node has such a receiver.
fn arrived(tap: &TapKey, vni: Option<u32>, nodes: &Histories<'_>) -> Option<Arrived> {
    let is_asked = |receiver: &Receiver| receiver.tap == *tap && vni.is_none_or(|vni| receiver.vni == vni);
    let (mut total, mut lately, mut found) = (Received::default(), Received::default(), false);
    for (history, (now, _)) in nodes.iter().filter_map(|(_, history)| Some((history, readings(history)?))) {
        let before = history.arrived_before();
        for (receiver, now) in now.received.iter().filter(|(receiver, _)| is_asked(receiver)) {
            let before = before.and_then(|before| before.get(receiver)).copied().unwrap_or_default();
            found = true;
            total.frames += now.frames;
            total.lost += now.lost;
            lately.frames += since(now.frames, before.frames);
            lately.lost += since(now.lost, before.lost);
        }
    }
    let sent = lately.frames + lately.lost;
    let lost_per_million = (u128::from(lately.lost) * 1_000_000).checked_div(sent.into());
    let lost_per_million = lost_per_million.and_then(|part| u64::try_from(part).ok());
    found.then_some(Arrived { received: total.frames, lost: total.lost, lost_per_million })
}

/// How far a counter has increased. One that has started again from 0 counts from there.
fn since(now: u64, before: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// An increase, per second.
fn per_second(increase: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(increase) * 1_000_000 / time.as_micros().max(1)).unwrap_or(u64::MAX)
}

impl Mirrored {
    fn of(now: &Sent, before: Option<(Sent, Duration)>) -> Self {
        let rate = before.map(|(before, time)| {
            let bits = |now: u64, before| per_second(since(now, before).saturating_mul(8), time);
            let frames =
                since(now.ingress.frames, before.ingress.frames) + since(now.egress.frames, before.egress.frames);
            Rate {
                ingress_bits: bits(now.ingress.bytes, before.ingress.bytes),
                egress_bits: bits(now.egress.bytes, before.egress.bytes),
                frames: per_second(frames, time),
            }
        });
        Self {
            rate,
            frames: now.ingress.frames + now.egress.frames,
            bytes: now.ingress.bytes + now.egress.bytes,
            failed: now.failed,
            truncated: now.truncated,
            limited: now.limited,
        }
    }

    fn add(&mut self, other: &Self) {
        let Self { rate, frames, bytes, failed, truncated, limited } = other;
        if let Some(more) = rate {
            let rate = self.rate.get_or_insert_default();
            rate.ingress_bits += more.ingress_bits;
            rate.egress_bits += more.egress_bits;
            rate.frames += more.frames;
        }
        self.frames += frames;
        self.bytes += bytes;
        self.failed += failed;
        self.truncated += truncated;
        self.limited += limited;
    }

    /// What it is sorted by, with what rank its loss has.
    fn rank(&self, order: Order, loss: (u64, u64)) -> (u64, u64, u64) {
        let rate = self.rate.as_ref().map(|rate| rate.ingress_bits + rate.egress_bits);
        match order {
            Order::Rate => (rate.unwrap_or_default(), 0, 0),
            Order::Loss => (loss.0, loss.1, self.failed),
        }
    }

    /// The cells of [`SENT`].
    fn sent(&self) -> [String; 3] {
        let bits = |of: fn(&Rate) -> u64| self.rate.as_ref().map(|rate| bits(of(rate))).unwrap_or_default();
        [bits(|rate| rate.ingress_bits), bits(|rate| rate.egress_bits), self.frames.to_string()]
    }

    /// The cells of [`OTHERS`].
    fn others(&self) -> [String; 3] {
        [self.failed, self.truncated, self.limited].map(|count| count.to_string())
    }
}

impl Arrived {
    /// What it is sorted by.
    fn rank(&self) -> (u64, u64) {
        (self.lost_per_million.unwrap_or_default(), self.lost)
    }

    /// The cells of [`ARRIVED`]: empty without a receiver that counts.
    fn cells(arrived: Option<&Self>) -> [String; 2] {
        let Some(Self { lost, lost_per_million, .. }) = arrived else { return Default::default() };
        let percent = |part: u64| format!("{}.{}%", part / 10_000, part / 1_000 % 10);
        [lost.to_string(), lost_per_million.map(percent).unwrap_or_default()]
    }
}

/// Bits per second with three digits and a decimal unit.
fn bits(rate: u64) -> String {
    let mut unit = 1;
    for name in ["", "k", "M", "G", "T"] {
        let (whole, tenths) = (rate / unit, rate / (unit / 10).max(1) % 10);
        if whole < 10 && unit > 1 {
            return format!("{whole}.{tenths}{name}");
        }
        if whole < 1000 {
            return format!("{whole}{name}");
        }
        unit *= 1000;
    }
    format!("{}P", rate / unit)
}
