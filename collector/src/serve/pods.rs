//! Metrics about pods: how much each sends and receives.

use std::fmt;

use podtap_flow::{
    map::failure_name,
    pods::{PodTraffic, Pods, RoleTraffic},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
    registry::Unit,
};

use crate::shared::Shared;

/// Most series of a metric that a pod has: two roles, each with three reasons of failures.
const SERIES_PER_POD: usize = 6;

/// Counters of pods. Those of pods that find no room are counted in a series of its own name, `other`.
#[derive(Debug)]
pub struct OfPods(Shared);

impl OfPods {
    pub fn new(shared: &Shared) -> Self {
        Self(shared.clone())
    }
}

/// No pods yet, and room for as many as have at most this many series of each metric.
pub fn counted(most: usize) -> Pods {
    // One is left for the others.
    Pods::new((most.saturating_sub(SERIES_PER_POD) / SERIES_PER_POD).max(1))
}

/// The names of labels are those of OpenTelemetry, in Prometheus's form.
#[derive(Clone, Debug, EncodeLabelSet)]
struct Labels {
    k8s_namespace_name: String,
    k8s_pod_name: String,
    k8s_owner_name: String,
    k8s_owner_type: String,
    role: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct WithDirection {
    #[prometheus(flatten)]
    pod: Labels,
    direction: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct WithReason {
    #[prometheus(flatten)]
    pod: Labels,
    reason: &'static str,
}

/// Each pod in each role, and the others, if there are any.
fn series(pods: &Pods) -> Vec<(Labels, RoleTraffic)> {
    let mut series = Vec::new();
    let mut add = |[namespace, name, owner, kind]: [&str; 4], roles: &[RoleTraffic; 2]| {
        for (role, traffic) in ["client", "server"].into_iter().zip(roles) {
            if *traffic != RoleTraffic::default() {
                let labels = Labels {
                    k8s_namespace_name: namespace.to_owned(),
                    k8s_pod_name: name.to_owned(),
                    k8s_owner_name: owner.to_owned(),
                    k8s_owner_type: kind.to_owned(),
                    role,
                };
                series.push((labels, traffic.clone()));
            }
        }
    };
    for ((namespace, name), PodTraffic { workload, roles, .. }) in pods.iter() {
        add([namespace, name, &workload.name, &workload.kind], roles);
    }
    add(["", "other", "", ""], pods.others());
    series
}

impl Collector for OfPods {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let series = self.0.lock().pods.as_ref().map(series).unwrap_or_default();
        let mut family = encoder.encode_descriptor(
            "pod_payload",
            "Payload of TCP and UDP that a pod sent and received",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        for (pod, traffic) in &series {
            for (direction, bytes) in [("sent", traffic.sent), ("received", traffic.received)] {
                let labels = WithDirection { pod: pod.clone(), direction };
                ConstCounter::new(bytes).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "pod_connections_opened",
            "Flows that a pod opened (client) or got (server) and that were seen from their beginning",
            None,
            MetricType::Counter,
        )?;
        for (pod, traffic) in &series {
            ConstCounter::new(traffic.connections).encode(family.encode_family(pod)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "pod_connections_failed",
            "Attempts of a pod (client) or to it (server) that were refused, not answered, or to what is unreachable",
            None,
            MetricType::Counter,
        )?;
        for (pod, traffic) in &series {
            for (failure, count) in &traffic.failed {
                let labels = WithReason { pod: pod.clone(), reason: failure_name(*failure) };
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use podtap_flow::{
        Counts, Failure, Record, Timestamp,
        map::Bounds,
        named::NamedRecord,
        names::{Names, Objects},
    };
    use podtap_runtime::http::text;
    use prometheus_client::registry::Registry;
    use serde_json::json;

    use super::*;
    use crate::fixtures::record;

    /// Of pods with the addresses 10.0.0.1 and so on.
    fn names(pods: &[&str]) -> Names {
        let pod = |(name, last): (&&str, u8)| {
            json!({"namespace": "shop", "name": name, "uid": name, "addresses": [format!("10.0.0.{last}")],
                   "workload": {"kind": "StatefulSet", "name": "db", "apiVersion": "apps/v1"}})
        };
        let pods: Vec<_> = pods.iter().zip(1..).map(pod).collect();
        let objects: Objects = serde_json::from_value(json!({"pods": pods})).expect("objects");
        Names::new(objects)
    }

    fn scrape(shared: &Shared) -> String {
        let mut registry = Registry::with_prefix("podtap");
        registry.register_collector(Box::new(OfPods::new(shared)));
        text(&registry).expect("it can be encoded")
    }

    fn calls(shared: &Shared, names: &Names) {
        let bytes = |payload| Counts { frames: 1, payload, octets: payload + 40, flags: 0 };
        let answered = Record { sent: bytes(10), received: bytes(300), ..record(1) };
        let mut state = shared.lock();
        let pods = state.pods.as_mut().expect("they are counted");
        pods.open(&NamedRecord::new(&Record { is_first: true, ..answered.clone() }, names));
        pods.record(&NamedRecord::new(&Record { is_first: false, ..answered }, names));
        pods.record(&NamedRecord::new(&Record { failure: Some(Failure::Refused), ..record(2) }, names));
    }

    #[test]
    fn a_pod_is_counted_as_client_and_as_server() {
        let shared = Shared::new(Names::default(), Bounds::default());
        shared.lock().pods = Some(counted(100));
        calls(&shared, &names(&["db-0", "db-1"]));
        let text = scrape(&shared);
        let pod = |name: &str, role: &str| {
            format!(
                "k8s_namespace_name=\"shop\",k8s_pod_name=\"{name}\",k8s_owner_name=\"db\",k8s_owner_type=\"StatefulSet\",role=\"{role}\""
            )
        };
        let (client, server) = (pod("db-0", "client"), pod("db-1", "server"));
        for line in [
            format!("podtap_pod_payload_bytes_total{{{client},direction=\"sent\"}} 10"),
            format!("podtap_pod_payload_bytes_total{{{client},direction=\"received\"}} 300"),
            format!("podtap_pod_payload_bytes_total{{{server},direction=\"sent\"}} 300"),
            format!("podtap_pod_payload_bytes_total{{{server},direction=\"received\"}} 10"),
            format!("podtap_pod_connections_opened_total{{{client}}} 2"),
            format!("podtap_pod_connections_opened_total{{{server}}} 2"),
            format!("podtap_pod_connections_failed_total{{{client},reason=\"refused\"}} 1"),
            format!("podtap_pod_connections_failed_total{{{server},reason=\"refused\"}} 1"),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(!text.contains(&pod("db-0", "server")), "{text}");
    }

    #[test]
    fn a_pod_without_room_is_counted_with_the_others_and_an_idle_one_makes_room() {
        let shared = Shared::new(Names::default(), Bounds::default());
        shared.lock().pods = Some(counted(2 * SERIES_PER_POD));
        calls(&shared, &names(&["db-0", "db-1"]));
        let expire = |seconds| {
            let mut state = shared.lock();
            state.pods.as_mut().expect("they are counted").expire(Timestamp::from_seconds(seconds));
        };
        expire(3000);
        let names_of = |shared: &Shared| -> Vec<String> {
            let state = shared.lock();
            state.pods.iter().flat_map(Pods::iter).map(|((_, name), _)| name.clone()).collect()
        };
        assert_eq!(names_of(&shared), ["db-0"]);
        expire(4000);
        assert!(names_of(&shared).is_empty());
        calls(&shared, &names(&["db-7", "db-1"]));
        assert_eq!(names_of(&shared), ["db-7"]);
        let text = scrape(&shared);
        let other =
            "k8s_namespace_name=\"\",k8s_pod_name=\"other\",k8s_owner_name=\"\",k8s_owner_type=\"\",role=\"server\"";
        assert!(text.contains(&format!("podtap_pod_connections_opened_total{{{other}}} 4")), "{text}");
    }
}
