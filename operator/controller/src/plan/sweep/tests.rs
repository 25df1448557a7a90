use std::sync::Arc;

use podtap_model::NodeState;

use super::*;
use crate::fixtures::{World, at, carry_out, lost, node, node_tap};

fn names(count: usize) -> BTreeSet<String> {
    (0..count).map(|number| format!("n{number:02}")).collect()
}

fn world(count: usize) -> World {
    World { nodes: names(count).iter().map(|name| node(name, &["10.0.0.1"])).collect(), ..World::default() }
}

#[test]
fn a_few_nodes_at_a_time_and_all_in_the_end() {
    let (world, mut unswept, mut begun) = (world(20), names(20), BTreeMap::new());
    let mut rounds = 0;
    while !unswept.is_empty() {
        let sweep = choose(&unswept, &world.snapshot(), &mut begun);
        assert!((1..=CONCURRENCY).contains(&sweep.nodes.len()), "{sweep:?}");
        assert_eq!(sweep.next, Some(at(120)));
        unswept.retain(|node| !sweep.nodes.contains(node));
        rounds += 1;
    }
    assert_eq!(rounds, 3);
    assert_eq!(choose(&unswept, &world.snapshot(), &mut begun), Sweep::default());
    assert!(begun.is_empty());
}

#[test]
fn a_node_that_is_slow_keeps_its_place_and_holds_up_no_other_for_ever() {
    let (mut world, unswept, mut begun) = (world(10), names(10), BTreeMap::new());
    // Those that come first by name are not ready yet.
    for node in &mut world.nodes[..2] {
        *node = lost(node.clone());
    }
    let first = choose(&unswept, &world.snapshot(), &mut begun).nodes;
    assert_eq!(first, names(10).into_iter().skip(2).collect());
    let mut later = World { seconds: 60, ..self::world(10) };
    assert_eq!(choose(&unswept, &later.snapshot(), &mut begun).nodes, first);
    later.seconds = 120;
    let second = choose(&unswept, &later.snapshot(), &mut begun);
    assert_eq!((second.nodes, second.next), (names(2), Some(at(240))));
    later.seconds = 300;
    assert_eq!(choose(&unswept, &later.snapshot(), &mut begun), Sweep::default(), "until there is another leader");
}

#[test]
fn a_cordoned_node_is_left_alone_until_it_is_uncordoned() {
    let (mut world, unswept, mut begun) = (world(1), names(1), BTreeMap::new());
    assert_eq!(choose(&unswept, &world.snapshot(), &mut begun).nodes, unswept);
    let cordon =
        |world: &mut World, cordoned| world.nodes[0].spec.get_or_insert_default().unschedulable = Some(cordoned);
    cordon(&mut world, true);
    assert_eq!(choose(&unswept, &world.snapshot(), &mut begun), Sweep::default(), "it is drained");
    cordon(&mut world, false);
    world.seconds = 3600;
    assert_eq!(choose(&unswept, &world.snapshot(), &mut begun).nodes, unswept);
}

#[test]
fn not_on_nodes_that_cannot_run_a_helper_pod_or_have_opted_out() {
    let mut world = world(3);
    let label = |key: &str, value: &str| Some([(key.to_owned(), value.to_owned())].into());
    world.nodes[0].metadata.labels = label("kubernetes.io/os", "windows");
    world.nodes[1].metadata.labels = label("kubernetes.io/os", "linux");
    world.nodes[2].metadata.labels = label(podtap_api::EXCLUDE, "true");
    let chosen = choose(&names(4), &world.snapshot(), &mut BTreeMap::new()).nodes;
    assert_eq!(chosen, ["n01".to_owned()].into());
}

#[test]
fn a_node_is_swept_when_its_tap_helper_has_reported_and_removed_everything() {
    let world = world(6);
    let snapshot = world.snapshot();
    let untouched = node_tap("n00", NodeState::default());
    let swept = carry_out(node_tap("n01", NodeState::default()));
    let mut removing = carry_out(node_tap("n02", NodeState::default()));
    removing.status.get_or_insert_default().receivers = vec![podtap_model::ReceiverStatus {
        tap_uid: "old".into(),
        vni: 100,
        state: State::Removing,
        reason: podtap_model::Reason::Removing,
        message: String::new(),
        pods_with_probes: Vec::new(),
        pods_without_full_size_probes: Vec::new(),
    }];
    let mut unsearched = carry_out(node_tap("n03", NodeState::default()));
    unsearched.status.get_or_insert_default().unsearched = vec!["Network namespace 1: too many objects.".into()];
    let mut leftovers = carry_out(node_tap("n04", NodeState::default()));
    leftovers.status.get_or_insert_default().leftovers = vec!["Network namespace 1: the kernel refused.".into()];
    let node_taps = World { node_taps: vec![untouched, swept, removing, unsearched, leftovers], ..World::default() }
        .snapshot()
        .node_taps;
    // The seventh node has left the cluster.
    let remaining = remaining::<Arc<CachedNodeTap>>(&names(7), &snapshot, &node_taps);
    assert_eq!(remaining, ["n00", "n02", "n03", "n04", "n05"].map(str::to_owned).into());
}
