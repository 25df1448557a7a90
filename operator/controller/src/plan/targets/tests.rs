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
