use podtap_api::{DestinationStatus, PodTapStatus};
use serde_json::{Value, json};

use super::*;
use crate::{fixtures::{lost, node, object, pod, policy, tap, time, World}, plan::vni::Claims, validate::tap::validate};

/// n2 has the pods `ids` and `ids-2` with `app: ids`, of which the first is the older.
fn world(destination: impl Into<Value>) -> World {
    let mut world = World::with(tap("t", json!([destination.into()])));
    for (index, name) in ["ids", "ids-2"].into_iter().enumerate() {
        let mut pod = pod("shop", name, "n2");
        pod.metadata.labels = Some([("app".to_owned(), "ids".to_owned())].into());
        pod.metadata.creation_timestamp = time(i64::try_from(index).expect("small"));
        world.pods.push(pod);
    }
    world
}

fn by_labels() -> World {
    world(json!({"pod": {"podSelector": {"matchLabels": {"app": "ids"}}}}))
}

fn of(world: &World) -> Resolved {
    let snapshot = world.snapshot();
    let validated = validate(&snapshot);
    let tap = &validated.taps[0];
    let wanted = &tap.spec.as_ref().expect("valid").destinations[0];
    resolve(&snapshot, &validated.policy, tap, 0, wanted)
}

fn chosen(world: &World) -> String {
    of(world).place.and_then(|place| place.pod).map(|pod| pod.name.clone()).unwrap_or_default()
}

fn unready(world: &mut World, index: usize) {
    let status = world.pods[index].status.as_mut().expect("a status");
    status.conditions = None;
}

#[track_caller]
fn assert_problem(world: &World, reason: &str, words: &str) {
    let failure = of(world).failure.expect("a problem");
    assert_eq!(failure.reason, reason);
    assert!(failure.message.contains(words), "wanted “{words}” in “{}”", failure.message);
}

#[test]
fn a_node() {
    let world = world(json!({"node": {"name": "n2"}}));
    let place = of(&world).place.expect("a place");
    assert_eq!((place.node.as_deref(), place.pod, place.port), (Some("n2"), None, 14789));
}

#[test]
fn a_node_that_cannot_receive() {
    assert_problem(&world(json!({"node": {"name": "n9"}})), reason::NODE_NOT_FOUND, "kubectl get nodes");
    let mut here = world(json!({"node": {"name": "n2"}}));
    here.nodes[1] = node("n2", &[]);
    assert_problem(&here, reason::NODE_WITHOUT_ADDRESS, "InternalIP");
    here.nodes[1] = node("n2", &["10.0.0.2"]);
    here.nodes[1].metadata.labels = Some([(EXCLUDE.to_owned(), "true".to_owned())].into());
    assert_problem(&here, reason::EXCLUDED, "n2");
}

#[test]
fn a_node_that_is_away_keeps_what_it_has_and_gets_nothing_new() {
    let mut world = world(json!({"node": {"name": "n2"}}));
    let (mut settled, _) = world.settled(&Claims::new());
    world.nodes[1] = lost(world.nodes[1].clone());
    assert_problem(&world, reason::NODE_NOT_READY, "n2");
    assert_eq!(of(&world).place, None);
    settled.nodes = world.nodes;
    assert_problem(&settled, reason::NODE_NOT_READY, "n2");
    assert!(of(&settled).place.is_some());
}

#[test]
fn a_pod_by_name() {
    let mut world = world(json!({"pod": {"name": "ids"}}));
    unready(&mut world, 1);
    assert_eq!(chosen(&world), "ids", "ready or not");
    world.pods[1].spec.as_mut().expect("a spec").node_name = None;
    assert_problem(&world, reason::POD_NOT_READY, "not on a node yet");
    world.pods[1] = pod("shop", "ids", "n2");
    world.pods[1].spec.as_mut().expect("a spec").host_network = Some(true);
    assert_problem(&world, reason::HOST_NETWORK, "use a node destination with the node n2");
    world.pods[1] = pod("shop", "ids", "n2");
    world.pods[1].metadata.annotations = Some([(EXCLUDE.to_owned(), "true".to_owned())].into());
    assert_problem(&world, reason::EXCLUDED, "ids");
    world.pods.remove(1);
    assert_problem(&world, reason::POD_NOT_FOUND, "ids");
}

