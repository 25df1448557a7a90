use podtap_api::NodeTap;
use podtap_model::{NodeStatus, Sender};

use super::*;
use crate::fixtures::{OWN_NAMESPACE, World, at, carry_out, lost, node_tap, pod, uid};

fn work() -> NodeState {
    let pod = crate::store::pod::CachedPod::new(pod("shop", "web", "n1"), "podtap-system");
    let pod = podtap_model::Pod {
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        config_hash: None,
        addresses: Vec::new(),
    };
    NodeState { senders: vec![Sender { tap: uid("t"), pod, details: None }], ..NodeState::default() }
}

fn world(node_tap: NodeTap) -> World {
    World { node_taps: vec![node_tap], ..World::small() }
}

fn plan_of(world: &World, work: Option<NodeState>, idle_since: &BTreeMap<String, Timestamp>) -> NodePlans {
    let snapshot = world.snapshot();
    let is_uninstalling = is_uninstalling(&snapshot, OWN_NAMESPACE);
    plan(&snapshot, work.map(|work| ("n1".to_owned(), work)).into_iter().collect(), idle_since, is_uninstalling)
}

fn plan_of_n1(world: &World) -> NodePlan {
    plan_of(world, None, &BTreeMap::new()).nodes.remove("n1").expect("there is a plan for the node")
}

#[test]
fn a_node_with_work_is_served_and_one_without_is_ignored() {
    let plans = plan_of(&World::small(), Some(work()), &BTreeMap::new());
    assert_eq!(plans.nodes, [("n1".to_owned(), NodePlan::Serve(work()))].into());
    assert_eq!(plans.next, None);
}

#[test]
fn a_clean_node_keeps_its_helper_for_a_minute() {
    let mut world = world(carry_out(node_tap("n1", NodeState::default())));
    let first = plan_of(&world, None, &BTreeMap::new());
    assert_eq!(first.nodes["n1"], NodePlan::Serve(NodeState::default()));
    assert_eq!((first.next, first.idle_since["n1"]), (Some(at(60)), at(0)));

    world.seconds = 59;
    let later = plan_of(&world, None, &first.idle_since);
    assert_eq!((later.next, &later.nodes["n1"]), (Some(at(60)), &NodePlan::Serve(NodeState::default())));

    let busy = plan_of(&world, Some(work()), &first.idle_since);
    assert!(busy.idle_since.is_empty(), "the minute starts over");

    world.seconds = 60;
    let over = plan_of(&world, None, &first.idle_since);
    assert_eq!((over.next, &over.nodes["n1"]), (None, &NodePlan::Retire));
}

#[test]
fn a_cordoned_node_keeps_its_helper_only_while_there_is_work() {
    let cordoned = |node_tap: NodeTap| {
        let mut world = world(node_tap);
        world.nodes[0].spec.get_or_insert_default().unschedulable = Some(true);
        world
    };
    let clean = cordoned(carry_out(node_tap("n1", NodeState::default())));
    assert_eq!(plan_of_n1(&clean), NodePlan::Retire, "at once");
    assert_eq!(plan_of(&clean, Some(work()), &BTreeMap::new()).nodes["n1"], NodePlan::Serve(work()));
    let leftover = cordoned(carry_out(node_tap("n1", work())));
    assert_eq!(plan_of_n1(&leftover), NodePlan::Serve(NodeState::default()), "it cleans up");
}

#[test]
fn a_node_that_still_has_something_is_waited_for() {
    let serve = NodePlan::Serve(NodeState::default());
    // Its spec has not been changed yet.
    assert_eq!(plan_of_n1(&world(carry_out(node_tap("n1", work())))), serve);
    // The status is about an older generation.
    let mut changed = carry_out(node_tap("n1", NodeState::default()));
    changed.metadata.generation = Some(2);
    let plans = plan_of(&world(changed), None, &BTreeMap::new());
    assert_eq!((&plans.nodes["n1"], plans.next), (&serve, None));
    // Observed, and not all is removed.
    let mut removing = carry_out(node_tap("n1", work()));
    removing.spec.0 = NodeState::default();
    assert!(plan_of(&world(removing), None, &BTreeMap::new()).idle_since.is_empty());
}

