//! Each field of an entry: that it keeps its meaning, and that one which cannot be decoded refuses its entry only.

use super::*;
use crate::{
    ConfigHash, Deduplicate, Direction, Endpoint, EtherType, Filter, FrameFormat, Handshakes, IpNet, Limit, Match,
    MirrorOptions, Oversize, Pod, PortRange, Protocol, Sample, TapReference, Truncate, UnixTime, Vni,
};

fn uid(text: &str) -> Uid {
    text.parse().expect("a UID")
}

fn vni(number: u32) -> Vni {
    number.try_into().expect("a VNI")
}

fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("a network")).collect()
}

/// An entry of each kind with every field.
fn full_spec() -> Value {
    json!({
        "taps": [{
            "namespace": "shop", "name": "web", "uid": "t1", "interface": "net1", "direction": "Egress",
            "destinations": [
                {"address": "192.0.2.10", "port": 4789, "vni": 77},
                {"address": "2001:db8::3", "port": 14789, "vni": 16_777_215},
            ],
            "options": {
                "filter": {
                    "include": [{
                        "protocol": "TCP", "ports": [{"port": 443, "endPort": 450}],
                        "cidrs": ["10.0.0.0/8", "2001:db8::/32"],
                    }],
                    "exclude": [{"protocol": "ICMPv6"}],
                    "expression": "tcp",
                },
                "truncate": {"bytes": 128, "exemptBytes": 4096},
                "sample": {"oneInFlows": 10},
                "limit": {"bitsPerSecond": 100_000_000, "packetsPerSecond": 5000, "bytesPerFlow": 1_000_000},
                "oversize": "Truncate",
                "deduplicate": {"handshakes": "Both"},
            },
            "program": program().id,
            "expirationTime": "2027-01-15T08:00:00Z",
            "peers": ["10.8.0.5", "fd00:8::5"],
            "probe": true, "metadata": true,
        }],
        "senders": [{
            "tap": "t1",
            "pod": {
                "namespace": "shop", "name": "web-0", "uid": "p1", "configHash": "0123456789abcdef0123456789abcdef",
                "addresses": ["10.8.0.5", "fd00:8::5"],
            },
        }],
        "receivers": [{
            "tap": {"namespace": "lab", "name": "ids", "uid": "t2"},
            "vni": 78, "port": 14790, "ipv6": true, "interfaceName": "mirror7", "frameFormat": "Raw", "metadata": true, "packetSocket": true,
            "pod": {"namespace": "lab", "name": "zeek-0", "uid": "p2"},
        }],
        "programs": [program()],
        "probeEtherType": 0x88b6,
    })
}

/// The full spec with another value at a JSON pointer, and another sender that stays valid.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = full_spec();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
    match spec.pointer_mut(parent).expect("the parent exists") {
        Value::Array(list) => list[key.parse::<usize>().expect("a list has numbers")] = value,
        object => object[key] = value,
    }
    spec["taps"].as_array_mut().expect("a list").push(tap("good"));
    spec["senders"].as_array_mut().expect("a list").push(sender("good", "p2"));
    spec
}

#[track_caller]
fn sender_refused(pointer: &str, value: Value, words: &str) {
    let spec = with(pointer, value);
    refused(&spec, words);
    let state = decode(&spec);
    let pods: Vec<_> = state.senders.iter().map(|sender| &*sender.pod.uid).collect();
    assert_eq!((pods, state.receivers.len()), (vec!["p2"], 1), "the other entries are not affected");
}