#[test]
fn a_pod_by_labels_is_the_oldest_ready_one() {
    let mut world = by_labels();
    assert_eq!(chosen(&world), "ids");
    unready(&mut world, 1);
    assert_eq!(chosen(&world), "ids-2");
    unready(&mut world, 2);
    assert_problem(&world, reason::POD_NOT_READY, "app=ids");
}

#[test]
fn a_pod_by_labels_is_kept_for_as_long_as_it_is_ready() {
    let mut world = by_labels();
    let shown = DestinationStatus { pod: "ids-2".into(), ..DestinationStatus::default() };
    world.taps[0].status = Some(PodTapStatus { destinations: vec![shown], ..PodTapStatus::default() });
    assert_eq!(chosen(&world), "ids-2", "although the other one is older");
    unready(&mut world, 2);
    assert_eq!(chosen(&world), "ids");
    unready(&mut world, 1);
    assert_eq!(chosen(&world), "ids-2", "nobody is better");
    world.pods[2].metadata.deletion_timestamp = time(0);
    assert_problem(&world, reason::POD_NOT_READY, "app=ids");
}

#[test]
fn an_external_endpoint_needs_to_be_allowed() {
    let mut world = world(json!({"external": {"address": "192.0.2.10"}}));
    assert_problem(&world, reason::POLICY_NOT_FOUND, "PodTapPolicy named default");
    world.policy = Some(policy(json!({"allowedExternalCIDRs": ["203.0.113.0/24"]})));
    assert_problem(&world, reason::EXTERNAL_NOT_ALLOWED, "allowedExternalCIDRs");
    world.policy = Some(policy(json!({"allowedExternalCIDRs": ["192.0.2.0/24"]})));
    let place = of(&world).place.expect("a place");
    assert_eq!((place.node, place.port, place.addresses.len()), (None, 4789, 1));
}

#[test]
fn a_policy_that_cannot_be_read_allows_nothing() {
    let world = world(json!({"external": {"address": "192.0.2.10"}}));
    let caches = world.caches();
    caches
        .policies
        .take(kube::runtime::watcher::Event::Apply(policy(json!({}))), |_| Err("unknown variant".to_owned()));
    let snapshot = crate::store::snapshot::take_snapshot(&caches, world.snapshot().now);
    let validated = validate(&snapshot);
    let wanted = &validated.taps[0].spec.as_ref().expect("valid").destinations[0];
    let failure = resolve(&snapshot, &validated.policy, &validated.taps[0], 0, wanted).failure.expect("a problem");
    assert_eq!(failure.reason, reason::EXTERNAL_NOT_ALLOWED);
    assert!(failure.message.contains("unknown variant"), "{}", failure.message);
}

#[test]
fn the_family_is_one_that_all_places_have() {
    let place = |addresses: &[&str]| Place {
        node: None,
        pod: None,
        addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
        port: 1,
    };
    let (v4, v6, both) = (place(&["10.0.0.1"]), place(&["fd00::1"]), place(&["fd00::2", "10.0.0.2"]));
    assert_eq!(common_family(&[&both, &both]), Some(Family::V6), "the preferred one of the first");
    assert_eq!(common_family(&[&both, &v4]), Some(Family::V4));
    assert_eq!(common_family(&[&v4, &v6]), None);
    assert_eq!(common_family(&[]), None);
}

#[test]
fn printed() {
    let text = |wanted: Value, pod: Option<&str>, interface: &str| {
        let world = world(wanted);
        let snapshot = world.snapshot();
        let validated = validate(&snapshot);
        let pod = pod.and_then(|name| snapshot.pod("shop", name)).map(AsRef::as_ref);
        printable(&validated.taps[0].spec.as_ref().expect("valid").destinations[0], pod, interface)
    };
    assert_eq!(text(json!({"node": {"name": "n2"}}), None, "mirror"), "node/n2:mirror");
    assert_eq!(text(json!({"node": {"name": "n2"}}), None, ""), "node/n2");
    let labels: Value = object(json!({"pod": {"podSelector": {"matchLabels": {"app": "ids"}}}}));
    assert_eq!(text(labels.clone(), Some("ids"), "ptap100"), "pod/ids:ptap100");
    assert_eq!(text(labels, None, ""), "pod/app=ids");
    assert_eq!(text(json!({"pod": {"name": "ids"}}), None, ""), "pod/ids");
    assert_eq!(text(json!({"external": {"address": "192.0.2.1"}}), None, ""), "192.0.2.1:4789");
    assert_eq!(text(json!({"external": {"address": "fd00::1", "port": 9}}), None, ""), "[fd00::1]:9");
}
