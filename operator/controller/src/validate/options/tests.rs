use podtap_api::Oversize;
use serde_json::{Value, json};

use super::*;
use crate::{fixtures::{object, tap, World}};

/// The treatment of a tap with these fields, in a cluster of `world`.
fn treatment_in(world: World, fields: &Value) -> Result<(Option<NodeTapTreatment>, Option<Failure>), String> {
    let mut spec = json!({"targets": {"podSelector": {}}, "destinations": [{"node": {"name": "n2"}}]});
    let fields = fields.as_object().expect("fields").clone();
    spec.as_object_mut().expect("a spec").extend(fields);
    let mut tap = tap("t", json!([]));
    tap.spec = object(spec);
    let snapshot = World { taps: vec![tap.clone()], ..world }.snapshot();
    let options = MirrorOptions::new(&tap.spec, &snapshot.expressions, || None).map_err(|invalid| invalid.to_string())?;
    Ok(options.for_nodes("tap-t", &snapshot))
}

fn options(fields: &Value) -> Result<Option<NodeTapTreatment>, String> {
    treatment_in(World::small(), fields).map(|(options, _)| options)
}

#[track_caller]
fn refused(fields: &Value, words: &str) {
    let message = options(fields).expect_err("it makes no sense");
    assert!(message.contains(words), "wanted “{words}”, got {message}");
}

#[test]
fn what_asks_for_nothing_is_nothing() {
    for fields in [
        json!({}),
        json!({"oversize": "Fragment"}),
        json!({"sample": {"oneInFlows": 1}}),
        json!({"limit": {"bitsPerSecond": 0}}),
    ] {
        assert_eq!(options(&fields), Ok(None), "{fields}");
    }
}

#[test]
fn everything_reaches_the_nodes() {
    let made = options(&json!({
        "filter": {
            "include": [{"protocol": "TCP", "ports": [{"port": 443}, {"port": 1000, "endPort": 2000}], "cidrs": ["10.1.2.3/8"]}],
            "exclude": [{"protocol": "ICMPv6"}, {"cidrs": ["2001:DB8::1/32"]}],
            "expression": "arp",
        },
        "truncate": {"bytes": 128}, "sample": {"oneInFlows": 10}, "oversize": "Truncate",
        "limit": {"bitsPerSecond": 100_000_000, "packetsPerSecond": 0},
    }));
    let instruction = |code, jt, jf, k| NodeTapInstruction { code, jt, jf, k };
    let filter = NodeTapFilter {
        include: vec![NodeTapMatch {
            protocol: Some(Protocol::Tcp),
            ports: vec![NodeTapPorts { first: 443, last: 443 }, NodeTapPorts { first: 1000, last: 2000 }],
            networks: vec!["10.0.0.0/8".into()],
        }],
        exclude: vec![
            NodeTapMatch { protocol: Some(Protocol::Icmpv6), ..NodeTapMatch::default() },
            NodeTapMatch { networks: vec!["2001:db8::/32".into()], ..NodeTapMatch::default() },
        ],
        expression: vec![
            instruction(0x28, 0, 0, 12),
            instruction(0x15, 0, 1, 0x806),
            instruction(6, 0, 0, 262_144),
            instruction(6, 0, 0, 0),
        ],
    };
    let expected = NodeTapTreatment {
        tap_uid: "tap-t".into(),
        filter: Some(filter),
        truncate_bytes: Some(128),
        one_in_flows: Some(10),
        bits_per_second: Some(100_000_000),
        oversize: Oversize::Truncate,
        ..NodeTapTreatment::default()
    };
    assert_eq!(made, Ok(Some(expected)));
    let headers = options(&json!({"truncate": {"headersOnly": true}})).expect("valid").expect("something");
    assert!(headers.headers_only && headers.truncate_bytes.is_none());
}

