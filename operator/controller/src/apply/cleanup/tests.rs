use podtap_api::{NodeTap, NodeTapSender, NodeTapSpec, TapReference};

use super::*;
use crate::{failure::Failure, fixtures::{at, carry_out, lost, tap, time, World}, store::snapshot};

const HELD: i64 = 1;

/// n1 has tap-t in its spec or status, as given; the deletion was at second 0.
fn world(in_spec: bool, in_status: bool, observed: i64) -> World {
    let tap_t = TapReference { uid: "tap-t".into(), ..TapReference::default() };
    let spec = NodeTapSpec {
        senders: vec![NodeTapSender { tap: tap_t, ..NodeTapSender::default() }],
        ..NodeTapSpec::default()
    };
    let mut node_tap = NodeTap::new("n1", if in_status { spec.clone() } else { NodeTapSpec::default() });
    node_tap.metadata.uid = Some("u".into());
    node_tap.metadata.resource_version = Some("1".into());
    node_tap.metadata.generation = Some(observed);
    let mut node_tap = carry_out(node_tap);
    node_tap.metadata.generation = Some(2);
    node_tap.spec = if in_spec { spec } else { NodeTapSpec::default() };
    let mut tap = tap("t", serde_json::json!([{"node": {"name": "n2"}}]));
    tap.metadata.deletion_timestamp = time(0);
    World { node_taps: vec![node_tap], taps: vec![tap], ..World::small() }
}

fn decide(world: &World, failure: bool) -> Verdict {
    let caches = world.caches();
    let snapshot = take_snapshot::take_snapshot(&caches, at(world.seconds));
    let helper_failures = failure.then(|| ("n1".to_owned(), Failure::new("HelperFailed", ""))).into_iter().collect();
    let applied = Applied { node_taps: snapshot.node_taps.clone(), helper_failures, errors: Vec::new() };
    let mut generations = Generations::default();
    generations.look(&snapshot.node_taps);
    verdict(&snapshot.taps[0].fact, &snapshot, &applied, &generations)
}

#[test]
fn released_when_every_node_has_reported() {
    assert_eq!(decide(&world(false, false, 2), false), Verdict::Release);
}

#[test]
fn waits_for_spec_status_and_the_newest_generation() {
    let wait = Verdict::Wait(at(30));
    assert_eq!(decide(&world(true, true, HELD), false), wait);
    assert_eq!(decide(&world(false, true, 2), false), wait, "still being removed");
    assert_eq!(decide(&world(false, false, 1), false), wait, "the node does not know yet");
}

#[test]
fn a_node_has_thirty_seconds() {
    let mut slow = world(false, true, 2);
    slow.seconds = 29;
    assert_eq!(decide(&slow, false), Verdict::Wait(at(30)));
    slow.seconds = 30;
    assert_eq!(decide(&slow, false), Verdict::Abandon(vec!["n1".into()]));
    let note = abandoned(&["n1".into()]).note;
    assert!(note.contains("n1") && note.contains("30 s"), "{note}");
}

#[test]
fn a_node_that_is_away_or_gone_blocks_nothing() {
    let mut away = world(false, true, 2);
    away.nodes[0] = lost(away.nodes[0].clone());
    assert_eq!(decide(&away, false), Verdict::Release);
    away.nodes.remove(0);
    assert_eq!(decide(&away, false), Verdict::Release);
}

#[test]
fn a_helper_that_never_ran_has_nothing_to_clean() {
    let mut never = world(false, false, 2);
    never.node_taps[0].status = None;
    assert_eq!(decide(&never, false), Verdict::Wait(at(30)), "it may be starting");
    assert_eq!(decide(&never, true), Verdict::Release);
    // One that ran and fails now may have left something.
    assert_eq!(decide(&world(false, true, 2), true), Verdict::Wait(at(30)));
}
