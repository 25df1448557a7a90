use podtap_model::{NodeState, Sender};

use super::*;
use crate::{
    expression::compiled::Expressions,
    failure::Failure,
    fixtures::{World, at, carry_out, lost, node_tap, pod, tap, time, uid},
    store::pod::CachedPod,
};

const OBSERVED: i64 = 1;

/// n1 has tap-t in its spec or status, as given; the deletion was at second 0.
fn world(in_spec: bool, in_status: bool, observed: i64) -> World {
    let pod = CachedPod::new(pod("shop", "web", "n1"), "podtap-system");
    let pod = podtap_model::Pod {
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        config_hash: None,
        addresses: Vec::new(),
    };
    let sender = Sender { tap: uid("tap-t"), pod, details: None };
    let spec = |has_sender: bool| NodeState {
        senders: has_sender.then(|| sender.clone()).into_iter().collect(),
        ..NodeState::default()
    };
    let mut node_tap = node_tap("n1", spec(in_status));
    node_tap.metadata.uid = Some("u".into());
    node_tap.metadata.generation = Some(observed);
    let mut node_tap = carry_out(node_tap);
    node_tap.metadata.generation = Some(2);
    node_tap.spec.0 = spec(in_spec);
    let mut tap = tap("t", serde_json::json!([{"node": {"name": "n2"}}]));
    tap.metadata.deletion_timestamp = time(0);
    World { node_taps: vec![node_tap], taps: vec![tap], ..World::small() }
}

fn decision(world: &World, has_helper_failure: bool) -> Decision {
    decision_after(Duration::ZERO, world, has_helper_failure)
}

fn decision_after(waited: Duration, world: &World, has_helper_failure: bool) -> Decision {
    let snapshot = Snapshot::take(&world.caches(), &Expressions::new(), at(world.seconds));
    let failure = ("n1".to_owned(), Failure::new(Reason::HelperPodFailed, ""));
    let helper_failures = has_helper_failure.then_some(failure).into_iter().collect();
    let applied = Applied { node_taps: snapshot.node_taps.clone(), helper_failures, ..Applied::default() };
    let mut generations = Generations::default();
    generations.observe(&snapshot.node_taps);
    let mentions = mentions(&applied.node_taps);
    decide(&snapshot.taps[0].object, waited, &snapshot, &applied, &mentions, &generations)
}

#[test]
fn removed_when_every_node_has_reported() {
    assert_eq!(decision(&world(false, false, 2), false), Decision::Remove);
}

#[test]
fn waits_for_spec_status_and_the_newest_generation() {
    let wait = Decision::Wait(DEADLINE);
    assert_eq!(decision(&world(true, true, OBSERVED), false), wait);
    assert_eq!(decision(&world(false, true, 2), false), wait, "still being removed");
    assert_eq!(decision(&world(false, false, 1), false), wait, "the node has not observed it yet");
}

#[test]
fn a_node_has_thirty_seconds() {
    let slow = world(false, true, 2);
    let after = |seconds| decision_after(Duration::from_secs(seconds), &slow, false);
    assert_eq!(after(29), Decision::Wait(Duration::from_secs(1)));
    assert_eq!(after(30), Decision::Abandon(vec!["n1".into()]));
    let note = abandoned(&["n1".into()]).note;
    assert!(note.contains("n1") && note.contains("30 s"), "{note}");
}

/// Of the controller, or of the API server that wrote the time of the deletion.
#[test]
fn a_clock_that_is_off_has_no_effect() {
    for off in [-3600, 3600] {
        let slow = World { seconds: off, ..world(false, true, 2) };
        assert_eq!(decision(&slow, false), Decision::Wait(DEADLINE), "{off} s");
    }
}

#[test]
fn a_node_that_is_not_ready_or_gone_blocks_nothing() {
    let mut not_ready = world(false, true, 2);
    not_ready.nodes[0] = lost(not_ready.nodes[0].clone());
    assert_eq!(decision(&not_ready, false), Decision::Remove);
    not_ready.nodes.remove(0);
    assert_eq!(decision(&not_ready, false), Decision::Remove);
}

#[test]
fn a_helper_that_never_ran_has_nothing_to_clean() {
    let mut never = world(false, false, 2);
    never.node_taps[0].status = None;
    assert_eq!(decision(&never, false), Decision::Wait(DEADLINE), "it may be starting");
    assert_eq!(decision(&never, true), Decision::Remove);
    // One that ran and fails now may have left something.
    assert_eq!(decision(&world(false, true, 2), true), Decision::Wait(DEADLINE));
}
