use super::*;
use crate::fixtures::{World, at, helper, lost, uid};

fn serve(nodes: &[&str]) -> BTreeMap<String, NodePlan> {
    nodes.iter().map(|node| ((*node).to_owned(), NodePlan::Serve(podtap_model::NodeState::default()))).collect()
}

fn of_n1(seconds: i64, pods: Vec<CachedPod>, previous: &BTreeMap<String, Unready>) -> BTreeMap<String, Unready> {
    let mut snapshot = World { seconds, ..World::small() }.snapshot();
    snapshot.helpers.insert("n1".to_owned(), pods.into_iter().map(Arc::new).collect());
    unready(&snapshot, &serve(&["n1"]), "new", previous)
}

#[test]
fn the_time_counts_from_when_a_pod_began_not_to_be_ready() {
    let none = BTreeMap::new();
    let pod = |name: &str| helper(name, "n1", "new", |pod| pod.ready = false);
    let first = of_n1(3, vec![pod("a")], &none);
    assert_eq!(first["n1"], Unready { pod: Some(uid("a")), since: at(3) });
    assert_eq!(of_n1(60, vec![pod("a")], &first), first);
    assert_eq!(of_n1(61, vec![pod("b")], &first)["n1"].since, at(61), "another pod has its own time");
    assert_eq!(of_n1(62, vec![], &first)["n1"], Unready { pod: None, since: at(62) });
    assert_eq!(of_n1(63, vec![helper("a", "n1", "new", |_| {})], &first), none);
    let ending = helper("a", "n1", "new", |pod| pod.terminating = true);
    assert_eq!(of_n1(64, vec![ending, pod("b")], &none)["n1"].pod, Some(uid("b")));
}

#[test]
fn of_nodes_that_are_lost_or_need_no_helper_nothing_is_expected() {
    let mut world = World::small();
    world.nodes[0] = lost(world.nodes[0].clone());
    let snapshot = world.snapshot();
    let found = unready(&snapshot, &serve(&["n1", "n2", "n3"]), "new", &BTreeMap::new());
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["n2"]);
    let retired = [("n2".to_owned(), NodePlan::Retire)].into();
    assert_eq!(unready(&snapshot, &retired, "new", &BTreeMap::new()), BTreeMap::new());
}
