use podtap_api::{PodTapSpec, VniRange, Vxlan};
use podtap_model::FrameFormat;
use serde_json::{Value, json};

use super::*;
use crate::validate::state::SuspendedBy;
use crate::{
    expression::compiled::Expressions,
    fixtures::{World, object, pod, policy, tap, time, vni},
    store::tap::DecodeError,
    validate::spec::{DestinationKind, RequestedDestination},
};

fn spec_of(change: impl FnOnce(&mut PodTapSpec)) -> Result<TapSpec, String> {
    let mut tap = tap("t", json!([{"node": {"name": "n2"}}]));
    change(&mut tap.spec);
    let snapshot = World::with(tap).snapshot();
    validate(&snapshot).taps.remove(0).spec.map_err(|failure| failure.message)
}

fn destination(value: Value) -> Result<RequestedDestination, String> {
    spec_of(|spec| spec.mirror.destinations = vec![object(value)]).map(|mut spec| spec.destinations.remove(0))
}

/// Why the API's types refuse the destination.
fn undecodable(destination: &Value) -> String {
    let spec = json!({"targets": {"podSelector": {}}, "destinations": [destination]});
    serde_json::from_value::<PodTapSpec>(spec).expect_err("it is invalid").to_string()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, String>, words: &str) {
    let message = result.expect_err("it is invalid");
    assert!(message.contains(words), "expected “{words}”, got {message}");
}