#[test]
fn a_mistake_in_an_expression_is_told_in_the_words_of_libpcap() {
    refused(
        &json!({"filter": {"expression": "tcp prot 443"}}),
        "filter.expression \"tcp prot 443\" cannot be used; libpcap says: can't parse filter expression: syntax error",
    );
    for text in ["inbound", "not outbound and tcp", "ifindex 3", "tcp[-20] = 1"] {
        refused(&json!({"filter": {"expression": text}}), "spec.direction chooses");
    }
    refused(&json!({"filter": {"expression": " "}}), "must be a pcap-filter expression of up to 1024 characters");
    let long: Vec<String> = (0..58).map(|number| format!("ip host 1.{number}.7.9 and tcp[{number}] = 1")).collect();
    let long = long.join(" or ").chars().take(1021).collect::<String>();
    let made = options(&json!({"filter": {"expression": long}}));
    assert!(
        made.is_ok() || made.is_err_and(|message| message.contains("filter.include") || message.contains("libpcap"))
    );
    assert!(Invalid::Long(600).to_string().contains("600 instructions, and 512 are allowed"));
    assert_eq!(Invalid::Pending.failure().reason, reason::WAITING);
}

#[test]
fn a_loop_is_refused_before_the_nodes_refuse_it() {
    for text in ["ip protochain 6", "ip6 protochain 6", "tcp port 80 or protochain 51"] {
        refused(&json!({"filter": {"expression": text}}), "write proto instead of protochain");
    }
    assert_eq!(Invalid::Loop(String::new()).failure().reason, reason::INVALID_SPEC);
    // A tap that stands goes on with what it has.
    let mut tap = tap("t", json!([]));
    tap.spec = object(json!({
        "targets": {"podSelector": {}}, "destinations": [{"node": {"name": "n2"}}],
        "filter": {"expression": "ip protochain 6"},
    }));
    let snapshot = World { taps: vec![tap.clone()], ..World::small() }.snapshot();
    let before = vec![NodeTapInstruction { code: 6, jt: 0, jf: 0, k: 1 }];
    let options =
        MirrorOptions::new(&tap.spec, &snapshot.expressions, || Some(before.clone())).expect("the expression before");
    assert_eq!(options.flaw().map(|flaw| flaw.reason.as_str()), Some(reason::INVALID_SPEC));
    assert_eq!(options.fixed.filter.map(|filter| filter.expression), Some(before));
}

#[test]
fn what_the_schema_would_refuse_is_refused_here_too() {
    let entry = |entry: Value| json!({"filter": {"include": [entry]}});
    refused(&entry(json!({})), "at least one of protocol, ports and cidrs");
    refused(&entry(json!({"protocol": "ICMP", "ports": [{"port": 1}]})), "have no ports");
    for (port, end) in [(0, 5), (5, 4), (1, 65_536)] {
        refused(&entry(json!({"ports": [{"port": port, "endPort": end}]})), "are no ports");
    }
    refused(&entry(json!({"cidrs": ["10.0.0.0"]})), "\"10.0.0.0\" is not a network");
    refused(&entry(json!({"cidrs": vec!["10.0.0.0/8"; 17]})), "at most 16 cidrs in an entry of a filter, not 17");
    refused(&entry(json!({"ports": vec![json!({"port": 1}); 17]})), "at most 16 ports");
    refused(&json!({"filter": {"exclude": vec![json!({"protocol": "TCP"}); 17]}}), "16 entries in filter.exclude");
    for bad in [json!({}), json!({"bytes": 64, "headersOnly": true}), json!({"headersOnly": false})] {
        refused(&json!({"truncate": bad}), "exactly one of truncate.bytes and truncate.headersOnly");
    }
    refused(&json!({"truncate": {"bytes": 13}}), "truncate.bytes must be between 14 and 65535, not 13");
    refused(&json!({"sample": {"oneInFlows": 0}}), "sample.oneInFlows must be between 1 and 1000000, not 0");
    refused(&json!({"limit": {"bitsPerSecond": -1}}), "limit.bitsPerSecond must be between 0");
    refused(&json!({"limit": {"packetsPerSecond": 2_000_000_000}}), "limit.packetsPerSecond must be between 0");
    refused(&json!({"deduplicate": {"podCIDRs": ["web"]}}), "deduplicate.podCIDRs: \"web\" is not a network");
    let many: Vec<String> = (0..65).map(|number| format!("10.{}.0.0/24", number * 2)).collect();
    refused(
        &json!({"deduplicate": {"podCIDRs": many[..1], "serviceCIDRs": many[1..]}}),
        "at most 64 networks in deduplicate.podCIDRs and serviceCIDRs together, not 65",
    );
    let ports: Vec<Value> = (1..14).map(|port| json!({"port": port * 10})).collect();
    let full = json!({"ports": ports, "cidrs": many[..5]});
    refused(
        &json!({"filter": {"include": [full]}}),
        "the filter has 65 combinations of ports and cidrs, and 64 are allowed",
    );
    refused(&json!({"limit": {"bitsPerSecond": 1_000_000_000_000_i64}}), "between 0 and 100000000000");
}

