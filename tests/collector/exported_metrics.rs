//! Metrics of flows: in Prometheus, and how many there are.

use std::{
    collections::BTreeSet, env, fs, io::Write as _, net::Ipv4Addr, os::unix::net::UnixStream, path::Path as File,
    process,
};

use podtap_tests::{
    collector::Collector,
    exporter::{Exporter, PROBES},
    mmdb::{self, Place},
    net::Network,
    wait::{PATIENCE, until},
};
use serde_json::Value;

use crate::{
    network::{Path, SERVER_PORT, names, servers},
    prometheus::{PROMETHEUS, Prometheus, query, series},
};

/// Outside of the cluster.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const BERLIN: Place = Place { country: "DE", latitude: 52.5, longitude: 13.375, zip: "10117" };

/// Received and sent bytes of the client's interface, with Ethernet headers.
fn counters(path: &Path) -> [u64; 2] {
    let link = path.client.json("ip -j -s link show eth0");
    ["rx", "tx"].map(|side| link[0]["stats64"][side]["bytes"].as_u64().expect("a counter"))
}

/// No frames but those of flows: without ARP and IPv6.
fn be_quiet(path: &Path) {
    let address = |network: &Network, device: &str| {
        let link = network.json(&format!("ip -j link show {device}"));
        link[0]["address"].as_str().expect("an address").to_owned()
    };
    for (network, device, peer, mac) in [
        (&path.client, "eth0", "10.1.0.1", address(&path.router, "to-client")),
        (&path.router, "to-client", "10.1.0.2", address(&path.client, "eth0")),
    ] {
        network.set(&format!("ipv6/conf/{device}/disable_ipv6"), "1");
        network.run(&format!("ip neigh replace {peer} lladdr {mac} dev {device} nud permanent"));
    }
}

/// The queries of a dashboard, each with the title of its panel, for all namespaces.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            let expression = expression.replace("$namespace", ".*").replace("$__rate_interval", "1m");
            assert!(!expression.contains('$'), "{expression}");
            found.push((panel["title"].to_string(), expression));
        }
    }
    found
}

