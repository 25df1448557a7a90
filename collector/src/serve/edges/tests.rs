use podtap_flow::{
    Counts, Endpoint, Failure, Record, Timestamp,
    map::Bounds,
    named::NamedRecord,
    names::{Names, Workload},
};
use podtap_runtime::http::text;
use prometheus_client::registry::Registry;

use super::*;

fn traffic() -> Traffic {
    let failed = [(Failure::Refused, 1), (Failure::NoAnswer, 2), (Failure::Unreachable, 3)].into();
    let mut handshakes = Handshakes { total: Duration::from_millis(2500), ..Handshakes::default() };
    // One of up to a millisecond, and two of more than all bounds.
    (handshakes.buckets[3], handshakes.buckets[HANDSHAKE_BOUNDS.len()]) = (1, 2);
    let responses = [(0, 5), (3, 1), (9, 1)].into();
    Traffic { connections: 1, sent: 10, received: 20, failed, handshakes, responses, ..Traffic::default() }
}

fn to_external(number: usize) -> Edge {
    Edge {
        client: Party::Node { name: "n1".into() },
        server: Party::External { name: Some(format!("host{number}.example.com")) },
    }
}

fn known(names: usize) -> Shared {
    let shared =
        Shared::new(Names::default(), Bounds { forget_after: Some(Duration::from_secs(10)), ..Bounds::default() });
    for number in 0..names {
        shared.lock().map.restore(to_external(number), traffic());
    }
    shared
}

fn registry(shared: &Shared, level: Level, most: usize) -> Registry {
    let mut registry = Registry::with_prefix("podtap");
    registry.register_collector(Box::new(Edges::new(shared, level, most)));
    registry
}

fn scrape(shared: &Shared, level: Level, most: usize) -> String {
    text(&registry(shared, level, most)).expect("it can be encoded")
}