fn cluster(pods: &[&str], services: &[&str]) -> World {
    let mut world = World::small();
    for (node, cidr) in world.nodes.iter_mut().zip(pods) {
        node.spec.get_or_insert_default().pod_cidrs = Some(vec![(*cidr).to_owned()]);
    }
    if !services.is_empty() {
        let spec = json!({"cidrs": services});
        world.service_cidrs =
            vec![object(json!({"metadata": {"name": "kubernetes", "resourceVersion": "1"}, "spec": spec}))];
    }
    world
}

#[test]
fn the_networks_of_the_cluster_are_found() {
    let once = json!({"deduplicate": {}});
    let world = cluster(&["10.244.1.0/24", "10.244.0.0/24"], &["10.96.0.0/12", "fd00::/108"]);
    let (options, failure) = treatment_in(world, &once).expect("valid");
    let found = options.and_then(|options| options.deduplicate).expect("networks");
    assert_eq!((found.pod_networks, failure), (vec!["10.244.0.0/23".to_owned()], None));
    assert_eq!(found.service_networks, ["10.96.0.0/12", "fd00::/108"]);
}

#[test]
fn networks_that_are_given_count() {
    let given = json!({"deduplicate": {"podCIDRs": ["10.9.0.0/16"], "serviceCIDRs": []}});
    let world = cluster(&["10.244.1.0/24"], &["10.96.0.0/12"]);
    let (options, failure) = treatment_in(world, &given).expect("valid");
    let found = options.and_then(|options| options.deduplicate).expect("networks");
    assert_eq!((found.pod_networks, found.service_networks), (vec!["10.9.0.0/16".to_owned()], vec![]));
    assert_eq!(failure, None);
}

#[test]
fn what_is_not_known_is_told() {
    let once = json!({"deduplicate": {}});
    let told = |world| {
        let (options, failure) = treatment_in(world, &once).expect("valid");
        assert!(options.is_some_and(|options| options.deduplicate.is_some()));
        let failure = failure.expect("something is not known");
        assert_eq!(failure.reason, reason::NETWORKS_UNKNOWN);
        failure.message
    };
    assert!(told(cluster(&[], &["10.96.0.0/12"])).contains("no node has spec.podCIDRs): set deduplicate.podCIDRs"));
    assert!(
        told(cluster(&["10.244.1.0/24"], &[]))
            .contains("there is no ServiceCIDR object): set deduplicate.serviceCIDRs")
    );
    let mut scattered = cluster(&[], &["10.96.0.0/12"]);
    let cidrs = (0..65).map(|number| format!("10.{number}.7.0/24")).collect();
    scattered.nodes[0].spec.get_or_insert_default().pod_cidrs = Some(cidrs);
    assert!(told(scattered).contains("this cluster has 65 of them, and there is room for 64"));
}