#[test]
fn prometheus_gets_what_servers_and_interfaces_count() {
    const REQUESTS: [(usize, u32); 5] = [(0, 1), (0, 1460), (1, 70_000), (0, 1_000_000), (1, 0)];
    const OUTSIDE_REQUESTS: u32 = 3;
    let path = Path::new();
    path.serve();
    path.server.ip(&format!("link set lo up\naddr add {OUTSIDE}/32 dev lo\n"));
    path.router.run(&format!("ip route add {OUTSIDE} via {}", servers()[0]));
    path.serve_at(OUTSIDE);
    be_quiet(&path);
    let file = |name: &str| env::temp_dir().join(format!("podtap-metrics-{}-{name}", process::id()));
    let [of_names, cities] = ["names.json", "cities.mmdb"].map(file);
    fs::write(&of_names, names(&servers()).to_string()).expect("it can be written");
    let networks = [(Ipv4Addr::new(198, 51, 100, 0), 24, BERLIN)];
    fs::write(&cities, mmdb::places(&networks)).expect("it can be written");
    let sinks = format!(
        "metrics: {{profile: netobserv}}\n\
         sinks: [{{name: prometheus, remoteWrite: {{url: 'http://{PROMETHEUS}/api/v1/write', profile: convis,\n\
           cities: {}, intervalSeconds: 1, labels: {{exporter: a}}}}}}]",
        cities.display()
    );
    let mut exporter = Exporter::new(&path.client, &sinks);
    let text = of_names.to_str().expect("text");
    let arguments = ["--interface", "eth0", "--names", text, "--export-socket", &exporter.socket()];
    let collector = Collector::start(path.client.path(), &arguments);
    // It is there before Prometheus, and tries again.
    exporter.listen();
    let rules = File::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana/convis-rules.yaml");
    let prometheus = Prometheus::start(&path.client, &PROBES.to_string(), &[&rules]);
    let before = counters(&path);
    for (server, length) in REQUESTS {
        path.request((servers()[server], SERVER_PORT), length);
    }
    for _ in 0..OUTSIDE_REQUESTS {
        path.request((OUTSIDE, SERVER_PORT), 100);
    }
    let after = counters(&path);
    let [received, sent] = [0, 1].map(|side| after[side] - before[side]);

    let answers = |server: usize| {
        let lengths = REQUESTS.iter().filter(|(of, _)| *of == server).map(|(_, length)| u64::from(4 + length));
        lengths.sum::<u64>()
    };
    let outside = u64::from(104 * OUTSIDE_REQUESTS);
    let requests = u64::from(OUTSIDE_REQUESTS) + REQUESTS.len() as u64;
    let place = r#"ip="198.51.100.7",country="DE",latitude="52.5",longitude="13.375",zip="10117""#;
    let direct = r#"destination_ip="10.2.0.2",destination_port="8080""#;
    for (expression, expected) in [
        // Payload, as both ends counted it.
        (r#"sum(bytes_tx{k8s_namespace="shop",k8s_pod="web-2"})"#.to_owned(), answers(0)),
        (r#"sum(bytes_rx{k8s_pod="web-2"})"#.to_owned(), 3 * 4),
        (r#"sum(bytes_tx{k8s_pod="web-3"})"#.to_owned(), answers(1)),
        (r#"sum(bytes_rx{k8s_pod="client-1",event="Close"})"#.to_owned(), answers(0) + answers(1) + outside),
        (r#"sum(bytes_tx{k8s_pod="client-1",source_host="n1"})"#.to_owned(), 4 * requests),
        (format!(r#"sum(bytes_rx{{k8s_pod="client-1",{direct},exporter="a"}})"#), answers(0)),
        (format!(r#"geo_ip{{{place},k8s_namespace="shop",k8s_pod="client-1"}}"#), OUTSIDE_REQUESTS.into()),
        (r#"sum(bytes_tx:sum{k8s_pod="web-2"})"#.to_owned(), answers(0)),
        // Frames, as the client's interface counted them.
        (r#"sum(netobserv_workload_egress_bytes_total{SrcK8S_OwnerName="client"})"#.to_owned(), sent),
        (r#"sum(netobserv_workload_ingress_bytes_total{DstK8S_OwnerName="client"})"#.to_owned(), received),
        (r#"sum(netobserv_node_rtt_seconds_count{SrcK8S_HostName="n1"})"#.to_owned(), requests),
    ] {
        until(&expression, PATIENCE, || match query(&path.client, &expression)? {
            value if to_integer(value) == expected => Ok(()),
            value => Err(format!("{value}, not {expected}")),
        });
    }

    let dashboard = fs::read_to_string(rules.with_file_name("convis.json")).expect("it exists");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let queries = queries(&dashboard);
    assert!(queries.len() >= 12, "{queries:?}");
    for (panel, expression) in queries {
        until(&format!("{panel} has data: {expression}"), PATIENCE, || match series(&path.client, &expression)? {
            found if found.is_empty() => Err("no data".to_owned()),
            _ => Ok(()),
        });
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let namespaces = variables.iter().find(|variable| variable["name"] == "namespace").expect("it is there");
    assert_eq!(namespaces["definition"], "label_values(bytes_rx, k8s_namespace)");
    let found = series(&path.client, "group by (k8s_namespace) (bytes_rx)").expect("an answer");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0["k8s_namespace"], "shop");

    let ended = exporter.end();
    assert!(ended.status.success(), "{}", ended.errors);
    drop(prometheus);
    collector.end();
    for file in [of_names, cities] {
        fs::remove_file(file).expect("it exists");
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "Prometheus has no other numbers")]
fn to_integer(value: f64) -> u64 {
    assert!(value >= 0.0 && (value - value.round()).abs() < 1e-6, "{value}");
    value.round() as u64
}

/// A flow of a pod with an address outside of the cluster.
fn flow(peer: u32) -> String {
    let address = Ipv4Addr::from((u32::from(Ipv4Addr::new(20, 0, 0, 0))) + peer);
    format!(
        r#"{{"TimeFlowStartMs":1000,"TimeFlowEndMs":2000,"Etype":2048,"Proto":6,"Flags":27,"Bytes":540,"Packets":9,"PayloadBytes":100,"FlowEndReason":"endOfFlow","SrcAddr":"10.0.0.1","SrcPort":40000,"SrcK8S_Name":"web-1","SrcK8S_Namespace":"shop","SrcK8S_Type":"Pod","SrcK8S_OwnerName":"web","SrcK8S_OwnerType":"Deployment","DstAddr":"{address}","DstPort":443,"DstCountry":"DE","DstDnsName":"{peer}.example.com"}}"#
    ) + "\n"
}

/// Exports flows with so many peers, and returns how many series there are at most, of which `bytes` is the sum of one metric.
fn series_of(peers: u32, profile: &str, metric: &str) -> (usize, u64) {
    const SERIES: usize = 2000;
    /// Records that find room in the queue.
    const AT_ONCE: u32 = 4000;
    let network = Network::new();
    let mut exporter = Exporter::new(&network, &format!("metrics: {{profile: {profile}, series: {SERIES}}}"));
    exporter.listen();
    let mut stream = UnixStream::connect(exporter.socket()).expect("it listens");
    let mut most = 0;
    for start in (0..peers).step_by(AT_ONCE as usize) {
        let lines: String = (start..peers.min(start + AT_ONCE)).map(flow).collect();
        stream.write_all(lines.as_bytes()).expect("it reads");
        let sent = format!("podtap_exporter_records_sent_total{{sink=\"metrics\"}} {}\n", peers.min(start + AT_ONCE));
        // What would be dropped would not be counted. The last line waits for its reply.
        let text = until("all are counted", PATIENCE, || {
            let text = exporter.get("/metrics")?;
            if text.contains(&sent) { Ok(text) } else { Err(text) }
        });
        let of_flows = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("podtap_exporter_"));
        let of_flows: BTreeSet<_> = of_flows.filter_map(|line| line.rsplit_once(' ')).collect();
        let told = format!("podtap_exporter_series{{sink=\"metrics\"}} {}\n", of_flows.len());
        assert!(text.contains(&told), "{} series; {text}", of_flows.len());
        most = most.max(of_flows.len());
        if start + AT_ONCE >= peers {
            let values = of_flows.iter().filter(|(name, _)| name.starts_with(metric));
            let sum = values.map(|(_, value)| value.parse::<u64>().expect("a number")).sum();
            let ended = exporter.end();
            assert!(ended.status.success(), "{}", ended.errors);
            assert!(most <= SERIES, "{most}");
            return (most, sum);
        }
    }
    unreachable!("there are peers")
}

#[test]
fn series_are_bounded_whatever_the_peers() {
    for (profile, metric, of_each) in [
        ("convis", "bytes_tx{", 100),
        ("netobserv", "netobserv_workload_egress_bytes_total{", 540),
        ("obi", "obi_network_flow_bytes_total{", 540),
    ] {
        let (_, sum) = series_of(20_000, profile, metric);
        assert_eq!(sum, 20_000 * of_each, "{profile}");
    }
}

#[test]
#[ignore = "takes minutes; what it shows for fewer peers is tested above"]
fn series_of_a_million_peers() {
    for (profile, metric) in [
        ("convis", "bytes_tx{"),
        ("netobserv", "netobserv_workload_egress_bytes_total{"),
        ("obi", "obi_network_flow_bytes_total{"),
    ] {
        println!("{profile}: {:?}", series_of(1_000_000, profile, metric));
    }
}
