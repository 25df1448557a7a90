use serde_json::json;
use tap_wire::Status;

use super::*;

fn sender_entry() -> Value {
    json!({
        "tap": {"namespace": "shop", "name": "web", "uid": "tap-1"},
        "pod": {"namespace": "shop", "name": "web-0", "uid": "pod-1", "cgroupUid": "static-1", "addresses": ["10.8.0.5", "fd00:8::5"]},
        "interface": "net1",
        "direction": "Egress",
        "destinations": [
            {"address": "192.0.2.10", "port": 4789, "vni": 77},
            {"address": "198.51.100.3", "port": 14789, "vni": 16_777_215}
        ]
    })
}

fn receiver_entry() -> Value {
    json!({
        "tap": {"namespace": "lab", "name": "ids", "uid": "tap-2"},
        "vni": 78, "port": 14790, "ipv6": true, "interfaceName": "mirror7", "raw": true,
        "pod": {"namespace": "lab", "name": "zeek-0", "uid": "pod-2"}
    })
}

/// What the entries become, without treatments.
fn desired(generation: i64, senders: &[Value], receivers: &[Value]) -> (Desired, Refused) {
    let (senders, receivers) = (senders.to_vec(), receivers.to_vec());
    super::desired(generation, &RawSpec { senders, receivers, ..RawSpec::default() })
}

fn with(mut entry: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer has a slash");
    match entry.pointer_mut(parent).expect("the parent is there") {
        Value::Array(list) => list[key.parse::<usize>().expect("a list has numbers")] = value,
        object => object[key] = value,
    }
    entry
}

/// What becomes of [`sender_entry`], but for its interface and direction.
fn plain_sender() -> Sender {
    let pod = Pod {
        uid: "pod-1".into(),
        cgroup_uid: Some("static-1".into()),
        addresses: vec![[10, 8, 0, 5].into(), "fd00:8::5".parse().expect("an address")],
    };
    let destinations = vec![
        Endpoint { address: [192, 0, 2, 10].into(), port: 4789, vni: 77 },
        Endpoint { address: [198, 51, 100, 3].into(), port: 14789, vni: 16_777_215 },
    ];
    Sender::of_everything("tap-1".into(), pod, destinations)
}

#[test]
fn everything_is_passed_on() {
    let all = Desired {
        generation: 9,
        senders: vec![Sender { interface: "net1".into(), direction: tap_wire::Direction::Egress, ..plain_sender() }],
        receivers: vec![Receiver {
            tap: "tap-2".into(),
            vni: 78,
            port: 14790,
            ipv6: true,
            interface_name: "mirror7".into(),
            raw: true,
            pod: Some(Pod { uid: "pod-2".into(), cgroup_uid: None, addresses: vec![] }),
        }],
    };
    assert_eq!(desired(9, &[sender_entry()], &[receiver_entry()]), (all, Refused::default()));
}

#[test]
fn directions_keep_their_meaning() {
    use tap_wire::Direction::{Both, Egress, Ingress};
    for (name, direction) in [("Ingress", Ingress), ("Egress", Egress), ("Both", Both)] {
        let (desired, _) = desired(1, &[with(sender_entry(), "/direction", json!(name))], &[]);
        assert_eq!(desired.senders[0].direction, direction, "{name}");
    }
}

