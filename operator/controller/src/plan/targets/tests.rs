use podtap_api::PodTap;
use serde_json::json;

use super::*;
use crate::{
    fixtures::{OWN_NAMESPACE, World, at, cluster_tap, namespace, object, pod, policy, tap, time},
    validate::tap::validate,
};

fn web() -> PodTap {
    tap("t", json!([{"node": {"name": "n2"}}]))
}

fn named(names: &[&str]) -> PodTap {
    let mut tap = web();
    tap.spec.targets = object(json!({"podNames": names}));
    tap
}

fn of(world: &World) -> Targets {
    let snapshot = world.snapshot();
    let validated = validate(&snapshot);
    let tap = &validated.taps[0];
    let pods = PodIndex::new(&snapshot, &validated.taps);
    resolve(&snapshot, &pods, &validated.policy, tap, tap.spec.as_ref().expect("valid"), &BTreeSet::new())
}

fn names(targets: &Targets) -> Vec<&str> {
    targets.tapped().map(|pod| pod.name.as_str()).collect()
}

#[track_caller]
fn assert_failure(failure: Option<&Failure>, reason: Reason, words: &str) {
    let failure = failure.expect("a failure");
    assert_eq!(failure.reason, reason);
    assert!(failure.message.contains(words), "expected “{words}” in “{}”", failure.message);
}

#[test]
fn by_labels_in_the_own_namespace_only() {
    let mut world = World::with(web());
    world.pods.extend([pod("bank", "other", "n1"), pod("shop", "ids", "n1")]);
    world.pods[2].metadata.labels = None;
    let targets = of(&world);
    assert_eq!((names(&targets), targets.matched, targets.failure.clone()), (vec!["web"], 1, None));
}

#[test]
fn no_pod_matches() {
    let mut world = World::with(web());
    world.pods.clear();
    assert_failure(of(&world).failure.as_ref(), Reason::NoPodsMatch, "--show-labels");
    world.pods = vec![pod("shop", "web", "")];
    assert_failure(of(&world).failure.as_ref(), Reason::NoPodsMatch, "none is scheduled yet");
    world.taps = vec![named(&["api"])];
    assert_failure(of(&world).failure.as_ref(), Reason::NoPodsMatch, "has no pod api");
}

#[test]
fn one_of_the_named_is_missing() {
    let targets = of(&World::with(named(&["web", "api"])));
    assert_eq!(names(&targets), ["web"], "the other one is tapped nevertheless");
    assert_failure(targets.failure.as_ref(), Reason::PodNotFound, "api");
}

#[test]
fn too_many() {
    let mut world = World::with(web());
    world.taps[0].spec.targets.max_pods = 2;
    world.pods.extend([pod("shop", "a", "n1"), pod("shop", "b", "n2")]);
    world.pods[0].metadata.creation_timestamp = time(-1);
    world.pods[1].metadata.creation_timestamp = time(5);
    let targets = of(&world);
    assert_eq!((names(&targets), targets.matched), (vec!["web", "b"], 3), "the oldest ones");
    assert_failure(targets.failure.as_ref(), Reason::TooManyPods, "raise targets.maxPods");
    world.policy = Some(policy(json!({"limits": {"targetsPerTap": 1}})));
    assert_failure(of(&world).failure.as_ref(), Reason::TooManyPods, "limits.targetsPerTap");
}

#[test]
fn a_pod_that_cannot_be_tapped_does_not_count() {
    let mut world = World::with(web());
    world.taps[0].spec.targets.max_pods = 1;
    let mut on_host = pod("shop", "a-host", "n1");
    on_host.spec.as_mut().expect("a spec").host_network = Some(true);
    world.pods.push(on_host);
    let targets = of(&world);
    assert_eq!((names(&targets), targets.failure.clone()), (vec!["web"], None));
    assert_eq!((targets.matched, targets.skipped), (1, vec![skipped(Reason::HostNetwork, &["a-host"])]));
    world.taps[0] = named(&["web", "a-host"]);
    let targets = of(&world);
    assert_eq!((names(&targets), targets.matched, targets.skipped.clone()), (vec!["web"], 2, vec![]));
    assert_failure(targets.pods[0].failure.as_ref(), Reason::HostNetwork, "remove it from targets.podNames");
}

fn skipped(reason: Reason, pods: &[&str]) -> SkippedPods {
    let count = i32::try_from(pods.len()).expect("a few");
    SkippedPods { reason, count, pods: pods.iter().map(|pod| (*pod).to_owned()).collect() }
}

