//! Metrics about the map: how much each client calls each server.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use clap::ValueEnum;
use podtap_flow::map::{Edge, HANDSHAKE_BOUNDS, Handshakes, Party, Traffic, failure_name};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter},
    registry::Unit,
};

use crate::shared::Shared;

/// What a series is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// A namespace that calls another one. Nodes, and what is outside of the cluster, are one each
    Namespace,
    /// A workload that calls another one
    Workload,
    /// As workload, and the totals of each pod
    Pod,
}

/// Counters of edges. What found no room when it was first seen is counted in a series of its own name, `other`, for good. Counters never
/// decrease, also when the map forgets an edge.
pub struct Edges {
    shared: Shared,
    level: Level,
    /// Most series of a metric.
    most: usize,
    counted: Mutex<Counted>,
}

/// What was counted when it was asked for last.
#[derive(Debug, Default)]
struct Counted {
    /// By the labels that have series of their own, and those of the others.
    edges: BTreeMap<Labels, Series>,
    /// Of those that ended, and had none of their own.
    ended: Histogram,
    /// DNS responses.
    responses: BTreeMap<Client, Monotone>,
}

/// Of the edges with the same labels.
#[derive(Debug, Default)]
struct Series {
    connections: Monotone,
    sent: Monotone,
    received: Monotone,
    failed: BTreeMap<&'static str, Monotone>,
    /// Whether it has a histogram of its own, which has many series.
    has_histogram: bool,
    handshakes: Histogram,
}

/// A counter that never decreases, although the map may forget some of what it counts.
#[derive(Clone, Copy, Debug, Default)]
struct Monotone {
    /// Of what the map has.
    now: u64,
    /// Of what it no longer has.
    before: u64,
}

impl Monotone {
    fn set(&mut self, now: u64) {
        self.before += self.now.saturating_sub(now);
        self.now = now;
    }

    const fn get(self) -> u64 {
        self.now + self.before
    }
}

/// Times of handshakes: the buckets, and microseconds in all.
#[derive(Clone, Copy, Debug, Default)]
struct Histogram([Monotone; HANDSHAKE_BOUNDS.len() + 2]);

impl Histogram {
    fn set(&mut self, now: &Handshakes) {
        let sum = u64::try_from(now.total.as_micros()).unwrap_or(u64::MAX);
        self.0.iter_mut().zip(now.buckets.into_iter().chain([sum])).for_each(|(counter, now)| counter.set(now));
    }

    /// Adds one that ends.
    fn absorb(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(counter, ended)| counter.before += ended.get());
    }

    fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let seconds = |microseconds: u64| Duration::from_micros(microseconds).as_secs_f64();
        let bounds = HANDSHAKE_BOUNDS.into_iter().map(seconds).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0).map(|(bound, count)| (bound, count.get())).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(self.0[buckets.len()].get());
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

impl fmt::Debug for Edges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edges").field("level", &self.level).field("most", &self.most).finish_non_exhaustive()
    }
}

