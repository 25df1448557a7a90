use podtap_api::PodTap;
use serde_json::json;

use super::*;
use crate::{
    fixtures::{World, at, object, pod, policy, tap, time},
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
    assert_failure(targets.pods[0].failure.as_ref(), Reason::TargetUnsupported, "hostNetwork");
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
    assert_failure(of(&pod_world).failure.as_ref(), Reason::NoPodsMatch, "");

    let mut node_world = World::with(web());
    node_world.nodes[0].metadata.labels = excluded();
    assert_failure(of(&node_world).pods[0].failure.as_ref(), Reason::Excluded, "n1");

    let mut namespace_world = World::with(web());
    namespace_world.namespaces =
        vec![object(json!({"metadata": {"name": "shop", "labels": {podtap_api::EXCLUDE: "true"}}}))];
    assert_failure(of(&namespace_world).failure.as_ref(), Reason::NamespaceExcluded, "podtap.dev/exclude=true");

    let mut policy_world = World::with(web());
    policy_world.policy = Some(policy(json!({"excludedNamespaces": ["shop"]})));
    assert_failure(of(&policy_world).failure.as_ref(), Reason::NamespaceExcluded, "excludedNamespaces");
}

#[test]
fn a_pod_on_a_node_that_does_not_exist() {
    let mut world = World::with(web());
    world.nodes.remove(0);
    assert_failure(of(&world).pods[0].failure.as_ref(), Reason::NodeNotFound, "n1");
    assert_eq!(at(0), world.snapshot().now);
}
