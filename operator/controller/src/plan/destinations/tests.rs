use k8s_openapi::api::core::v1::Pod;
use podtap_api::{DestinationStatus, PodTapStatus};
use serde_json::{Value, json};

use super::*;
use crate::{
    fixtures::{OWN_NAMESPACE, World, lost, node, object, pod, policy, tap, time},
    plan::vni::Vnis,
    validate::tap::validate,
};

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

fn of(world: &World) -> Resolution {
    let snapshot = world.snapshot();
    let validated = validate(&snapshot);
    let tap = &validated.taps[0];
    let requested = &tap.spec.as_ref().expect("valid").destinations[0];
    resolve(&snapshot, &PodIndex::new(&snapshot, &validated.taps), &validated.policy, tap, requested)
}

fn chosen(world: &World) -> String {
    of(world).resolved.as_ref().and_then(|resolved| resolved.pod()).map(|pod| pod.name.clone()).unwrap_or_default()
}

fn unready(world: &mut World, index: usize) {
    let status = world.pods[index].status.as_mut().expect("a status");
    status.conditions = None;
}

#[track_caller]
fn assert_failure(world: &World, reason: Reason, words: &str) {
    let failure = of(world).failure.expect("a failure");
    assert_eq!(failure.reason, reason);
    assert!(failure.message.contains(words), "expected “{words}” in “{}”", failure.message);
}

#[test]
fn a_node() {
    let world = world(json!({"node": {"name": "n2"}}));
    let address = "10.0.0.2".parse().expect("an address");
    let expected = ResolvedDestination::Node { name: "n2".into(), addresses: vec![address], port: 14789 };
    assert_eq!(of(&world), Resolution { resolved: Some(expected), failure: None });
}

#[test]
fn a_node_that_cannot_receive() {
    assert_failure(&world(json!({"node": {"name": "n9"}})), Reason::NodeNotFound, "ask the cluster's administrator");
    let mut here = world(json!({"node": {"name": "n2"}}));
    here.nodes[1] = node("n2", &[]);
    assert_failure(&here, Reason::NodeWithoutAddress, "InternalIP");
    here.nodes[1] = node("n2", &["10.0.0.2"]);
    here.nodes[1].metadata.labels = Some([(EXCLUDE.to_owned(), "true".to_owned())].into());
    assert_failure(&here, Reason::Excluded, "n2");
}

#[test]
fn a_node_that_is_not_ready_keeps_what_it_has_and_gets_nothing_new() {
    let mut world = world(json!({"node": {"name": "n2"}}));
    let (mut settled, _) = world.settled(&Vnis::default());
    world.nodes[1] = lost(world.nodes[1].clone());
    assert_failure(&world, Reason::NodeNotReady, "n2");
    assert_eq!(of(&world).resolved, None);
    settled.nodes = world.nodes;
    assert_failure(&settled, Reason::NodeNotReady, "n2");
    assert!(of(&settled).resolved.is_some());
}

#[test]
fn a_pod_by_name() {
    let mut world = world(json!({"pod": {"name": "ids"}}));
    unready(&mut world, 1);
    assert_eq!(chosen(&world), "ids", "ready or not");
    world.pods[1].spec.as_mut().expect("a spec").node_name = None;
    assert_failure(&world, Reason::PodNotReady, "not scheduled yet");
    world.pods[1] = pod("shop", "ids", "n2");
    world.pods[1].spec.as_mut().expect("a spec").host_network = Some(true);
    assert_failure(&world, Reason::HostNetwork, "use a node destination with the node n2");
    world.pods[1] = pod("shop", "ids", "n2");
    world.pods[1].metadata.annotations = Some([(EXCLUDE.to_owned(), "true".to_owned())].into());
    assert_failure(&world, Reason::Excluded, "ids");
    world.pods.remove(1);
    assert_failure(&world, Reason::PodNotFound, "ids");
}

#[test]
fn a_pod_by_labels_is_the_oldest_ready_one() {
    let mut world = by_labels();
    assert_eq!(chosen(&world), "ids");
    unready(&mut world, 1);
    assert_eq!(chosen(&world), "ids-2");
    unready(&mut world, 2);
    assert_failure(&world, Reason::PodNotReady, "app=ids");
}

#[test]
fn a_pod_by_labels_is_kept_for_as_long_as_it_is_ready() {
    let mut world = by_labels();
    let shown = DestinationStatus { name: "main".into(), pod: Some("ids-2".into()), ..DestinationStatus::default() };
    world.taps[0].status = Some(PodTapStatus { destinations: vec![shown], ..PodTapStatus::default() });
    assert_eq!(chosen(&world), "ids-2", "although the other one is older");
    unready(&mut world, 2);
    assert_eq!(chosen(&world), "ids");
    unready(&mut world, 1);
    assert_eq!(chosen(&world), "ids-2", "no other is ready");
    world.pods[2].metadata.deletion_timestamp = time(0);
    assert_failure(&world, Reason::PodNotReady, "app=ids");
}

