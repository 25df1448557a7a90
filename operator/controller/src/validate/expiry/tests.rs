use podtap_api::PodTapStatus;
use podtap_model::NodeState;
use serde_json::json;

use super::*;
use crate::{
    fixtures::{World, at, carry_out, tap, time},
    plan::vni::Vnis,
};

/// A tap of a minute from n1 to n2.
fn limited() -> World {
    let mut tap = tap("t", json!([{"node": {"name": "n2"}}]));
    tap.spec.mirror.duration = Some(std::time::Duration::from_secs(60).into());
    World::with(tap)
}

/// The time in the `NodeTap` of the tapped pod's node, in seconds of the test.
fn planned(world: &World) -> Option<i64> {
    let time = world.plan(&Vnis::default(), |_, _, plan| plan.nodes["n1"].taps[0].expiration_time)?;
    i64::try_from(time.seconds()).ok().map(|seconds| seconds - at(0).as_second())
}

#[test]
fn a_tap_without_duration_has_no_end() {
    assert_eq!(planned(&World::with(tap("t", json!([{"node": {"name": "n2"}}])))), None);
}

#[test]
fn nodes_know_when_a_tap_that_has_started_ends() {
    let mut world = limited();
    world.taps[0].status = Some(PodTapStatus { start_time: time(3), ..PodTapStatus::default() });
    world.seconds = 50;
    assert_eq!(planned(&world), Some(63));
    world.taps[0].spec.mirror.duration = Some(std::time::Duration::from_millis(90_500).into());
    assert_eq!(planned(&world), Some(94), "rounded up");
}

#[test]
fn a_tap_that_has_not_started_ends_too_and_its_nodes_are_not_written_again_and_again() {
    let mut world = limited();
    let first = 60 + 20 * 60;
    assert_eq!(planned(&world), Some(first));
    let (mut settled, _) = world.settled(&Vnis::default());
    for node_tap in &mut settled.node_taps {
        node_tap.status = None;
    }
    settled.seconds = 20 * 60;
    assert_eq!(planned(&settled), Some(first), "enough is left");
    settled.seconds += 1;
    assert_eq!(planned(&settled), Some(settled.seconds + first));
    world.seconds = 5;
    assert_eq!(planned(&world), Some(5 + first));
}

/// In the reconcile that sees the first tapped pod: nothing might wake the leader before the tap is over.
#[test]
fn a_tap_starts_when_a_node_reports_an_active_sender() {
    let (mut settled, _) = limited().settled(&Vnis::default());
    settled.seconds = 7;
    assert_eq!(planned(&settled), Some(67));
    for node_tap in &mut settled.node_taps {
        node_tap.status.iter_mut().flat_map(|status| &mut status.senders).for_each(|s| s.state = State::Pending);
    }
    assert_ne!(planned(&settled), Some(67));
    let mut removed = settled.node_taps[0].clone();
    removed.spec.0 = NodeState::default();
    settled.node_taps = vec![carry_out(removed)];
    assert_ne!(planned(&settled), Some(67));
}
