use serde::Deserialize as _;
use serde_json::{Value, json};

use super::*;
use crate::fixtures::{self, program, uid};

fn tap(options: &Value) -> Tap {
    Tap { options: MirrorOptions::deserialize(options).expect("mirror options"), ..fixtures::tap("t") }
}

fn sender_of(tap: Tap) -> DesiredSender {
    fixtures::sender(tap, fixtures::pod("web-0"))
}

fn sender() -> DesiredSender {
    sender_of(fixtures::tap("t"))
}

const PEERS: [&str; 2] = ["10.244.0.7", "fd00:10:244::7"];

/// All options at once.
fn demanding() -> DesiredSender {
    let options = json!({
        "filter": {
            "include": [{"protocol": "TCP", "ports": [{"port": 443, "endPort": 450}], "cidrs": ["10.0.0.0/8"]}],
            "exclude": [{"protocol": "ICMP"}],
            "expression": "less 1000",
        },
        "truncate": {"bytes": 128, "exemptBytes": 9},
        "sample": {"oneInFlows": 10},
        "limit": {"bitsPerSecond": 5, "packetsPerSecond": 6, "bytesPerFlow": 7},
        "oversize": "Truncate",
        "deduplicate": {"handshakes": "Both"},
    });
    let peers = PEERS.map(|text| text.parse().expect("an address")).to_vec();
    let tap = Tap { peers, ..tap(&options) };
    DesiredSender { program: Some(program()), underlay_mtu: Some(1400), ..sender_of(tap) }
}

#[test]
fn all_options_reach_the_programs() {
    let demanding = demanding();
    let paths = Paths { mtu: Some(1500), reach: Reach::Mixed };
    let settings = settings(&demanding, paths, true);
    let expected = bpf::Settings {
        options: demanding.tap.options.clone(),
        sample_seed: settings.sample_seed,
        program: Some(program()),
        frame_limit: Some(1364),
        reach: Reach::Mixed,
        linearize: false,
        peers: demanding.tap.peers.clone(),
        probe_ether_type: demanding.probe_ether_type,
    };
    assert_eq!(settings, expected);
    assert!(super::settings(&demanding, Paths::default(), false).linearize);
}

#[test]
fn peers_matter_only_where_a_frame_would_be_mirrored_twice() {
    let with = |options: Value, direction, peers: Vec<IpAddr>| {
        let tap = Tap { direction, peers, ..tap(&options) };
        super::settings(&sender_of(tap), Paths::default(), true).peers
    };
    let peers: Vec<IpAddr> = PEERS.map(|text| text.parse().expect("an address")).to_vec();
    let reversed = peers.iter().rev().chain(&peers).copied().collect();
    assert_eq!(with(json!({"deduplicate": {}}), Direction::Both, reversed), peers, "sorted, each once");
    assert_eq!(with(json!({}), Direction::Both, peers.clone()), [] as [IpAddr; 0]);
    for direction in [Direction::Ingress, Direction::Egress] {
        assert_eq!(with(json!({"deduplicate": {}}), direction, peers.clone()), [] as [IpAddr; 0]);
    }
    let many = (0..2000_u32).map(|number| std::net::Ipv4Addr::from_bits(number).into()).collect();
    assert_eq!(with(json!({"deduplicate": {}}), Direction::Both, many).len(), MAX_PEERS);
}

#[test]
fn the_narrowest_part_of_the_path_counts() {
    let paths = |mtu| Paths { mtu, ..Paths::default() };
    let limit = |route: Option<u32>, underlay: Option<u32>| {
        settings(&DesiredSender { underlay_mtu: underlay, ..sender() }, paths(route), true).frame_limit
    };
    assert_eq!(limit(Some(1500), None), Some(1464));
    assert_eq!(limit(Some(1300), Some(1400)), Some(1264));
    assert_eq!(limit(None, Some(1400)), Some(1364));
    assert_eq!(limit(None, None), None);
    let mut ipv6 = fixtures::tap("t");
    ipv6.destinations[0].address = "fd66::2".parse().expect("an address");
    let over_ipv6 = settings(&sender_of(ipv6), paths(Some(1500)), true);
    assert_eq!((over_ipv6.frame_limit, over_ipv6.options.oversize), (Some(1444), Oversize::Truncate));
}

#[test]
fn options_without_room_are_refused() {
    assert!(check(&demanding()).is_ok());
    let ports: Vec<Value> = (0..16).map(|port| json!({"port": 1 + port})).collect();
    let cidrs: Vec<String> = (0..4).map(|number| format!("10.{number}.0.0/16")).collect();
    let rules = json!({"include": [{"ports": ports, "cidrs": cidrs}], "exclude": [{"protocol": "ICMP"}]});
    let many = sender_of(tap(&json!({"filter": rules})));
    assert!(matches!(check(&many), Err(BpfError::TooManyRules(65))));
}

/// Otherwise the two ends of a flow between pods on different nodes would not agree whether it is in the sample.
#[test]
fn the_senders_of_a_tap_take_the_same_sample_and_other_taps_another() {
    let seed = |sender: &DesiredSender| settings(sender, Paths::default(), true).sample_seed;
    let of_tap = |name: &str| sender_of(fixtures::tap(name));
    let mut other_pod = of_tap("t");
    other_pod.pod.uid = uid("q");
    assert_eq!(seed(&of_tap("t")), seed(&other_pod));
    assert_ne!(seed(&of_tap("t")), seed(&of_tap("u")));
}