/// Sum of the series of a metric, and how many there are.
fn sum(text: &str, metric: &str) -> (u64, usize) {
    let series: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{metric}{{"))).collect();
    (series.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum(), series.len())
}

#[test]
fn an_edge_has_its_counters() {
    let text = scrape(&known(1), Level::Workload, 100);
    let client = "k8s_src_namespace=\"\",k8s_src_owner_name=\"n1\",k8s_src_owner_type=\"Node\",src_name=\"\"";
    let labels = format!(
        "{client},k8s_dst_namespace=\"\",k8s_dst_owner_name=\"\",k8s_dst_owner_type=\"\",dst_name=\"host0.example.com\""
    );
    for line in [
        format!("podtap_flow_payload_bytes_total{{{labels},direction=\"request\"}} 10"),
        format!("podtap_flow_payload_bytes_total{{{labels},direction=\"response\"}} 20"),
        format!("podtap_connections_opened_total{{{labels}}} 1"),
        format!("podtap_connections_failed_total{{{labels},reason=\"noAnswer\"}} 2"),
        format!("podtap_tcp_handshake_seconds_sum{{{labels}}} 2.5"),
        format!("podtap_tcp_handshake_seconds_count{{{labels}}} 3"),
        format!("podtap_tcp_handshake_seconds_bucket{{le=\"0.0005\",{labels}}} 0"),
        format!("podtap_tcp_handshake_seconds_bucket{{le=\"0.001\",{labels}}} 1"),
        format!("podtap_tcp_handshake_seconds_bucket{{le=\"5.0\",{labels}}} 1"),
        format!("podtap_tcp_handshake_seconds_bucket{{le=\"+Inf\",{labels}}} 3"),
        format!("podtap_dns_responses_total{{{client},rcode=\"NOERROR\"}} 5"),
        format!("podtap_dns_responses_total{{{client},rcode=\"NXDOMAIN\"}} 1"),
        format!("podtap_dns_responses_total{{{client},rcode=\"other\"}} 1"),
    ] {
        assert!(text.contains(&line), "{line} is not in\\n{text}");
    }
}

#[test]
fn what_finds_no_room_is_counted_together() {
    let text = scrape(&known(1000), Level::Workload, 300);
    for (metric, expected, least) in [
        ("podtap_flow_payload_bytes_total", 30_000, 140),
        ("podtap_connections_opened_total", 1000, 70),
        ("podtap_connections_failed_total", 6000, 200),
        ("podtap_tcp_handshake_seconds_count", 3000, 15),
        ("podtap_dns_responses_total", 7000, 3),
    ] {
        let (counted, series) = sum(&text, metric);
        assert_eq!(counted, expected, "{metric}");
        assert!((least..=300).contains(&series), "{metric}: {series}");
    }
    let histogram = text.lines().filter(|line| line.starts_with("podtap_tcp_handshake_seconds_")).count();
    assert!(histogram <= 300, "{histogram}");
    assert!(text.contains("dst_name=\"other\""));
}

#[test]
fn counters_never_decrease_when_edges_are_forgotten() {
    // With room for a quarter of the edges, and for all of them but not for their histograms.
    for most in [100, 1000] {
        let shared = known(0);
        // Half of them are seen again.
        for number in 0..100 {
            let last = Timestamp::from_seconds(if number % 2 == 0 { 0 } else { 100 });
            shared.lock().map.restore(to_external(number), Traffic { last, ..traffic() });
        }
        let registry = registry(&shared, Level::Workload, most);
        let scrape = || text(&registry).expect("it can be encoded");
        let before = scrape();
        shared.lock().map.expire(Timestamp::from_seconds(100));
        assert_eq!(shared.lock().map.len(), 50);
        // Readers get a view that may be 0.2 seconds old.
        shared.refresh();
        let after = scrape();
        let values = |text: &str| -> BTreeMap<String, f64> {
            let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
            lines.map(|(series, value)| (series.to_owned(), value.parse().expect("a number"))).collect()
        };
        let (before, after) = (values(&before), values(&after));
        let of_others = |series: &str| series.starts_with("podtap_tcp_handshake") && series.contains("\"other\"");
        assert!(after.keys().any(|series| of_others(series)), "some have no histogram of their own");
        let still: Vec<_> =
            before.iter().filter_map(|(series, value)| Some((series, value, after.get(series)?))).collect();
        assert!(still.len() > 20 && still.len() < before.len(), "{} of {}", still.len(), before.len());
        for (series, before, after) in still {
            assert!(after >= before, "{series}: {before}, then {after}");
        }
    }
}

/// A connection of a pod, by the last bytes of its address, to a name outside of the cluster.
fn record(pod: u8, name: &str) -> Record {
    let end = |address: [u8; 4], port| Endpoint { address: address.into(), port };
    Record {
        client: end([10, 0, 0, pod], 40_000),
        server: end([192, 0, 2, 1], 443),
        sent: Counts { frames: 1, payload: 10, ..Counts::default() },
        received: Counts { frames: 1, payload: 20, ..Counts::default() },
        handshake: Some(Duration::from_millis(2)),
        responses: vec![(0, 1)],
        sni: Some(name.into()),
        ..crate::fixtures::record(1)
    }
}

/// With `PODTAP_PEERS`, which is 1,000,000 in the figures of the documentation, or fewer in a build without optimization.
#[test]
fn series_are_bounded_whatever_the_number_of_peers() {
    let peers = std::env::var("PODTAP_PEERS").ok().and_then(|text| text.parse().ok());
    let peers: u64 = peers.unwrap_or(if cfg!(debug_assertions) { 200_000 } else { 1_000_000 });
    let mut names = Names::default();
    for last in 1..=200_u8 {
        let pod = serde_json::json!({"namespace": "shop", "name": last.to_string(), "uid": last.to_string(),
            "addresses": [format!("10.0.0.{last}")], "workload": {"kind": "Deployment", "name": last.to_string()}});
        names.set_pod(serde_json::from_value(pod).expect("a pod"));
    }
    let shared = Shared::new(Names::default(), Bounds::default());
    {
        let map = &mut shared.lock().map;
        for number in 0..peers {
            let pod = u8::try_from(number % 200 + 1).expect("few");
            let record = record(pod, &format!("host{number}.example.com"));
            map.record(&NamedRecord::new(&record, &names));
        }
        let most = Bounds::default().edges + Bounds::default().edges / 8;
        assert!(map.len() <= most && map.len() >= Bounds::default().edges, "{}", map.len());
    }
    for (level, least) in [(Level::Workload, 2000), (Level::Namespace, 1)] {
        let text = scrape(&shared, level, 10_000);
        for (metric, expected) in [
            ("podtap_flow_payload_bytes_total", 30 * peers),
            ("podtap_connections_opened_total", peers),
            ("podtap_tcp_handshake_seconds_count", peers),
        ] {
            let (counted, series) = sum(&text, metric);
            assert_eq!(counted, expected, "{metric}");
            let least = if metric.contains("handshake") { least / 4 } else { least };
            assert!(series >= least && series <= 10_000, "{metric}: {series}");
        }
        assert!(text.lines().filter(|line| line.starts_with("podtap_tcp_handshake")).count() <= 10_000);
    }
}

#[test]
fn namespaces_are_one_each() {
    let shared = known(500);
    for (client, server) in [("a", "b"), ("a", "c"), ("d", "c")] {
        let party = |namespace: &str, name: &str| Party::Workload {
            namespace: namespace.into(),
            workload: Workload { kind: "Deployment".into(), name: name.into(), api_version: String::new() },
        };
        shared.lock().map.restore(Edge { client: party("x", client), server: party("y", server) }, traffic());
    }
    let text = scrape(&shared, Level::Namespace, 100);
    assert_eq!(sum(&text, "podtap_connections_opened_total"), (503, 2), "{text}");
    assert!(text.contains("k8s_src_namespace=\"x\",k8s_src_owner_name=\"\"") && text.contains("dst_name=\"external\""));
}