#[test]
fn an_external_endpoint_needs_to_be_allowed() {
    let mut world = world(json!({"external": {"address": "192.0.2.10"}}));
    assert_failure(&world, Reason::PolicyNotFound, "PodTapPolicy named default");
    world.policy = Some(policy(json!({"allowedExternalCIDRs": ["203.0.113.0/24"]})));
    assert_failure(&world, Reason::NotAllowedByPolicy, "allowedExternalCIDRs");
    world.policy = Some(policy(json!({"allowedExternalCIDRs": ["192.0.2.0/24"]})));
    let address = ["192.0.2.10".parse().expect("an address")];
    assert_eq!(of(&world).resolved, Some(ResolvedDestination::External { address, port: 4789 }));
}

fn external(address: &str) -> World {
    let mut world = world(json!({"external": {"address": address}}));
    world.policy = Some(policy(json!({"allowedExternalCIDRs": ["0.0.0.0/0", "::/0"]})));
    world
}

#[test]
fn an_external_address_is_not_that_of_a_pod() {
    let mut world = external("10.8.0.77");
    assert_eq!(of(&world).failure, None);
    let mut other = pod("elsewhere", "other", "n2");
    other.status.get_or_insert_default().pod_ip = Some("10.8.0.77".to_owned());
    world.pods.push(other);
    assert_failure(&world, Reason::ClusterAddress, "set `pod` instead");
    assert!(!of(&world).failure.expect("a failure").message.contains("other"), "another tenant's pod is not named");
}

#[test]
fn an_external_address_is_not_that_of_a_node() {
    for address in ["10.0.0.2", "::ffff:10.0.0.2"] {
        assert_failure(&external(address), Reason::ClusterAddress, "set `node: {name: n2}` instead");
    }
    for address in ["127.0.0.1", "::1"] {
        assert_failure(&external(address), Reason::ClusterAddress, "set `node` instead");
    }
    let mut world = external("203.0.113.9");
    assert_eq!(of(&world).failure, None);
    let public = json!({"type": "ExternalIP", "address": "203.0.113.9"});
    world.nodes[0].status.get_or_insert_default().addresses.get_or_insert_default().push(object(public));
    assert_failure(&world, Reason::ClusterAddress, "set `node: {name: n1}` instead");
}

#[test]
fn the_family_is_one_that_all_destinations_have() {
    let node = |addresses: &[&str]| ResolvedDestination::Node {
        name: "n".into(),
        addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
        port: 1,
    };
    let (v4, v6, both) = (node(&["10.0.0.1"]), node(&["fd00::1"]), node(&["fd00::2", "10.0.0.2"]));
    assert_eq!(common_family(&[&both, &both]), Some(Family::V6), "the preferred one of the first");
    assert_eq!(common_family(&[&both, &v4]), Some(Family::V4));
    assert_eq!(common_family(&[&v4, &v6]), None);
    assert_eq!(common_family(&[]), None);
}