#[test]
fn treated_senders_get_the_treatment_of_their_tap() {
    let treated = with(sender_entry(), "/treated", json!(true));
    let order = |treatments: Value| {
        let plain = with(sender_entry(), "/pod/uid", json!("pod-2"));
        let treatments = serde_json::from_value(treatments).expect("a list");
        let senders = vec![treated.clone(), plain];
        super::desired(1, &RawSpec { senders, treatments, underlay_mtu: Some(1400), ..RawSpec::default() })
    };
    let other = json!({"tapUid": "tap-2", "shuffle": true});
    let (desired, refused) = order(json!([other, {"tapUid": "tap-1", "oneInFlows": 10, "headersOnly": true}]));
    let found: Vec<_> = desired.senders.iter().map(|s| (s.one_in_flows, s.truncate, s.underlay_mtu)).collect();
    let (treated, plain) = ((10, Some(tap_wire::Truncate::Headers), Some(1400)), (1, None, Some(1400)));
    assert_eq!((found, refused), (vec![treated, plain], Refused::default()));

    for (treatments, words) in [
        (json!([other]), "no entry for its tap in spec.treatments"),
        (
            json!([{"tapUid": "tap-1", "shuffle": true}]),
            "what is to become of its frames: this node's helper does not know",
        ),
    ] {
        let (desired, refused) = order(treatments);
        assert_eq!(desired.senders.iter().map(|s| s.pod.uid.as_str()).collect::<Vec<_>>(), ["pod-2"]);
        let message = &refused.senders[0].message;
        assert!(message.contains(words), "wanted “{words}” in “{message}”");
    }
}

#[test]
fn nothing_wanted_is_an_empty_order() {
    assert_eq!(desired(3, &[], &[]), (Desired { generation: 3, ..Desired::default() }, Refused::default()));
}

#[track_caller]
fn sender_refused(pointer: &str, value: Value, words: &str) {
    let good = with(sender_entry(), "/pod/uid", json!("pod-good"));
    let (desired, refused) = desired(1, &[with(sender_entry(), pointer, value), good], &[]);
    assert_eq!(desired.senders.len(), 1, "the other entry goes on");
    assert_eq!(desired.senders[0].pod.uid, "pod-good");
    let [status] = &refused.senders[..] else { panic!("one refusal, not {refused:?}") };
    assert!(status.message.contains(words), "wanted “{words}” in “{}”", status.message);
    let expected = NodeTapSenderStatus {
        tap_uid: "tap-1".into(),
        pod_uid: "pod-1".into(),
        interface: "net1".into(),
        state: ItemState::Refused,
        reason: "Invalid".into(),
        message: status.message.clone(),
        degraded: vec![],
    };
    assert_eq!(*status, expected);
}

#[test]
fn a_bad_entry_stops_no_other() {
    sender_refused("/pod/addresses/0", json!("10.8.0.500"), "\"10.8.0.500\" is not an IP address");
    sender_refused("/destinations/1/address", json!("ids.example.com"), "\"ids.example.com\" is not an IP address");
    sender_refused("/destinations/0/port", json!(65_536), "65536 is not a UDP port");
    sender_refused("/destinations/0/port", json!(0), "0 is not a UDP port");
    sender_refused("/destinations/0/vni", json!(0), "0 is not a VXLAN network identifier");
    sender_refused("/destinations/0/vni", json!(16_777_216), "16777216 is not a VXLAN network identifier");
    sender_refused("/direction", json!("Sideways"), "unknown variant `Sideways`");
    sender_refused("/destinations", json!("nowhere"), "cannot read the entry");
}

#[test]
fn a_field_of_a_later_version_is_not_ignored() {
    sender_refused("/shuffle", json!({"include": []}), "does not know the field shuffle");
    sender_refused("/destinations/1/weight", json!(2), "does not know the field destinations.1.weight");
}

#[test]
fn a_bad_receiver_stops_no_other() {
    let bad = with(receiver_entry(), "/port", json!(-1));
    let good = with(receiver_entry(), "/vni", json!(79));
    let (desired, refused) = desired(1, &[], &[bad, good]);
    assert_eq!(desired.receivers.iter().map(|receiver| receiver.vni).collect::<Vec<_>>(), [79]);
    let expected = NodeTapReceiverStatus {
        tap_uid: "tap-2".into(),
        vni: 78,
        state: ItemState::Refused,
        reason: "Invalid".into(),
        message: "-1 is not a UDP port".into(),
    };
    assert_eq!(refused, Refused { senders: vec![], receivers: vec![expected] });
}

