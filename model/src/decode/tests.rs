use serde_json::json;

use super::*;
use crate::{Instruction, UnixTime, bounds};

fn tap(uid: &str) -> Value {
    json!({
        "namespace": "shop", "name": "web", "uid": uid, "direction": "Both",
        "destinations": [{"address": "192.0.2.1", "port": 14789, "vni": 100}],
    })
}

fn sender(tap: &str, pod: &str) -> Value {
    json!({"tap": tap, "pod": {"namespace": "shop", "name": "web-0", "uid": pod, "addresses": ["10.0.0.1"]}})
}

fn receiver(vni: u32) -> Value {
    json!({"tap": {"namespace": "shop", "name": "web", "uid": "t1"}, "vni": vni, "port": 14789, "interfaceName": "mirror"})
}

#[track_caller]
fn decode(spec: &Value) -> DesiredState {
    NodeState::decode(spec).expect("the spec of a NodeTap")
}

fn program() -> Program {
    let instructions = vec![Instruction { code: 0x06, jt: 0, jf: 0, k: 1 }];
    Program { id: ProgramId::from_digest([1; 32]), instructions }
}

#[track_caller]
fn refused(spec: &Value, words: &str) {
    let state = decode(spec);
    let [status] = state.refused_senders.as_slice() else { panic!("one refused sender: {state:#?}") };
    assert_eq!((status.state, status.reason), (State::Refused, Reason::InvalidSpec));
    assert_eq!((status.tap_uid.as_str(), status.pod_uid.as_str()), ("t1", "p1"));
    assert!(status.message.contains(words), "expected “{words}” in “{}”", status.message);
}

#[test]
fn what_the_controller_writes_is_what_the_helper_reads() {
    let mut with_program = tap("t1");
    with_program["options"] = json!({"filter": {"expression": "tcp"}});
    with_program["program"] = json!(program().id);
    let spec = json!({
        "taps": [with_program, tap("t2")],
        "senders": [sender("t1", "p1"), sender("t1", "p2"), sender("t2", "p1")],
        "receivers": [receiver(100)],
        "sources": ["192.0.2.0/24"],
        "programs": [program()],
        "underlayMTU": 1400,
        "orphanTimeoutSeconds": 7200,
        "probeEtherType": 0x88b6,
        "checkedAddresses": ["192.0.2.2"],
    });
    let stored: NodeState = serde_json::from_value(spec.clone()).expect("a node state");
    // The compiler tells of a field that is not above.
    let NodeState {
        taps,
        senders,
        receivers,
        sources,
        programs,
        underlay_mtu,
        orphan_timeout_seconds,
        probe_ether_type,
        checked_addresses,
    } = &stored;
    let lists = [taps.len(), senders.len(), receivers.len(), sources.len(), programs.len(), checked_addresses.len()];
    assert!(!lists.contains(&0), "{lists:?}");
    assert!(underlay_mtu.is_some() && orphan_timeout_seconds.is_some() && probe_ether_type.is_some());
    assert_eq!(serde_json::to_value(&stored).expect("JSON"), spec);

    let state = decode(&spec);
    assert_eq!((state.refused_senders.len(), state.refused_receivers.len()), (0, 0), "{state:#?}");
    assert_eq!(state.receivers, stored.receivers);
    let [first, second, third] = state.senders.as_slice() else { panic!("three senders") };
    assert!(Arc::ptr_eq(&first.tap, &second.tap), "the options of a tap are kept once");
    assert_eq!(first.program.as_deref(), Some(&program()));
    assert_eq!((&*third.tap.uid, third.program.as_ref(), third.underlay_mtu), ("t2", None, Some(1400)));
}

#[test]
fn an_unreadable_entry_stops_no_other() {
    let mut newer = sender("t1", "p1");
    newer["pod"]["colour"] = json!("red");
    let spec = json!({
        "taps": [tap("t1")],
        "senders": [newer, sender("t1", "p2")],
        "receivers": [{"vni": 7, "tap": {"uid": "t1"}, "port": "none"}, receiver(100)],
    });
    refused(&spec, "unknown field `colour`");
    let state = decode(&spec);
    assert_eq!((state.senders.len(), state.receivers.len()), (1, 1));
    let [receiver] = state.refused_receivers.as_slice() else { panic!("one refused receiver") };
    assert_eq!((receiver.vni, receiver.tap_uid.as_str(), receiver.state), (7, "t1", State::Refused));
}

/// A filter or limit that is ignored would mirror more than was asked for.
#[test]
fn unknown_options_refuse_the_senders_of_their_tap_only() {
    let mut newer = tap("t1");
    newer["options"] = json!({"limit": {"bytesPerSource": 1}});
    let spec = json!({"taps": [newer, tap("t2")], "senders": [sender("t1", "p1"), sender("t2", "p1")]});
    refused(&spec, "unknown field `bytesPerSource`");
    assert_eq!(decode(&spec).senders.len(), 1);
    let mut newer = json!({"taps": [tap("t1")], "senders": [sender("t1", "p1")]});
    newer["sampleEverything"] = json!(true);
    refused(&newer, "unknown field `sampleEverything`");
}