/// The names of labels are those that OpenTelemetry's network metrics use, in Prometheus's form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct Labels {
    k8s_src_namespace: String,
    k8s_src_owner_name: String,
    k8s_src_owner_type: String,
    /// What is outside of the cluster.
    src_name: String,
    k8s_dst_namespace: String,
    k8s_dst_owner_name: String,
    k8s_dst_owner_type: String,
    /// Likewise.
    dst_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct WithDirection {
    #[prometheus(flatten)]
    edge: Labels,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct WithReason {
    #[prometheus(flatten)]
    edge: Labels,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct Client {
    k8s_src_namespace: String,
    k8s_src_owner_name: String,
    k8s_src_owner_type: String,
    src_name: String,
    rcode: &'static str,
}

/// What the map has of some edges.
#[derive(Debug, Default)]
struct Sums {
    connections: u64,
    sent: u64,
    received: u64,
    failed: BTreeMap<&'static str, u64>,
    handshakes: Handshakes,
    responses: BTreeMap<u8, u64>,
}

/// Most series of a metric that an edge has: directions, reasons of failures, and response codes.
const SERIES_PER_EDGE: usize = 4;
/// A series for each bucket, and two for count and sum.
const SERIES_PER_HISTOGRAM: usize = HANDSHAKE_BOUNDS.len() + 3;
/// Response codes that have series of their own. The others, which are rare, share one.
const CODES: [(u8, &str); 3] = [(0, "NOERROR"), (2, "SERVFAIL"), (3, "NXDOMAIN")];

impl Edges {
    /// At most this many series of each metric.
    pub fn new(shared: &Shared, level: Level, most: usize) -> Self {
        Self { shared: shared.clone(), level, most: most.max(1), counted: Mutex::default() }
    }

    /// How many edges have series of their own, if each has so many. One is left for the others.
    fn room(&self, series: usize) -> usize {
        (self.most.saturating_sub(series) / series).max(1)
    }

    /// Takes over what the map has.
    fn update(&self, counted: &mut Counted) {
        let view = self.shared.view();
        let other = Labels::other();
        let Counted { edges, ended, responses } = counted;
        let mut sums: BTreeMap<Labels, Sums> = BTreeMap::new();
        let room = self.room(SERIES_PER_EDGE);
        for (edge, traffic) in view.map.edges() {
            let mut labels = Labels::of(edge, self.level);
            if !edges.contains_key(&labels) {
                if edges.len() - usize::from(edges.contains_key(&other)) >= room {
                    labels = other.clone();
                }
                edges.entry(labels.clone()).or_default();
            }
            sums.entry(labels).or_default().add(traffic);
        }
        // Series of what the map has forgotten end, and make room. Those of the others stay.
        edges.retain(|labels, series| {
            let stays = sums.contains_key(labels) || *labels == other;
            if !stays && !series.has_histogram {
                ended.absorb(&series.handshakes);
            }
            stays
        });
        let mut by_client: BTreeMap<Client, u64> = BTreeMap::new();
        let mut histograms = edges.values().filter(|series| series.has_histogram).count();
        for (labels, series) in edges.iter_mut() {
            let sums = sums.remove(labels).unwrap_or_default();
            for (code, count) in &sums.responses {
                *by_client.entry(Client::of(labels, *code)).or_default() += count;
            }
            let is_new = series.connections.get() == 0 && series.handshakes.0[0].get() == 0;
            if is_new && *labels != other && histograms < self.room(SERIES_PER_HISTOGRAM) {
                series.has_histogram = true;
                histograms += 1;
            }
            series.set(&sums);
        }
        responses.retain(|client, _| by_client.contains_key(client));
        for (client, count) in by_client {
            responses.entry(client).or_default().set(count);
        }
    }
}

impl Series {
    fn set(&mut self, now: &Sums) {
        self.connections.set(now.connections);
        self.sent.set(now.sent);
        self.received.set(now.received);
        for (reason, count) in &mut self.failed {
            count.set(now.failed.get(reason).copied().unwrap_or_default());
        }
        for (reason, count) in &now.failed {
            self.failed.entry(reason).or_default().set(*count);
        }
        self.handshakes.set(&now.handshakes);
    }
}

impl Client {
    fn of(labels: &Labels, code: u8) -> Self {
        let name = CODES.iter().find(|(known, _)| *known == code).map_or("other", |(_, name)| name);
        Self {
            k8s_src_namespace: labels.k8s_src_namespace.clone(),
            k8s_src_owner_name: labels.k8s_src_owner_name.clone(),
            k8s_src_owner_type: labels.k8s_src_owner_type.clone(),
            src_name: labels.src_name.clone(),
            rcode: name,
        }
    }
}

impl Labels {
    fn of(edge: &Edge, level: Level) -> Self {
        let [k8s_src_namespace, k8s_src_owner_name, k8s_src_owner_type, src_name] = describe(&edge.client, level);
        let [k8s_dst_namespace, k8s_dst_owner_name, k8s_dst_owner_type, dst_name] = describe(&edge.server, level);
        Self {
            k8s_src_namespace,
            k8s_src_owner_name,
            k8s_src_owner_type,
            src_name,
            k8s_dst_namespace,
            k8s_dst_owner_name,
            k8s_dst_owner_type,
            dst_name,
        }
    }

    fn other() -> Self {
        Self::of(&Edge { client: Party::Other, server: Party::Other }, Level::Workload)
    }
}

/// Namespace, name and kind of the owner, and the name of what is outside of the cluster.
fn describe(party: &Party, level: Level) -> [String; 4] {
    if level == Level::Namespace {
        let (namespace, name) = match party {
            Party::Workload { namespace, .. } | Party::Service { namespace, .. } => (namespace.as_str(), ""),
            Party::Node { .. } => ("", "node"),
            Party::External { .. } => ("", "external"),
            Party::AnotherNamespace => ("", "another namespace"),
            Party::Other => ("", "other"),
        };
        return [namespace, "", "", name].map(str::to_owned);
    }
    let [namespace, name, kind, external] = match party {
        Party::Workload { namespace, workload } => [namespace.as_str(), &workload.name, &workload.kind, ""],
        Party::Service { namespace, name } => [namespace.as_str(), name, "Service", ""],
        Party::Node { name } => ["", name.as_str(), "Node", ""],
        Party::External { name } => ["", "", "", name.as_deref().unwrap_or("external")],
        Party::AnotherNamespace => ["", "", "", "another namespace"],
        Party::Other => ["", "", "", "other"],
    };
    [namespace, name, kind, external].map(str::to_owned)
}

impl Sums {
    fn add(&mut self, traffic: &Traffic) {
        self.connections += traffic.connections;
        self.sent += traffic.sent;
        self.received += traffic.received;
        for (failure, count) in &traffic.failed {
            *self.failed.entry(failure_name(*failure)).or_default() += count;
        }
        self.handshakes.merge(&traffic.handshakes);
        for (code, count) in &traffic.responses {
            *self.responses.entry(*code).or_default() += count;
        }
    }
}

impl Collector for Edges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        self.update(&mut counted);
        let Counted { edges, ended, responses } = &*counted;
        let mut family = encoder.encode_descriptor(
            "flow_payload",
            "Payload of TCP and UDP that clients sent (request) and servers sent (response)",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        for (edge, series) in edges {
            for (direction, bytes) in [("request", series.sent), ("response", series.received)] {
                let labels = WithDirection { edge: edge.clone(), direction };
                ConstCounter::new(bytes.get()).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "connections_opened",
            "Flows that were seen from their beginning",
            None,
            MetricType::Counter,
        )?;
        for (edge, series) in edges {
            ConstCounter::new(series.connections.get()).encode(family.encode_family(edge)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "connections_failed",
            "Attempts that were refused, not answered, or to what is unreachable",
            None,
            MetricType::Counter,
        )?;
        for (edge, series) in edges {
            for (reason, count) in &series.failed {
                let labels = WithReason { edge: edge.clone(), reason };
                ConstCounter::new(count.get()).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "tcp_handshake",
            "Time from the SYN of a client to its acknowledgment of the answer",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        let other = Labels::other();
        let mut of_others = *ended;
        for (edge, series) in edges {
            if !series.has_histogram {
                of_others.absorb(&series.handshakes);
            } else if series.handshakes.0.iter().any(|bucket| bucket.get() > 0) {
                series.handshakes.encode(&mut family.encode_family(edge)?)?;
            }
        }
        if of_others.0.iter().any(|bucket| bucket.get() > 0) {
            of_others.encode(&mut family.encode_family(&other)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "dns_responses",
            "Answers of DNS servers to clients, by response code",
            None,
            MetricType::Counter,
        )?;
        for (client, count) in responses {
            ConstCounter::new(count.get()).encode(family.encode_family(client)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