#[test]
fn every_field_keeps_its_meaning() {
    let options = MirrorOptions {
        filter: Some(Filter {
            include: vec![Match {
                protocol: Some(Protocol::Tcp),
                ports: vec![PortRange { port: 443, end_port: Some(450) }],
                cidrs: networks(&["10.0.0.0/8", "2001:db8::/32"]),
            }],
            exclude: vec![Match { protocol: Some(Protocol::Icmpv6), ..Match::default() }],
            expression: Some("tcp".to_owned()),
        }),
        truncate: Some(Truncate { bytes: Some(128), headers_only: false, exempt_bytes: Some(4096) }),
        sample: Some(Sample { one_in_flows: 10 }),
        limit: Some(Limit {
            bits_per_second: Some(100_000_000.into()),
            packets_per_second: Some(5000.into()),
            bytes_per_flow: Some(1_000_000.into()),
        }),
        deduplicate: Some(Deduplicate { handshakes: Handshakes::Both }),
        oversize: Oversize::Truncate,
    };
    assert_eq!(options.check(), Ok(()));
    let tap = Tap {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: uid("t1"),
        interface: Some("net1".parse().expect("a name")),
        direction: Direction::Egress,
        destinations: vec![
            Endpoint { address: [192, 0, 2, 10].into(), port: 4789, vni: vni(77) },
            Endpoint { address: "2001:db8::3".parse().expect("an address"), port: 14789, vni: vni(16_777_215) },
        ],
        options,
        program: Some(program().id),
        expiration_time: Some(UnixTime::from_seconds(1_800_000_000)),
        peers: vec![[10, 8, 0, 5].into(), "fd00:8::5".parse().expect("an address")],
        probe: true,
        metadata: true,
    };
    let config_hash: ConfigHash = "0123456789abcdef0123456789abcdef".parse().expect("a hash");
    let pod = Pod {
        namespace: "shop".to_owned(),
        name: "web-0".to_owned(),
        uid: uid("p1"),
        config_hash: Some(config_hash),
        addresses: vec![[10, 8, 0, 5].into(), "fd00:8::5".parse().expect("an address")],
    };
    let receiver = Receiver {
        tap: TapReference { namespace: "lab".to_owned(), name: "ids".to_owned(), uid: uid("t2") },
        vni: vni(78),
        port: 14790,
        ipv6: true,
        interface_name: "mirror7".parse().expect("a name"),
        frame_format: FrameFormat::Raw,
        metadata: true,
        packet_socket: true,
        pod: Some(Pod {
            namespace: "lab".to_owned(),
            name: "zeek-0".to_owned(),
            uid: uid("p2"),
            config_hash: None,
            addresses: vec![],
        }),
    };
    let (program, orphan_timeout) = (Some(program().into()), Duration::from_secs(3600));
    let probe_ether_type = EtherType::try_from(0x88b6).expect("an EtherType");
    let sender = DesiredSender {
        tap: tap.into(),
        pod,
        details: Box::default(),
        program,
        underlay_mtu: None,
        orphan_timeout,
        probe_ether_type,
    };
    let (senders, receivers) = (vec![sender], vec![receiver]);
    let all = DesiredState { senders, receivers, probe_ether_type, ..DesiredState::default() };
    assert_eq!(decode(&full_spec()), all);
}

#[test]
fn directions_and_protocols_keep_their_meaning() {
    for (name, direction) in [("Ingress", Direction::Ingress), ("Egress", Direction::Egress), ("Both", Direction::Both)]
    {
        assert_eq!(decode(&with("/taps/0/direction", json!(name))).senders[0].tap.direction, direction, "{name}");
    }
    for (name, number) in [("TCP", 6), ("UDP", 17), ("SCTP", 132), ("ICMP", 1), ("ICMPv6", 58)] {
        let state = decode(&with("/taps/0/options/filter/exclude", json!([{"protocol": name}])));
        let filter = state.senders[0].tap.options.filter.as_ref().expect("a filter");
        assert_eq!(filter.exclude[0].protocol.map(Protocol::number), Some(number), "{name}");
    }
}

#[test]
fn headers_only() {
    let state = decode(&with("/taps/0/options/truncate", json!({"headersOnly": true})));
    let options = &state.senders[0].tap.options;
    assert_eq!(options.truncate, Some(Truncate { headers_only: true, ..Truncate::default() }));
    assert_eq!(options.check(), Ok(()));
}

#[test]
fn without_options_everything_is_mirrored() {
    let mut empty = tap("t1");
    empty["options"] = json!({});
    let state = decode(&json!({"taps": [empty, tap("t2")], "senders": [sender("t1", "p1"), sender("t2", "p1")]}));
    for sender in state.senders {
        assert!(sender.tap.options.is_default(), "{sender:?}");
    }
}

#[test]
fn empty_lists_are_an_empty_state() {
    assert_eq!(decode(&json!({"senders": [], "receivers": []})), DesiredState::default());
}