#[test]
fn references_are_checked() {
    let sender = || json!([sender("t1", "p1")]);
    refused(&json!({"senders": sender()}), "the tap t1, which is not in spec.taps");
    refused(&json!({"taps": [tap("t1"), tap("t1")], "senders": sender()}), "spec.taps has t1 twice");
    let mut with_expression = tap("t1");
    with_expression["options"] = json!({"filter": {"expression": "tcp"}});
    refused(&json!({"taps": [with_expression], "senders": sender()}), "no compiled program");
    let mut with_program = tap("t1");
    with_program["program"] = json!(program().id);
    refused(&json!({"taps": [with_program], "senders": sender()}), "but no expression");
    with_expression["program"] = json!(program().id);
    refused(&json!({"taps": [with_expression], "senders": sender()}), "which is not in spec.programs");
    let mut endless = json!(program());
    endless["code"] = json!("");
    refused(
        &json!({"taps": [with_expression], "senders": sender(), "programs": [endless]}),
        "the compiled expression cannot run: it has 0 instructions",
    );
}

#[test]
fn identifiers_and_bounds_are_checked() {
    let with_pod = |field: &str, value: Value| {
        let mut entry = sender("t1", "p1");
        entry["pod"][field] = value;
        json!({"taps": [tap("t1")], "senders": [entry]})
    };
    refused(&with_pod("configHash", json!("0b1c2d3e-1111-2222-3333-444455556666")), "config.hash");
    refused(&with_pod("addresses", json!(["10.0.0.256"])), "IP address");
    for (field, value, words) in [
        ("interface", json!("a/b"), "not a valid interface name"),
        ("destinations", json!([{"address": "192.0.2.1", "port": 1, "vni": 0}]), "not a VXLAN network identifier"),
        (
            "destinations",
            json!([{"address": "192.0.2.1", "port": 1, "vni": 1 << 24}]),
            "not a VXLAN network identifier",
        ),
        ("destinations", json!([{"address": "192.0.2.1", "port": 70000, "vni": 1}]), "70000"),
    ] {
        let mut tap = tap("t1");
        tap[field] = value;
        refused(&json!({"taps": [tap], "senders": [sender("t1", "p1")]}), words);
    }
    let mut small = json!({"taps": [tap("t1")], "senders": [sender("t1", "p1")]});
    small["underlayMTU"] = json!(bounds::UNDERLAY_MTU.start() - 1);
    refused(&small, "underlayMTU must be between 576 and 65535");
    let mut text = json!({"taps": [tap("t1")], "senders": [sender("t1", "p1")]});
    text["orphanTimeoutSeconds"] = json!("1h");
    refused(&text, "invalid type");
    text["orphanTimeoutSeconds"] = json!(bounds::ORPHAN_TIMEOUT_SECONDS.end() + 1);
    refused(&text, "orphanTimeoutSeconds must be at most 2592000");
}

#[test]
fn receivers_with_too_many_sources_are_refused() {
    let sources = |count: usize| vec![json!("10.0.0.1/32"); count];
    let mut spec = json!({"receivers": [receiver(100)], "sources": sources(bounds::MAX_SOURCES)});
    assert_eq!(decode(&spec).refused_receivers, []);
    spec["sources"] = json!(sources(bounds::MAX_SOURCES + 1));
    let refused = decode(&spec).refused_receivers;
    assert!(refused[0].message.contains("more than 32768 networks"), "{refused:?}");
}

/// It would take frames of pods for probes, or the other way round.
#[test]
fn an_ether_type_that_pods_use_refuses_senders_and_receivers() {
    let mut spec = json!({"taps": [tap("t1")], "senders": [sender("t1", "p1")], "receivers": [receiver(100)]});
    assert_eq!(decode(&spec).probe_ether_type.get(), 0x88b5);
    for number in [json!(0x0800), json!(70_000), json!("0x88b5")] {
        spec["probeEtherType"] = number;
        let state = decode(&spec);
        assert_eq!((state.senders.len(), state.receivers.len()), (0, 0), "{spec}");
        assert_eq!((state.refused_senders.len(), state.refused_receivers.len()), (1, 1), "{spec}");
    }
}

#[test]
fn an_update_without_orphan_timeout_has_the_default() {
    let mut spec = json!({"taps": [tap("t1")], "senders": [sender("t1", "p1")]});
    let timeout = |spec: &Value| decode(spec).senders[0].orphan_timeout;
    assert_eq!(timeout(&spec), Duration::from_secs(3600));
    // Less than the API allows, as tests have it.
    spec["orphanTimeoutSeconds"] = json!(2);
    assert_eq!(timeout(&spec), Duration::from_secs(2));
}

#[test]
fn the_clock_of_an_update_is_kept() {
    let now = UnixTime::from_seconds(1_800_000_000);
    let update = DesiredUpdate { now: Some(now), spec: json!({}), ..DesiredUpdate::default() };
    let text = serde_json::to_string(&update).expect("JSON");
    assert_eq!(text, r#"{"generation":0,"now":"2027-01-15T08:00:00Z","spec":{}}"#);
    let update: DesiredUpdate = serde_json::from_str(&text).expect("an update");
    assert_eq!(update.decode().expect("a state").now, Some(now));
}

/// An empty state asks to remove everything: nothing else may be taken for one.
#[test]
fn what_is_not_a_spec_is_no_state() {
    assert_eq!(NodeState::decode(&json!({})), Ok(DesiredState::default()));
    for spec in [json!(null), json!([]), json!("spec")] {
        assert_eq!(NodeState::decode(&spec), Err(DecodeError::NotAnObject), "{spec}");
    }
    assert_eq!(NodeState::decode(&json!({"senders": {}})), Err(DecodeError::NotAList("senders")));
    assert_eq!(NodeState::decode(&json!({"taps": null})), Err(DecodeError::NotAList("taps")));
}

mod entries;
