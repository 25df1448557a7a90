use podtap_api::{NodeTap, NodeTapSender, NodeTapStatus};

use super::*;
use crate::{fixtures::{at, carry_out, World}};

fn node_tap(spec: NodeTapSpec) -> NodeTap {
    let mut node_tap = NodeTap::new("n1", spec);
    node_tap.metadata.generation = Some(1);
    node_tap.metadata.resource_version = Some("1".into());
    node_tap
}

fn work() -> NodeTapSpec {
    NodeTapSpec { senders: vec![NodeTapSender::default()], ..NodeTapSpec::default() }
}

fn world(node_tap: NodeTap) -> World {
    World { node_taps: vec![node_tap], ..World::small() }
}

fn plan_of(world: &World, work: Option<NodeTapSpec>, idle_since: &BTreeMap<String, Timestamp>) -> NodePlans {
    plan(&world.snapshot(), work.map(|work| ("n1".to_owned(), work)).into_iter().collect(), idle_since)
}

fn fate(world: &World) -> NodePlan {
    plan_of(world, None, &BTreeMap::new()).nodes.remove("n1").expect("the node is decided about")
}

#[test]
fn a_node_with_work_is_served_and_one_without_is_not_looked_at() {
    let plans = plan_of(&World::small(), Some(work()), &BTreeMap::new());
    assert_eq!(plans.nodes, [("n1".to_owned(), NodePlan::Serve(work()))].into());
    assert_eq!(plans.next, None);
}

#[test]
fn a_clean_node_keeps_its_helper_for_a_minute() {
    let mut world = world(carry_out(node_tap(NodeTapSpec::default())));
    let first = plan_of(&world, None, &BTreeMap::new());
    assert_eq!(first.nodes["n1"], NodePlan::Serve(NodeTapSpec::default()));
    assert_eq!((first.next, first.idle_since["n1"]), (Some(at(60)), at(0)));

    world.seconds = 59;
    let later = plan_of(&world, None, &first.idle_since);
    assert_eq!((later.next, &later.nodes["n1"]), (Some(at(60)), &NodePlan::Serve(NodeTapSpec::default())));

    let busy = plan_of(&world, Some(work()), &first.idle_since);
    assert!(busy.idle_since.is_empty(), "the minute starts over");

    world.seconds = 60;
    let over = plan_of(&world, None, &first.idle_since);
    assert_eq!((over.next, &over.nodes["n1"]), (None, &NodePlan::Retire));
}

#[test]
fn a_node_that_still_holds_something_is_waited_for() {
    let serve = NodePlan::Serve(NodeTapSpec::default());
    // Not told yet.
    assert_eq!(fate(&world(carry_out(node_tap(work())))), serve);
    // Told, and not reported: the status is about an older generation.
    let mut told = carry_out(node_tap(NodeTapSpec::default()));
    told.metadata.generation = Some(2);
    let plans = plan_of(&world(told), None, &BTreeMap::new());
    assert_eq!((&plans.nodes["n1"], plans.next), (&serve, None));
    // Told and seen, and not all gone.
    let mut removing = carry_out(node_tap(work()));
    removing.spec = NodeTapSpec::default();
    assert!(plan_of(&world(removing), None, &BTreeMap::new()).idle_since.is_empty());
}

#[test]
fn a_node_that_never_had_a_helper_has_nothing_to_clean() {
    let mut untouched = node_tap(NodeTapSpec::default());
    assert!(!plan_of(&world(untouched.clone()), None, &BTreeMap::new()).idle_since.is_empty());
    untouched.status = Some(NodeTapStatus::default());
    assert!(!plan_of(&world(untouched), None, &BTreeMap::new()).idle_since.is_empty());
}

#[test]
fn a_node_that_left_the_cluster_is_forgotten_whatever_it_held() {
    let mut world = world(carry_out(node_tap(work())));
    world.nodes.retain(|node| node.metadata.name.as_deref() != Some("n1"));
    assert_eq!(fate(&world), NodePlan::Forget);
}
