use serde_json::json;

use super::*;

fn entry() -> Value {
    json!({
        "tapUid": "tap-1",
        "filter": {
            "include": [{"protocol": "TCP", "ports": [{"first": 443, "last": 450}], "networks": ["10.0.0.0/8", "2001:db8::/32"]}],
            "exclude": [{"protocol": "ICMPv6"}],
            "expression": [{"code": 0x28, "k": 12}, {"code": 0x15, "jt": 1, "jf": 2, "k": 4_294_967_295u32}]
        },
        "truncateBytes": 128, "oneInFlows": 10, "bitsPerSecond": 100_000_000, "packetsPerSecond": 5000,
        "oversize": "Truncate",
        "deduplicate": {"podNetworks": ["10.244.0.0/16"], "serviceNetworks": ["10.96.0.0/12"]}
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut entry = entry();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
    entry.pointer_mut(parent).expect("the parent is there")[key] = value;
    entry
}

fn net(address: &str, prefix: u8) -> Network {
    Network { address: address.parse().expect("an address"), prefix }
}

fn read(entry: Value) -> Result<Treatment, String> {
    Treatments::read(&[entry]).of("tap-1").cloned().map_err(|why| why.to_string())
}

#[test]
fn everything_is_passed_on() {
    let expected = Treatment {
        filter: Filter {
            include: vec![Match {
                protocol: Some(tap_wire::Protocol::Tcp),
                ports: vec![PortRange { first: 443, last: 450 }],
                networks: vec![net("10.0.0.0", 8), net("2001:db8::", 32)],
            }],
            exclude: vec![Match { protocol: Some(tap_wire::Protocol::Icmpv6), ..Match::default() }],
            expression: vec![
                Instruction { code: 0x28, jt: 0, jf: 0, k: 12 },
                Instruction { code: 0x15, jt: 1, jf: 2, k: u32::MAX },
            ],
        },
        truncate: Some(Truncate::Bytes(128)),
        one_in_flows: 10,
        limit: Limit { bits_per_second: 100_000_000, packets_per_second: 5000 },
        oversize: Oversize::Truncate,
        deduplicate: Some(Deduplicate {
            pod_networks: vec![net("10.244.0.0", 16)],
            service_networks: vec![net("10.96.0.0", 12)],
        }),
    };
    assert_eq!(read(entry()), Ok(expected));
}

#[test]
fn protocols_keep_their_meaning() {
    for (name, number) in [("TCP", 6), ("UDP", 17), ("SCTP", 132), ("ICMP", 1), ("ICMPv6", 58)] {
        let treatment = read(with("/filter/exclude", json!([{"protocol": name}]))).expect("a treatment");
        assert_eq!(treatment.filter.exclude[0].protocol.map(tap_wire::Protocol::number), Some(number), "{name}");
    }
}

#[test]
fn headers_only() {
    let mut entry = with("/headersOnly", json!(true));
    assert!(read(entry.clone()).expect_err("both").contains("both truncateBytes and headersOnly"));
    entry["truncateBytes"] = Value::Null;
    assert_eq!(read(entry).map(|treatment| treatment.truncate), Ok(Some(Truncate::Headers)));
}

#[test]
fn an_empty_one_asks_for_nothing() {
    let pod = tap_wire::Pod { uid: "p".into(), cgroup_uid: None, addresses: vec![] };
    let plain = Sender::of_everything("tap-1".into(), pod, vec![]);
    let treatment = read(json!({"tapUid": "tap-1"})).expect("a treatment");
    assert_eq!(treatment.apply(plain.clone()), plain);
}

#[test]
fn what_cannot_be_read() {
    for (pointer, value, words) in [
        ("/truncateBytes", json!(-1), "truncateBytes cannot be -1"),
        ("/oneInFlows", json!(-1), "oneInFlows cannot be -1"),
        ("/bitsPerSecond", json!(-1), "bitsPerSecond cannot be -1"),
        ("/packetsPerSecond", json!(-1), "packetsPerSecond cannot be -1"),
        ("/filter/expression", json!([{"code": 65_536, "k": 0}]), "code cannot be 65536"),
        ("/filter/expression", json!([{"code": 6, "jt": 256, "k": 0}]), "jt cannot be 256"),
        ("/filter/expression", json!([{"code": 6, "k": -1}]), "k cannot be -1"),
        ("/filter/include", json!([{"ports": [{"first": 0, "last": 1}]}]), "0 is not a UDP port"),
        ("/filter/include", json!([{"networks": ["10.0.0.0"]}]), "\"10.0.0.0\" is not a network"),
        ("/filter/include", json!([{"networks": ["10.0.0.0/x"]}]), "\"10.0.0.0/x\" is not a network"),
        ("/filter/include", json!([{"networks": ["web/8"]}]), "\"web\" is not an IP address"),
        ("/filter/include", json!([{"vlan": 5}]), "does not know the field filter.?.include.0.vlan"),
        ("/shuffle", json!(true), "does not know the field shuffle"),
    ] {
        let why = read(with(pointer, value)).expect_err("it cannot be read");
        assert!(why.contains(words), "wanted “{words}” in “{why}”");
    }
}