#[test]
fn targets() {
    refused(spec_of(|spec| spec.targets.pod_selector = None), "exactly one of targets.podNames");
    refused(spec_of(|spec| spec.targets.pod_names = Some(vec!["a".into()])), "exactly one of targets.podNames");
    let odd = json!({"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]});
    refused(spec_of(|spec| spec.targets.pod_selector = Some(object(odd))), "In, NotIn, Exists and DoesNotExist");
    let interface = json!({"targets": {"podSelector": {}, "interface": "a/b"}, "destinations": []});
    let error = serde_json::from_value::<PodTapSpec>(interface).expect_err("it is invalid").to_string();
    assert!(error.contains("not a valid interface name"), "{error}");
    let everything = spec_of(|spec| spec.targets.pod_selector = Some(object(json!({})))).expect("valid");
    let snapshot = World { pods: vec![pod("shop", "any", "n1")], ..World::small() }.snapshot();
    assert!(everything.selection.matches(&snapshot.pods["shop"][0]));
}

#[test]
fn labels_in_the_wrong_place_do_not_select_everything() {
    let selector = || object(json!({"app": "web"}));
    refused(
        spec_of(|spec| spec.targets.pod_selector = Some(selector())),
        "the selector in targets has the unknown field app: put labels under matchLabels",
    );
    refused(destination(json!({"pod": {"podSelector": {"app": "ids"}}})), "the unknown field app");
}

#[test]
fn destinations() {
    refused(spec_of(|spec| spec.mirror.destinations.clear()), "one to four destinations, not 0");
    refused(destination(json!({})), "exactly one of node, pod, external and collector in the destination main");
    refused(
        destination(json!({"node": {"name": "a"}, "pod": {"name": "b"}})),
        "exactly one of node, pod, external and collector",
    );
    refused(destination(json!({"pod": {}})), "exactly one of name and podSelector");
    let raw = json!({"external": {"address": "10.0.0.1"}, "frameFormat": "Raw"});
    refused(destination(raw), "leave it out of the destination main, which is external");
    assert!(undecodable(&json!({"external": {"address": "10.0.0.0/8"}})).contains("invalid IP address"));
    refused(destination(json!({"external": {"address": "10.0.0.1", "port": 0}})), "0 is not a UDP port");
    for name in ["a-16-chars-name0", "a b", "a:b", ".", ".."] {
        let error = undecodable(&json!({"node": {"name": "n", "interfaceName": name}}));
        assert!(error.contains("not a valid interface name"), "{error}");
    }
    let external = destination(json!({"external": {"address": "2001:db8::1"}})).expect("valid");
    let address = "2001:db8::1".parse().expect("an address");
    assert_eq!(external.kind, DestinationKind::External { address, port: 4789, probe: false, metadata: false });
    let node = destination(json!({"node": {"name": "n", "interfaceName": ""}, "frameFormat": "Raw"})).expect("valid");
    let kind = DestinationKind::Node { name: "n".into(), interface: None, frame_format: FrameFormat::Raw };
    assert_eq!(node, RequestedDestination { name: "main".into(), kind });
    let twice = json!([{"node": {"name": "a"}}, {"node": {"name": "b"}}]);
    refused(spec_of(|spec| spec.mirror.destinations = object(twice)), "two destinations have the name main");
}

#[test]
fn numbers() {
    for number in [0, 1 << 24] {
        let error = serde_json::from_value::<Vxlan>(json!({"vni": number})).expect_err("it is invalid").to_string();
        assert!(error.contains("use 1 to 16777215"), "{error}");
    }
    let highest = spec_of(|spec| spec.mirror.vxlan = Some(Vxlan { vni: Some(vni((1 << 24) - 1)) }));
    assert_eq!(highest.expect("valid").vni, Some(vni(16_777_215)));
    for duration in ["0s", "-1s", "8761h", "500ms", "9000000h"] {
        let result = spec_of(|spec| spec.mirror.duration = Some(duration.parse().expect("a duration")));
        refused(result, "duration must be between 1s and 8760h");
    }
    let ninety = spec_of(|spec| spec.mirror.duration = Some("1m30s".parse().expect("a duration"))).expect("valid");
    assert_eq!(ninety.duration.map(|duration| duration.as_secs()), Some(90));
    assert_eq!(spec_of(|spec| spec.targets.max_pods = 0).expect("valid").max_pods, 1);
}

#[test]
fn one_bad_object_stops_no_other() {
    let mut world = World::with(tap("good", json!([{"node": {"name": "n2"}}])));
    let mut leaving = tap("leaving", json!([{}]));
    leaving.metadata.deletion_timestamp = time(0);
    world.taps.extend([tap("bad", json!([])), leaving]);
    let caches = world.caches();
    let odd: kube::api::DynamicObject = object(json!({
        "apiVersion": "podtap.dev/v1alpha1", "kind": "PodTap",
        "metadata": {"namespace": "shop", "name": "odd", "uid": "tap-odd"},
        "spec": {"direction": "Sideways"},
    }));
    caches.taps.apply(kube::runtime::watcher::Event::Apply(odd), CachedTap::from);
    let validated = validate(&Snapshot::take(&caches, &Expressions::new(), world.snapshot().now));
    let names =
        |taps: &[Entry<CachedTap>]| taps.iter().map(|tap| tap.object.reference.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&validated.unreadable), ["odd"]);
    assert_eq!(names(&validated.deleting), ["leaving"]);
    let valid: Vec<_> = validated.taps.iter().map(|tap| (tap.reference.name.as_str(), tap.spec.is_ok())).collect();
    assert_eq!(valid, [("bad", false), ("good", true)]);
}

#[test]
fn older_taps_come_first() {
    let mut world = World::with(tap("a", json!([{"node": {"name": "n2"}}])));
    world.taps[0].metadata.creation_timestamp = time(5);
    world.taps.push(tap("b", json!([{"node": {"name": "n2"}}])));
    let snapshot = world.snapshot();
    let order: Vec<_> = validate(&snapshot).taps.iter().map(|tap| tap.reference.name.clone()).collect();
    assert_eq!(order, ["b", "a"]);
}

#[test]
fn without_a_policy_the_defaults_apply_and_nothing_external_is_allowed() {
    let absent = validate(&World::small().snapshot()).policy;
    assert_eq!((absent.receiver_port, absent.limits.taps_per_pod), (14789, 16));
    assert_eq!(absent.vni_range, VniRange { first: vni(4096), last: vni(15_999_999) });
    assert_eq!(absent.external, None);
    let empty = validate(&World { policy: Some(policy(json!({}))), ..World::small() }.snapshot()).policy;
    assert_eq!(empty, Policy { external: Some(Vec::new()), ..absent });
    assert_eq!((empty.orphan_timeout_seconds, empty.suspends_all), (3600, None));
}

#[test]
fn the_orphan_timeout_is_one_that_nodes_accept() {
    for (text, seconds) in [("1h30m", 5400), ("1m", 60), ("1s", 60), ("90.5s", 90), ("9000h", 30 * 24 * 3600)] {
        let world = World { policy: Some(policy(json!({"orphanTimeout": text}))), ..World::small() };
        assert_eq!(validate(&world.snapshot()).policy.orphan_timeout_seconds, seconds, "{text}");
    }
}

#[test]
fn a_policy_that_cannot_be_decoded_changes_nothing_or_suspends_all_taps() {
    let error = DecodeError("invalid IP address".into());
    let unreadable = Err(error.clone());
    let policy = Policy::new(Some(&unreadable), None);
    assert_eq!((policy.suspends_all, policy.external), (Some(SuspendedBy::UnreadablePolicy(error)), Some(Vec::new())));
    let spec = json!({"suspendAll": false, "excludedNamespaces": ["shop"], "allowedExternalCIDRs": ["192.0.2.0/24"]});
    let last = Ok(object(spec));
    assert_eq!(Policy::new(Some(&unreadable), Some(&last)), Policy::new(Some(&last), None));
    assert_eq!(Policy::new(None, Some(&last)), Policy::new(None, None), "a policy that was deleted does not count");
    let world = World::with(tap("t", json!([{"external": {"address": "192.0.2.10"}}])));
    let caches = world.caches();
    let event = kube::runtime::watcher::Event::Apply(crate::fixtures::policy(json!({})));
    caches.policies.apply(event, |_| unreadable.clone());
    let validated = validate(&Snapshot::take(&caches, &Expressions::new(), world.snapshot().now));
    assert!(matches!(&validated.taps[0].state, TapState::Suspended(SuspendedBy::UnreadablePolicy(_))));
    let spec = json!({"allowedExternalCIDRs": ["x", "192.0.2.0/24"]});
    serde_json::from_value::<podtap_api::PodTapPolicySpec>(spec).expect_err("x is not a network");
}

/// Thousands of taps of one namespace must not cost what as many taps of a hundred namespaces do.
#[test]
fn nothing_is_compiled_for_taps_that_are_not_carried_out() {
    let with_expression = |name: &str, text: &str, seconds| {
        let mut tap = tap(name, json!([{"node": {"name": "n2"}}]));
        tap.metadata.creation_timestamp = time(seconds);
        tap.spec.mirror.options.filter = Some(object(json!({"expression": text})));
        tap
    };
    let mut suspended = with_expression("suspended", "arp", 0);
    suspended.spec.mirror.suspend = true;
    let mut expired = with_expression("expired", "icmp", 0);
    expired.spec.mirror.duration = Some(std::time::Duration::from_secs(60).into());
    expired.status = Some(podtap_api::PodTapStatus { start_time: time(-60), ..podtap_api::PodTapStatus::default() });
    let taps = vec![suspended, expired, with_expression("first", "tcp", 1), with_expression("second", "udp", 2)];
    let policy = Some(policy(json!({"limits": {"tapsPerNamespace": 1}})));
    let validated = validate(&World { policy, taps, ..World::small() }.snapshot());
    assert_eq!(validated.expressions, [("shop".to_owned(), ["tcp".to_owned()].into())].into());
    let TapState::Refused(failure) = &validated.taps[3].state else { panic!("{:?}", validated.taps[3]) };
    assert_eq!(failure.reason, podtap_model::Reason::TooManyTaps);
}