#[test]
fn an_entry_without_identity_is_still_reported() {
    let (_, refused) = desired(1, &[json!("?")], &[json!(null)]);
    assert_eq!((refused.senders.len(), refused.receivers.len()), (1, 1));
}

fn report() -> Report {
    let status = |state, reason, message: &str| Status { state, reason, message: message.into() };
    Report {
        generation: 12,
        senders: vec![
            SenderReport {
                tap: "tap-1".into(),
                pod: "pod-1".into(),
                interface: "eth0".into(),
                status: status(State::Active, Reason::Established, ""),
                degraded: vec!["filter.expression needs eBPF".into()],
            },
            SenderReport {
                tap: "tap-3".into(),
                pod: "pod-3".into(),
                interface: String::new(),
                status: status(State::Waiting, Reason::PodNotRunning, "no process yet"),
                degraded: vec![],
            },
        ],
        receivers: vec![ReceiverReport {
            tap: "tap-2".into(),
            vni: 78,
            status: status(State::Failed, Reason::PortTaken, "port 14790 is taken"),
        }],
        features: Features { ebpf: true, ..Features::default() },
    }
}

#[test]
fn a_report_becomes_a_status() {
    let expected = NodeTapStatus {
        observed_generation: Some(12),
        active_senders: 1,
        active_receivers: 0,
        senders: vec![
            NodeTapSenderStatus {
                tap_uid: "tap-1".into(),
                pod_uid: "pod-1".into(),
                interface: "eth0".into(),
                state: ItemState::Active,
                reason: "Established".into(),
                message: String::new(),
                degraded: vec!["filter.expression needs eBPF".into()],
            },
            NodeTapSenderStatus {
                tap_uid: "tap-3".into(),
                pod_uid: "pod-3".into(),
                interface: String::new(),
                state: ItemState::Waiting,
                reason: "PodNotRunning".into(),
                message: "no process yet".into(),
                degraded: vec![],
            },
        ],
        receivers: vec![NodeTapReceiverStatus {
            tap_uid: "tap-2".into(),
            vni: 78,
            state: ItemState::Failed,
            reason: "PortTaken".into(),
            message: "port 14790 is taken".into(),
        }],
        features: [("ebpf".to_owned(), true), ("fit".to_owned(), false)].into(),
    };
    assert_eq!(status(&report(), &Refused::default()), expected);
}

#[test]
fn states_keep_their_meaning() {
    for (wire, api) in [
        (State::Active, ItemState::Active),
        (State::Waiting, ItemState::Waiting),
        (State::Refused, ItemState::Refused),
        (State::Failed, ItemState::Failed),
        (State::Removing, ItemState::Removing),
    ] {
        assert_eq!(state(wire), api);
    }
}

#[test]
fn refusals_join_the_report_in_order() {
    let refusal =
        NodeTapSenderStatus { tap_uid: "tap-2".into(), pod_uid: "pod-9".into(), ..NodeTapSenderStatus::default() };
    let receiver = NodeTapReceiverStatus { vni: 5, ..NodeTapReceiverStatus::default() };
    let refused = Refused { senders: vec![refusal], receivers: vec![receiver] };
    let status = status(&report(), &refused);
    let senders: Vec<_> = status.senders.iter().map(|sender| sender.tap_uid.as_str()).collect();
    let receivers: Vec<_> = status.receivers.iter().map(|receiver| receiver.vni).collect();
    assert_eq!((senders, receivers), (vec!["tap-1", "tap-2", "tap-3"], vec![5, 78]));
    assert_eq!((status.active_senders, status.active_receivers), (1, 0));
}

#[test]
fn what_is_still_being_removed_is_not_reported_as_refused() {
    let refusal =
        NodeTapSenderStatus { tap_uid: "tap-1".into(), pod_uid: "pod-1".into(), ..NodeTapSenderStatus::default() };
    let refused = Refused { senders: vec![refusal], receivers: vec![] };
    assert_eq!(status(&report(), &refused), status(&report(), &Refused::default()));
}
