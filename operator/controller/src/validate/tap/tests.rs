use podtap_api::PodTap;
use serde_json::{Value, json};

use super::*;
use crate::{fixtures::{object, pod, policy, tap, time, World}};

fn spec_of(change: impl FnOnce(&mut PodTapSpec)) -> Result<Spec, String> {
    let mut tap = tap("t", json!([{"node": {"name": "n2"}}]));
    change(&mut tap.spec);
    let snapshot = World::with(tap).snapshot();
    validate(&snapshot).taps.remove(0).spec.map_err(|failure| failure.message)
}

fn destination(value: Value) -> Result<RequestedDestination, String> {
    spec_of(|spec| spec.destinations = vec![object(value)]).map(|mut spec| spec.destinations.remove(0))
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, String>, words: &str) {
    let message = result.expect_err("it makes no sense");
    assert!(message.contains(words), "wanted “{words}”, got {message}");
}

#[test]
fn targets() {
    refused(spec_of(|spec| spec.targets.pod_selector = None), "exactly one of targets.podNames");
    refused(spec_of(|spec| spec.targets.pod_names = Some(vec!["a".into()])), "exactly one of targets.podNames");
    let odd = json!({"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]});
    refused(spec_of(|spec| spec.targets.pod_selector = Some(object(odd))), "In, NotIn, Exists and DoesNotExist");
    refused(spec_of(|spec| spec.targets.interface = "a/b".into()), "not a name that Linux takes");
    let everything = spec_of(|spec| spec.targets.pod_selector = Some(object(json!({})))).expect("valid");
    let snapshot = World { pods: vec![pod("shop", "any", "n1")], ..World::small() }.snapshot();
    assert!(everything.selection.matches(&snapshot.pods["shop"][0]));
}

#[test]
fn destinations() {
    refused(spec_of(|spec| spec.destinations.clear()), "one to four destinations, not 0");
    refused(destination(json!({})), "exactly one of node, pod and external in destination 1");
    refused(destination(json!({"node": {"name": "a"}, "pod": {"name": "b"}})), "exactly one of node, pod and external");
    refused(destination(json!({"pod": {}})), "exactly one of name and podSelector");
    refused(destination(json!({"external": {"address": "10.0.0.0/8"}})), "not an IPv4 or IPv6 address");
    refused(destination(json!({"external": {"address": "10.0.0.1", "port": 0}})), "0 is not a UDP port");
    for name in ["a-16-chars-name0", "a b", "a:b", ".", ".."] {
        refused(destination(json!({"node": {"name": "n", "interfaceName": name}})), "not a name that Linux takes");
    }
    let external = destination(json!({"external": {"address": "2001:db8::1"}})).expect("valid");
    assert_eq!(external, RequestedDestination::External { address: "2001:db8::1".parse().expect("an address"), port: 4789 });
}

#[test]
fn numbers() {
    let vni = |vni| spec_of(|spec| spec.vxlan = Some(podtap_api::Vxlan { vni: Some(vni) }));
    refused(vni(0), "between 1 and 16777215");
    refused(vni(1 << 24), "between 1 and 16777215");
    assert_eq!(vni((1 << 24) - 1).expect("valid").vni, Some(16_777_215));
    for seconds in [0, -1, i64::MAX] {
        refused(spec_of(|spec| spec.duration_seconds = Some(seconds)), "durationSeconds must be between");
    }
    assert_eq!(spec_of(|spec| spec.targets.max_pods = -3).expect("valid").max_pods, 1);
}

#[test]
fn one_bad_object_stops_no_other() {
    let mut world = World::with(tap("good", json!([{"node": {"name": "n2"}}])));
    let mut leaving = tap("leaving", json!([{}]));
    leaving.metadata.deletion_timestamp = time(0);
    world.taps.extend([tap("bad", json!([])), leaving]);
    let caches = world.caches();
    let odd: kube::core::DeserializeGuard<PodTap> = object(json!({
        "apiVersion": "podtap.dev/v1alpha1", "kind": "PodTap",
        "metadata": {"namespace": "shop", "name": "odd", "uid": "tap-odd"},
        "spec": {"direction": "Sideways"},
    }));
    caches.taps.take(kube::runtime::watcher::Event::Apply(odd), CachedTap::from);
    let validated = validate(&crate::store::snapshot::take_snapshot(&caches, world.snapshot().now));
    let names = |taps: &[Entry<CachedTap>]| taps.iter().map(|tap| tap.fact.name.clone()).collect::<Vec<_>>();
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
fn without_a_policy_the_defaults_hold_and_nothing_external_is_allowed() {
    let absent = validate(&World::small().snapshot()).policy;
    assert_eq!((absent.receiver_port, absent.limits.taps_per_pod, absent.vni_range.first), (14789, 16, 100));
    assert_eq!(absent.external, Err(NoPolicy::Absent));
    let empty = validate(&World { policy: Some(policy(json!({}))), ..World::small() }.snapshot()).policy;
    assert_eq!(empty, Policy { external: Ok(Vec::new()), ..absent });
}

#[test]
fn a_network_that_is_none_allows_nothing_and_the_others_stand() {
    let world =
        World { policy: Some(policy(json!({"allowedExternalCIDRs": ["x", "192.0.2.0/24"]}))), ..World::small() };
    assert_eq!(validate(&world.snapshot()).policy.external.map(|networks| networks.len()), Ok(1));
}
