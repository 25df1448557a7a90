use podtap_api::{NodeTap, NodeTapReceiver, NodeTapSpec, PodTap, TapReference, Vxlan};
use serde_json::json;

use super::*;
use crate::{fixtures::{carry_out, tap, time, World}, reconcile, validate::tap::validate};

fn wishing(name: &str, vni: i64, created: i64) -> PodTap {
    let mut tap = tap(name, json!([{"node": {"name": "n2"}}]));
    tap.spec.vxlan = Some(Vxlan { vni: Some(vni) });
    tap.metadata.creation_timestamp = time(created);
    tap
}

fn plain(name: &str) -> PodTap {
    tap(name, json!([{"node": {"name": "n2"}}]))
}

fn allocate(world: &World, recorded: &Claims) -> Allocation {
    let snapshot = world.snapshot();
    reconcile::allocate(&snapshot, &validate(&snapshot), recorded)
}

fn world(taps: Vec<PodTap>) -> World {
    World { taps, ..World::small() }
}

fn claims(list: &[(i64, &str)]) -> Claims {
    list.iter().map(|(vni, claim)| (*vni, claim.parse().expect("a claim"))).collect()
}

/// An object of n1 that holds a receiver of `tap`.
fn holding(tap: &str, vni: i64) -> NodeTap {
    let tap = TapReference { uid: tap.into(), ..TapReference::default() };
    let receivers = vec![NodeTapReceiver { tap, vni, port: 14789, ..NodeTapReceiver::default() }];
    let mut node_tap = NodeTap::new("n1", NodeTapSpec { receivers, ..NodeTapSpec::default() });
    node_tap.metadata.generation = Some(1);
    node_tap.metadata.resource_version = Some("1".into());
    carry_out(node_tap)
}

#[test]
fn claims_are_written_as_they_are_read() {
    let claim = Claim { tap: "3e2a-1".into(), slot: 2 };
    assert_eq!(claim.to_string().parse(), Ok(claim));
    for text in ["", "a", "a/b", "a/-1"] {
        assert_eq!(text.parse::<Claim>(), Err(()), "{text}");
    }
}

#[test]
fn the_lowest_free_ones_oldest_tap_first() {
    let mut young = plain("young");
    young.metadata.creation_timestamp = time(9);
    let allocation = allocate(&world(vec![young, plain("old")]), &Claims::new());
    assert_eq!(allocation.claims, claims(&[(100, "tap-old/0"), (101, "tap-young/0")]));
}

#[test]
fn what_is_recorded_stays_although_no_status_and_no_node_shows_it_yet() {
    let recorded = claims(&[(105, "tap-a/0")]);
    assert_eq!(allocate(&world(vec![plain("a")]), &recorded).claims, recorded);
}

#[test]
fn a_wish_that_is_taken_waits_for_the_older_one() {
    let (older, younger) = (wishing("older", 3001, 0), wishing("younger", 3001, 1));
    let both = allocate(&world(vec![younger.clone(), older]), &Claims::new());
    assert_eq!(both.claims, claims(&[(3001, "tap-older/0")]));
    let refusal = Refusal::InUse { vni: 3001, holder: "tap-older".into() };
    assert_eq!(both.refusals, [("tap-younger".to_owned(), refusal)].into());
    // The older one is deleted; a node still holds its receiver.
    let mut alone = world(vec![younger]);
    alone.node_taps = vec![holding("tap-older", 3001)];
    assert_eq!(allocate(&alone, &both.claims).refusals.len(), 1);
    alone.node_taps.clear();
    assert_eq!(allocate(&alone, &both.claims).claims, claims(&[(3001, "tap-younger/0")]));
}

#[test]
fn a_younger_tap_that_has_a_vni_keeps_it_against_an_older_wish() {
    let recorded = claims(&[(3001, "tap-younger/0")]);
    let both = world(vec![wishing("older", 3001, 0), wishing("younger", 3001, 1)]);
    let allocation = allocate(&both, &recorded);
    assert_eq!(allocation.claims, recorded);
    assert!(allocation.refusals.contains_key("tap-older"));
}

#[test]
fn wishes_come_before_what_is_allocated() {
    let mut any = plain("any");
    any.metadata.creation_timestamp = time(-5);
    let allocation = allocate(&world(vec![any, wishing("wish", 100, 0)]), &Claims::new());
    assert_eq!(allocation.claims, claims(&[(100, "tap-wish/0"), (101, "tap-any/0")]));
}

#[test]
fn what_a_node_holds_is_not_given_away_even_without_a_record() {
    let mut cluster = world(vec![plain("a")]);
    cluster.node_taps = vec![holding("tap-gone", 100)];
    assert_eq!(allocate(&cluster, &Claims::new()).claims, claims(&[(101, "tap-a/0")]));
}

#[test]
fn claims_of_taps_that_are_gone_go_when_nodes_are_clean() {
    let recorded = claims(&[(100, "tap-gone/0")]);
    let mut cluster = world(vec![]);
    cluster.node_taps = vec![holding("tap-gone", 100)];
    assert_eq!(allocate(&cluster, &recorded).claims, recorded);
    cluster.node_taps.clear();
    assert_eq!(allocate(&cluster, &recorded).claims, Claims::new());
}

#[test]
fn a_range_can_be_exhausted_and_a_wish_outside_of_it() {
    let mut cluster = world(vec![plain("a"), plain("b"), wishing("c", 99, 0)]);
    let range = json!({"vniRange": {"first": 100, "last": 100}});
    cluster.policy = Some(crate::fixtures::policy(range));
    let allocation = allocate(&cluster, &Claims::new());
    assert_eq!(allocation.claims, claims(&[(100, "tap-a/0")]));
    assert_eq!(allocation.refusals["tap-b"], Refusal::Exhausted);
    assert_eq!(allocation.refusals["tap-c"], Refusal::NotAllowed { vni: 99 });
}

#[test]
fn each_receiver_has_a_slot_and_external_endpoints_share_the_first() {
    let wanted = |json: serde_json::Value| {
        let world = world(vec![tap("t", json)]);
        let snapshot = world.snapshot();
        slots(&validate(&snapshot).taps[0].spec.as_ref().expect("valid").destinations)
    };
    let (node, external) = (|name| json!({"node": {"name": name}}), json!({"external": {"address": "192.0.2.1"}}));
    assert_eq!(wanted(json!([node("n1"), node("n2")])), [0, 1]);
    assert_eq!(wanted(json!([external, node("n1"), node("n2")])), [0, 0, 2]);
    assert_eq!(wanted(json!([node("n1"), external, external])), [0, 0, 0]);
}

#[test]
fn of_several_vnis_the_one_that_suits_counts() {
    let recorded = claims(&[(100, "t/0"), (200, "t/0"), (300, "t/0")]);
    let claim = "t/0".parse().expect("a claim");
    assert_eq!(find(&recorded, &claim, Some(200), |_| true), Some(200));
    assert_eq!(find(&recorded, &claim, Some(200), |vni| vni > 200), Some(300));
    assert_eq!(find(&recorded, &claim, Some(999), |_| true), Some(100));
    assert_eq!(find(&recorded, &claim, None, |_| false), None);
}