#[test]
fn a_sender_that_cannot_be_decoded_stops_no_other() {
    sender_refused("/senders/0/pod/addresses/0", json!("10.8.0.500"), "IP address");
    sender_refused("/taps/0/destinations/1/address", json!("ids.example.com"), "IP address");
    sender_refused("/taps/0/destinations/0/port", json!(65_536), "65536");
    sender_refused("/taps/0/destinations/0/vni", json!(0), "0 is not a VXLAN network identifier");
    sender_refused("/taps/0/destinations/0/vni", json!(16_777_216), "16777216 is not a VXLAN network identifier");
    sender_refused("/taps/0/direction", json!("Sideways"), "unknown variant `Sideways`");
    sender_refused("/taps/0/destinations", json!("nowhere"), "cannot read the entry");
    sender_refused("/taps/0/expirationTime", json!("tomorrow"), "is not a time such as");
}

#[test]
fn a_field_of_a_later_version_is_not_ignored() {
    sender_refused("/senders/0/shuffle", json!({"include": []}), "unknown field `shuffle`");
    sender_refused("/taps/0/shuffle", json!(true), "unknown field `shuffle`");
    sender_refused("/taps/0/destinations/1/weight", json!(2), "unknown field `weight`");
    sender_refused("/taps/0/options/shuffle", json!(true), "unknown field `shuffle`");
    sender_refused("/taps/0/options/filter/include", json!([{"vlan": 5}]), "unknown field `vlan`");
    sender_refused("/programs/0/shuffle", json!(true), "unknown field `shuffle`");
}

#[test]
fn options_that_cannot_be_decoded() {
    for (pointer, value, words) in [
        ("truncate/bytes", json!(-1), "-1"),
        ("sample/oneInFlows", json!(-1), "-1"),
        ("limit/bitsPerSecond", json!(-1), "\"-1\" is not a number, 0 or more"),
        ("limit/packetsPerSecond", json!(-1), "\"-1\" is not a number, 0 or more"),
        ("filter/include", json!([{"ports": [{"port": -1}]}]), "-1"),
        ("filter/include", json!([{"cidrs": ["10.0.0.0"]}]), "IP address"),
        ("filter/include", json!([{"cidrs": ["10.0.0.0/x"]}]), "IP address"),
        ("filter/include", json!([{"cidrs": ["web/8"]}]), "IP address"),
    ] {
        sender_refused(&format!("/taps/0/options/{pointer}"), value, words);
    }
}

#[test]
fn programs_that_cannot_be_decoded() {
    for code in ["?", "AAYAAAAAAA==", "AAYAAAAAAAEA"] {
        sender_refused("/programs/0/code", json!(code), "not base64 of 8 bytes per instruction");
    }
    sender_refused("/programs/0/code", json!(7), "invalid type");
}

#[test]
fn a_receiver_that_cannot_be_decoded_stops_no_other() {
    for (field, value, words) in [
        ("port", json!(-1), "-1"),
        ("vni", json!(1 << 24), "16777216 is not a VXLAN network identifier"),
        ("interfaceName", json!("a/b"), "not a valid interface name"),
        ("shuffle", json!(true), "unknown field `shuffle`"),
    ] {
        let mut bad = receiver(78);
        bad[field] = value;
        let state = decode(&json!({"receivers": [bad, receiver(79)]}));
        assert_eq!(state.receivers.iter().map(|receiver| receiver.vni.get()).collect::<Vec<_>>(), [79]);
        let [status] = state.refused_receivers.as_slice() else { panic!("one refused receiver: {state:#?}") };
        assert!(status.message.contains(words), "expected “{words}” in “{}”", status.message);
        let vni = if field == "vni" { 1 << 24 } else { 78 };
        let expected = ReceiverStatus {
            tap_uid: "t1".to_owned(),
            vni,
            state: State::Refused,
            reason: Reason::InvalidSpec,
            message: status.message.clone(),
            pods_with_probes: Vec::new(),
            pods_without_full_size_probes: Vec::new(),
        };
        assert_eq!(*status, expected);
    }
}

#[test]
fn an_entry_without_identity_is_still_reported() {
    let state = decode(&json!({"senders": ["?"], "receivers": [null]}));
    assert_eq!((state.refused_senders.len(), state.refused_receivers.len()), (1, 1));
}