#[test]
fn what_a_selector_skips_is_counted() {
    let mut world = World::with(tap("t", json!([{"pod": {"name": "ids"}}])));
    world.taps[0].spec.targets = object(json!({"podSelector": {}}));
    world.pods.extend([pod("shop", "ids", "n2"), pod("shop", "lost", "n9"), pod("shop", "static", "n1")]);
    for index in 0..6 {
        let mut finished = pod("shop", &format!("job-{index}"), "n1");
        finished.status.as_mut().expect("a status").phase = Some("Succeeded".into());
        world.pods.push(finished);
    }
    let consumers = ["shop-ids"].into();
    let snapshot = world.snapshot();
    let validated = validate(&snapshot);
    let tap = &validated.taps[0];
    let pods = PodIndex::new(&snapshot, &validated.taps);
    let targets = resolve(&snapshot, &pods, &validated.policy, tap, tap.spec.as_ref().expect("valid"), &consumers);
    assert_eq!((names(&targets), targets.failure.clone()), (vec!["static", "web"], None));
    let mut finished = skipped(Reason::PodFinished, &["job-0", "job-1", "job-2", "job-3"]);
    finished.count = 6;
    let expected = [skipped(Reason::DestinationIsTarget, &["ids"]), skipped(Reason::NodeNotFound, &["lost"]), finished];
    let mut actual = targets.skipped.clone();
    actual.sort_by_key(|skipped| skipped.reason.as_str());
    assert_eq!(actual, expected);
    assert_eq!(targets.skipped_pods(), 8);
}

#[test]
fn every_pod_is_skipped() {
    let mut world = World::with(web());
    world.pods[0].spec.as_mut().expect("a spec").host_network = Some(true);
    let mut excluded = pod("shop", "secret", "n1");
    excluded.metadata.annotations = Some([(podtap_api::EXCLUDE.to_owned(), "true".to_owned())].into());
    world.pods.push(excluded);
    let targets = of(&world);
    assert_eq!((targets.matched, targets.excluded), (0, 1));
    let words = "uses the network of its node (1), opted out with podtap.dev/exclude (1)";
    assert_failure(targets.failure.as_ref(), Reason::AllPodsSkipped, words);
    assert!(!targets.failure.expect("a failure").message.contains("secret"), "who opted out is not told");
    // One that is about to be tapped is more interesting.
    world.pods.push(pod("shop", "next", ""));
    assert_failure(of(&world).failure.as_ref(), Reason::NoPodsMatch, "none is scheduled yet");
}

#[test]
fn a_terminating_pod_is_tapped_and_a_finished_one_is_not() {
    let mut world = World::with(web());
    world.pods[0].metadata.deletion_timestamp = time(0);
    assert_eq!(names(&of(&world)), ["web"]);
    world.pods[0].status.as_mut().expect("a status").phase = Some("Failed".into());
    assert_eq!(of(&world).matched, 0);
}

#[test]
fn what_opted_out() {
    let excluded = || Some([(podtap_api::EXCLUDE.to_owned(), "true".to_owned())].into());
    let mut pod_world = World::with(web());
    pod_world.pods[0].metadata.annotations = excluded();
    assert_eq!((of(&pod_world).matched, of(&pod_world).excluded), (0, 1));
    pod_world.taps[0] = named(&["web"]);
    assert_failure(of(&pod_world).pods[0].failure.as_ref(), Reason::Excluded, "the pod has opted out");

    let mut node_world = World::with(web());
    node_world.nodes[0].metadata.labels = excluded();
    assert_eq!((of(&node_world).matched, of(&node_world).excluded), (0, 1));
    node_world.taps[0] = named(&["web"]);
    assert_failure(of(&node_world).pods[0].failure.as_ref(), Reason::Excluded, "n1");

    let mut namespace_world = World::with(web());
    namespace_world.namespaces =
        vec![object(json!({"metadata": {"name": "shop", "labels": {podtap_api::EXCLUDE: "true"}}}))];
    assert_failure(
        of(&namespace_world).failure.as_ref(),
        Reason::NamespaceExcluded,
        "opted out with podtap.dev/exclude",
    );

    let mut policy_world = World::with(web());
    policy_world.policy = Some(policy(json!({"excludedNamespaces": ["shop"]})));
    assert_failure(of(&policy_world).failure.as_ref(), Reason::NamespaceExcluded, "excludedNamespaces");
}

#[test]
fn a_pod_on_a_node_that_does_not_exist() {
    let mut world = World::with(web());
    world.nodes.remove(0);
    assert_eq!(of(&world).skipped, [skipped(Reason::NodeNotFound, &["web"])], "it is about to be deleted");
    world.taps[0] = named(&["web"]);
    assert_failure(of(&world).pods[0].failure.as_ref(), Reason::NodeNotFound, "n1");
    assert_eq!(at(0), world.snapshot().now);
}