#[test]
fn printed() {
    let text = |requested: Value, pod: Option<&str>, interface: &str| {
        let world = world(requested);
        let snapshot = world.snapshot();
        let validated = validate(&snapshot);
        let pod = pod.and_then(|name| snapshot.pod("shop", name)).map(AsRef::as_ref);
        let requested = &validated.taps[0].spec.as_ref().expect("valid").destinations[0];
        printable(&requested.kind, pod, interface.parse().ok().as_ref())
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

/// n1 and n2 have a collector's pod each.
fn with_collectors() -> World {
    let mut world = World::with(tap("t", json!([{"collector": {}}])));
    for node in ["n1", "n2"] {
        world.pods.push(collector(node));
    }
    world
}

fn collector(node: &str) -> Pod {
    let mut pod = pod(OWN_NAMESPACE, &format!("collector-{node}"), node);
    let labels = [("app.kubernetes.io/name", "podtap"), ("app.kubernetes.io/component", "collector")];
    pod.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    pod
}

#[test]
fn a_collector_is_one_of_its_ready_pods() {
    let mut world = with_collectors();
    let first = chosen(&world);
    assert!(first.starts_with("collector-"), "{first}");
    let index = world.pods.iter().position(|pod| pod.metadata.name.as_deref() == Some(&first)).expect("it is there");
    unready(&mut world, index);
    let second = chosen(&world);
    assert!(second.starts_with("collector-") && second != first);
    world.pods.remove(index);
    assert_eq!(chosen(&world), second);
    world.pods.retain(|pod| !is_collector(pod));
    assert_failure(&world, Reason::PodNotReady, "collector.enabled");
    // The labels mean nothing in another namespace.
    let mut foreign = collector("n1");
    foreign.metadata.namespace = Some("shop".into());
    world.pods.push(foreign);
    assert_failure(&world, Reason::PodNotReady, "collector.enabled");
}

#[test]
fn a_collector_that_is_unready_for_a_moment_is_kept() {
    let mut world = with_collectors();
    world.seconds = 1000;
    let first = chosen(&world);
    let destinations =
        vec![DestinationStatus { name: "main".into(), pod: Some(first.clone()), ..DestinationStatus::default() }];
    let status = PodTapStatus { destinations, ..PodTapStatus::default() };
    world.taps[0].status = Some(status);
    let mut unready_since = |seconds: i64| {
        let pod = world.pods.iter_mut().find(|pod| pod.metadata.name.as_deref() == Some(&first)).expect("it exists");
        let condition = json!([{"type": "Ready", "status": "False", "lastTransitionTime": time(seconds)}]);
        pod.status.as_mut().expect("a status").conditions = Some(object(condition));
        chosen(&world)
    };
    assert_eq!(unready_since(980), first);
    assert_ne!(unready_since(960), first);
}

#[test]
fn a_collector_on_a_node_that_has_opted_out_is_left_out() {
    let mut world = with_collectors();
    let first = chosen(&world);
    let number = usize::from(first.ends_with("n2"));
    world.nodes[number].metadata.labels = Some([("podtap.dev/exclude".to_owned(), "true".to_owned())].into());
    let second = chosen(&world);
    assert!(second.starts_with("collector-") && second != first, "{second}");
}

fn is_collector(pod: &Pod) -> bool {
    pod.metadata.name.as_deref().is_some_and(|name| name.starts_with("collector-"))
}

#[test]
fn a_collector_s_pod_that_is_added_takes_over_its_share() {
    let chosen = |nodes: usize| {
        let mut world = World::small();
        for tap_number in 0..100 {
            world.taps.push(tap(&format!("t{tap_number}"), json!([{"collector": {}}])));
        }
        world.policy = Some(policy(json!({"limits": {"tapsPerNamespace": 1000}})));
        for number in 0..nodes {
            let mut pod = collector("n1");
            let name = format!("collector-{number}");
            (pod.metadata.name, pod.metadata.uid) = (Some(name.clone()), Some(name));
            world.pods.push(pod);
        }
        let snapshot = world.snapshot();
        let validated = validate(&snapshot);
        let index = PodIndex::new(&snapshot, &validated.taps);
        let of = |tap: &Tap| {
            let requested = &tap.spec.as_ref().expect("valid").destinations[0];
            let resolution = resolve(&snapshot, &index, &validated.policy, tap, requested);
            resolution.resolved.as_ref().and_then(|resolved| resolved.pod()).expect("a pod").name.clone()
        };
        validated.taps.iter().map(of).collect::<Vec<String>>()
    };
    let (before, after) = (chosen(3), chosen(4));
    let moved: Vec<&String> =
        before.iter().zip(&after).filter(|(before, after)| before != after).map(|(_, a)| a).collect();
    assert!(moved.iter().all(|name| *name == "collector-3"), "{moved:?}");
    assert!((10..=45).contains(&moved.len()), "a quarter of 100: {}", moved.len());
}

/// Whether the tap of `web` on n1 sends metadata, and which of its receivers show it, by node.
fn metadata(destinations: serde_json::Value) -> (bool, Vec<(String, bool)>) {
    let mut world = with_collectors();
    world.policy = Some(policy(json!({"allowedExternalCIDRs": ["192.0.2.0/24"]})));
    world.taps = vec![tap("t", destinations)];
    world.plan(&crate::plan::vni::Vnis::default(), |_, _, plan| {
        let receivers = plan.nodes.iter().flat_map(|(node, spec)| {
            spec.receivers.iter().map(move |receiver| {
                let place = if receiver.pod.is_some() { "collector".to_owned() } else { node.clone() };
                (place, receiver.metadata)
            })
        });
        let sends: Vec<bool> = plan.nodes.values().flat_map(|spec| &spec.taps).map(|tap| tap.metadata).collect();
        assert_eq!(sends.len(), 1);
        (sends[0], receivers.collect())
    })
}

#[test]
fn metadata_goes_only_where_it_is_wanted() {
    let external = |metadata: bool| json!({"external": {"address": "192.0.2.1", "metadata": metadata}});
    let (node, collector) = (json!({"node": {"name": "n2"}}), json!({"collector": {}}));
    let of_collector = ("collector".to_owned(), true);
    assert_eq!(metadata(json!([collector])), (true, vec![of_collector.clone()]));
    assert_eq!(metadata(json!([node])), (false, vec![("n2".to_owned(), false)]));
    let (sends, mut receivers) = metadata(json!([node, collector]));
    receivers.sort();
    assert_eq!((sends, receivers), (true, vec![of_collector.clone(), ("n2".to_owned(), false)]), "n2 drops it");
    // A sender sends each frame to all of its destinations, and nothing drops it at an external one.
    assert_eq!(metadata(json!([external(false), collector])), (false, vec![of_collector.clone()]));
    assert_eq!(metadata(json!([external(true), collector])), (true, vec![of_collector]));
    assert_eq!(metadata(json!([external(true)])), (true, vec![]));
}