#[test]
fn a_node_that_never_had_a_helper_has_nothing_to_clean() {
    let mut untouched = node_tap("n1", NodeState::default());
    assert!(!plan_of(&world(untouched.clone()), None, &BTreeMap::new()).idle_since.is_empty());
    untouched.status = Some(NodeStatus::default());
    assert!(!plan_of(&world(untouched), None, &BTreeMap::new()).idle_since.is_empty());
}

/// Its job waits until there is no `NodeTap`.
#[test]
fn while_podtap_is_uninstalled_a_clean_node_keeps_nothing() {
    let uninstalling = |node_tap: NodeTap| {
        let mut job = pod(OWN_NAMESPACE, "podtap-uninstall-x", "n1");
        let labels = [(LABEL_NAME, names::PRODUCT), (LABEL_COMPONENT, names::UNINSTALL)];
        job.metadata.labels = Some(labels.map(|(key, value)| (key.into(), value.into())).into());
        let mut world = world(node_tap);
        world.pods.push(job);
        world
    };
    let clean = uninstalling(carry_out(node_tap("n1", NodeState::default())));
    assert_eq!(plan_of_n1(&clean), NodePlan::Retire, "at once");
    let never_served = uninstalling(node_tap("n1", NodeState::default()));
    assert_eq!(plan_of_n1(&never_served), NodePlan::Retire, "its image cannot be pulled, for example");
    let mut removing = carry_out(node_tap("n1", work()));
    removing.spec.0 = NodeState::default();
    assert_eq!(plan_of_n1(&uninstalling(removing)), NodePlan::Serve(NodeState::default()), "it cleans up");
    let mut unreachable = clean.clone();
    unreachable.nodes[0] = lost(unreachable.nodes[0].clone());
    assert_eq!(plan_of_n1(&unreachable), NodePlan::Forget, "no kubelet ends its helper pod");
    let mut failed = clean;
    failed.pods.last_mut().and_then(|job| job.status.as_mut()).expect("a status").phase = Some("Failed".into());
    assert_eq!(plan_of_n1(&failed), NodePlan::Serve(NodeState::default()));
}

#[test]
fn a_helper_pod_that_is_ready_has_yet_to_report() {
    let mut served = world(node_tap("n1", NodeState::default()));
    let mut helper = pod(OWN_NAMESPACE, "helper", "n1");
    let labels = [(LABEL_NAME, names::PRODUCT), (LABEL_COMPONENT, names::HELPER)];
    helper.metadata.labels = Some(labels.map(|(key, value)| (key.into(), value.into())).into());
    served.pods.push(helper);
    assert!(plan_of(&served, None, &BTreeMap::new()).idle_since.is_empty());
    let status = served.pods.last_mut().and_then(|pod| pod.status.as_mut()).expect("a status");
    status.conditions = None;
    assert!(!plan_of(&served, None, &BTreeMap::new()).idle_since.is_empty(), "it may never run");
}

#[test]
fn what_cannot_be_removed_is_waited_for() {
    let mut left = carry_out(node_tap("n1", NodeState::default()));
    left.status.get_or_insert_default().leftovers = vec!["Network namespace 1: the kernel refused.".into()];
    assert!(plan_of(&world(left), None, &BTreeMap::new()).idle_since.is_empty());
}

#[test]
fn a_node_that_left_the_cluster_is_forgotten_whatever_it_had() {
    let mut world = world(carry_out(node_tap("n1", work())));
    world.nodes.retain(|node| node.metadata.name.as_deref() != Some("n1"));
    assert_eq!(plan_of_n1(&world), NodePlan::Forget);
}