/// What the only tap of a cluster of four namespaces selects: one has opted out, and one is that of PodTap.
fn of_cluster(change: impl FnOnce(&mut World)) -> Targets {
    let mut tap = cluster_tap("all", json!([{"node": {"name": "n2"}}]));
    tap.metadata.creation_timestamp = time(0);
    let mut world = World { cluster_taps: vec![tap], ..World::small() };
    world.namespaces = ["bank", "private", "shop", OWN_NAMESPACE].map(namespace).into();
    let private = world.namespaces[1].metadata.labels.get_or_insert_default();
    private.insert(EXCLUDE.into(), "true".into());
    world.pods =
        [("shop", "web", "n1"), ("bank", "web", "n2"), ("private", "web", "n1"), (OWN_NAMESPACE, "collector", "n1")]
            .map(|(namespace, name, node)| pod(namespace, name, node))
            .into();
    for (number, pod) in world.pods.iter_mut().enumerate() {
        pod.metadata.uid = Some(format!("pod-{number}"));
    }
    change(&mut world);
    of(&world)
}

/// As namespace/name.
fn full_names(targets: &Targets) -> Vec<String> {
    targets.tapped().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect()
}

#[test]
fn a_tap_of_the_cluster_selects_all_but_what_opted_out_and_podtap() {
    let all = of_cluster(|_| {});
    assert_eq!(full_names(&all), ["bank/web", "shop/web"]);
    assert_eq!((all.matched, all.excluded, all.failure.clone()), (2, 1, None));

    let by_policy = of_cluster(|world| world.policy = Some(policy(json!({"excludedNamespaces": ["bank"]}))));
    assert_eq!((full_names(&by_policy), by_policy.excluded), (vec!["shop/web".to_owned()], 2));

    let unknown = of_cluster(|world| drop(world.namespaces.remove(0)));
    assert_eq!(full_names(&unknown), ["shop/web"], "the labels of bank are not known yet");
}

#[test]
fn a_tap_of_the_cluster_selects_by_the_labels_of_namespaces_pods_and_nodes() {
    let selecting = |targets: serde_json::Value| {
        of_cluster(|world| {
            world.nodes[1].metadata.labels = Some([("zone".to_owned(), "b".to_owned())].into());
            world.pods.push(pod("bank", "unscheduled", ""));
            world.cluster_taps[0].spec.targets = object(targets);
        })
    };
    let shop = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}});
    assert_eq!(full_names(&selecting(shop)), ["shop/web"]);
    let own = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OWN_NAMESPACE}}});
    assert_failure(selecting(own).failure.as_ref(), Reason::NoPodsMatch, "kubectl get namespaces,nodes --show-labels");
    let zone = json!({"namespaceSelector": {}, "nodeSelector": {"matchLabels": {"zone": "b"}}});
    let on_zone = selecting(zone);
    assert_eq!((full_names(&on_zone), on_zone.matched), (vec!["bank/web".to_owned()], 1));
    let others = json!({"namespaceSelector": {}, "nodeSelector": {"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}});
    assert_eq!(full_names(&selecting(others)), ["shop/web"]);
    let none = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "none"}}});
    assert_failure(selecting(none).failure.as_ref(), Reason::NoPodsMatch, "(app=none)");
    let misplaced = json!({"namespaceSelector": {}, "nodeSelector": {"zone": "b"}});
    let mut world =
        World { cluster_taps: vec![cluster_tap("all", json!([{"node": {"name": "n2"}}]))], ..World::small() };
    world.cluster_taps[0].spec.targets = object(misplaced);
    let failure = validate(&world.snapshot()).taps[0].spec.clone().expect_err("it would select every node");
    assert!(failure.message.contains("targets.nodeSelector has the unknown field zone"), "{}", failure.message);
}

#[test]
fn a_tap_of_the_cluster_has_a_limit_of_its_own() {
    let limited = |limits: serde_json::Value, most: u32| {
        of_cluster(|world| {
            world.policy = Some(policy(json!({"limits": limits})));
            world.cluster_taps[0].spec.targets.max_pods = most;
        })
    };
    assert_eq!(full_names(&limited(json!({"targetsPerTap": 1}), 1000)).len(), 2);
    let by_policy = limited(json!({"targetsPerClusterTap": 1}), 1000);
    assert_eq!(full_names(&by_policy), ["bank/web"]);
    assert_failure(by_policy.failure.as_ref(), Reason::TooManyPods, "limits.targetsPerClusterTap");
    assert_failure(limited(json!({}), 1).failure.as_ref(), Reason::TooManyPods, "raise targets.maxPods");
}

#[test]
fn skipped_pods_of_a_tap_of_the_cluster_have_their_namespace() {
    let targets = of_cluster(|world| world.pods[0].spec.get_or_insert_default().host_network = Some(true));
    assert_eq!(targets.skipped[0].pods, ["shop/web"]);
}
