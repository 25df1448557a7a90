//! Metrics about the map: how much each client calls each server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, PoisonError},
};

use podtap_flow::map::{Edge, Party, Traffic, failure_name};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
    registry::Unit,
};

use crate::shared::Shared;

/// Counters of edges. An edge that found no room when it was first seen is counted in a series of its own name, `other`, for good:
/// counters never decrease.
pub struct Edges {
    shared: Shared,
    /// Most series of a metric.
    most: usize,
    /// The edges that have series of their own.
    admitted: Mutex<BTreeSet<Edge>>,
}

impl fmt::Debug for Edges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edges").field("most", &self.most).finish_non_exhaustive()
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

/// What is counted of some edges.
#[derive(Clone, Debug, Default)]
struct Sums {
    connections: u64,
    sent: u64,
    received: u64,
    failed: BTreeMap<&'static str, u64>,
}

impl Edges {
    /// At most this many series of each metric.
    pub fn new(shared: &Shared, most: usize) -> Self {
        Self { shared: shared.clone(), most: most.max(1), admitted: Mutex::new(BTreeSet::new()) }
    }

    /// By labels.
    fn sums(&self) -> BTreeMap<Labels, Sums> {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums: BTreeMap<Labels, Sums> = BTreeMap::new();
        let view = self.shared.view();
        // One is left for the others. A metric has up to three series per edge.
        let most = (self.most.saturating_sub(SERIES_PER_EDGE) / SERIES_PER_EDGE).max(1);
        // The map may have been forgotten.
        admitted.retain(|edge| view.map.contains(edge));
        for (edge, traffic) in view.map.edges() {
            let is_admitted = admitted.contains(edge) || (admitted.len() < most && admitted.insert(edge.clone()));
            let labels = if is_admitted { Labels::of(edge) } else { Labels::other() };
            sums.entry(labels).or_default().add(traffic);
        }
        sums
    }
}

/// Of one metric: failed connections have three reasons.
const SERIES_PER_EDGE: usize = 3;

impl Labels {
    fn of(edge: &Edge) -> Self {
        let [k8s_src_namespace, k8s_src_owner_name, k8s_src_owner_type, src_name] = describe(&edge.client);
        let [k8s_dst_namespace, k8s_dst_owner_name, k8s_dst_owner_type, dst_name] = describe(&edge.server);
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
        Self::of(&Edge { client: Party::Other, server: Party::Other })
    }
}

/// Namespace, name and kind of the owner, and the name of what is outside of the cluster.
fn describe(party: &Party) -> [String; 4] {
    let [namespace, name, kind, external] = match party {
        Party::Workload { namespace, workload } => [namespace.as_str(), &workload.name, &workload.kind, ""],
        Party::Service { namespace, name } => [namespace.as_str(), name, "Service", ""],
        Party::Node { name } => ["", name.as_str(), "Node", ""],
        Party::External { name } => ["", "", "", name.as_deref().unwrap_or("external")],
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
    }
}

impl Collector for Edges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sums = self.sums();
        let mut family = encoder.encode_descriptor(
            "flow_payload",
            "Payload of TCP and UDP that clients sent (request) and servers sent (response)",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        for (edge, sums) in &sums {
            for (direction, bytes) in [("request", sums.sent), ("response", sums.received)] {
                let labels = WithDirection { edge: edge.clone(), direction };
                ConstCounter::new(bytes).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "connections_opened",
            "Flows that were seen from their beginning",
            None,
            MetricType::Counter,
        )?;
        for (edge, sums) in &sums {
            ConstCounter::new(sums.connections).encode(family.encode_family(edge)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "connections_failed",
            "Attempts that were refused, not answered, or to what is unreachable",
            None,
            MetricType::Counter,
        )?;
        for (edge, sums) in &sums {
            for (reason, count) in &sums.failed {
                let labels = WithReason { edge: edge.clone(), reason };
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use podtap_flow::{Failure, names::Names};
    use podtap_runtime::http::text;
    use prometheus_client::registry::Registry;

    use super::*;

    fn known(names: usize) -> Shared {
        let shared = Shared::new(Names::default());
        for number in 0..names {
            let edge = Edge {
                client: Party::Node { name: "n1".into() },
                server: Party::External { name: Some(format!("host{number}.example.com")) },
            };
            let failed = [(Failure::Refused, 1), (Failure::NoAnswer, 2), (Failure::Unreachable, 3)].into();
            shared
                .lock()
                .map
                .restore(edge, Traffic { connections: 1, sent: 10, received: 20, failed, ..Traffic::default() });
        }
        shared
    }

    fn scrape(shared: &Shared, most: usize) -> String {
        let mut registry = Registry::with_prefix("podtap");
        registry.register_collector(Box::new(Edges::new(shared, most)));
        text(&registry).expect("it can be encoded")
    }

    #[test]
    fn an_edge_has_its_counters() {
        let text = scrape(&known(1), 100);
        let labels = "k8s_src_namespace=\"\",k8s_src_owner_name=\"n1\",k8s_src_owner_type=\"Node\",src_name=\"\",k8s_dst_namespace=\"\",\
            k8s_dst_owner_name=\"\",k8s_dst_owner_type=\"\",dst_name=\"host0.example.com\"";
        for line in [
            format!("podtap_flow_payload_bytes_total{{{labels},direction=\"request\"}} 10"),
            format!("podtap_flow_payload_bytes_total{{{labels},direction=\"response\"}} 20"),
            format!("podtap_connections_opened_total{{{labels}}} 1"),
            format!("podtap_connections_failed_total{{{labels},reason=\"noAnswer\"}} 2"),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_together() {
        let text = scrape(&known(1000), 300);
        for metric in
            ["podtap_flow_payload_bytes_total{", "podtap_connections_opened_total{", "podtap_connections_failed_total{"]
        {
            let series: Vec<&str> = text.lines().filter(|line| line.starts_with(metric)).collect();
            assert!((100..=300).contains(&series.len()), "{metric}: {}", series.len());
            let counted: u64 = series.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
            let expected = if metric.contains("payload") {
                30_000
            } else if metric.contains("opened") {
                1000
            } else {
                6000
            };
            assert_eq!(counted, expected, "{metric}");
        }
        assert!(text.contains("dst_name=\"other\""));
    }
}
