use podtap_api::{DestinationStatus, NodeTap, PodTap, PodTapStatus, Vxlan};
use podtap_model::{InterfaceName, NodeState, Receiver, TapReference};
use serde_json::{Value, json};

use super::*;
use crate::{
    fixtures::{World, carry_out, node_tap, tap, time, uid, vni},
    reconcile,
    validate::tap::validate,
};

fn requesting(name: &str, number: u32, created: i64) -> PodTap {
    let mut tap = tap(name, json!([{"node": {"name": "n2"}}]));
    tap.spec.vxlan = Some(Vxlan { vni: Some(vni(number)) });
    tap.metadata.creation_timestamp = time(created);
    tap
}

fn plain(name: &str) -> PodTap {
    tap(name, json!([{"node": {"name": "n2"}}]))
}

fn allocate(world: &World, recorded: &Claims) -> Vnis {
    let snapshot = world.snapshot();
    reconcile::allocate(&snapshot, &validate(&snapshot), recorded)
}

fn world(taps: Vec<PodTap>) -> World {
    World { taps, ..World::small() }
}

fn claims(list: &[(u32, &str)]) -> Claims {
    list.iter().map(|(number, claim)| (vni(*number), claim.parse().expect("a claim"))).collect()
}

/// The `NodeTap` of n1 with a receiver of `tap`.
fn holding(tap: &str, number: u32) -> NodeTap {
    let receiver = Receiver {
        tap: TapReference { namespace: "shop".into(), name: "t".into(), uid: uid(tap) },
        vni: vni(number),
        port: 14789,
        ipv6: false,
        interface_name: "mirror".parse::<InterfaceName>().expect("a name"),
        frame_format: podtap_model::FrameFormat::Wire,
        pod: None,
    };
    carry_out(node_tap("n1", NodeState { receivers: vec![receiver], ..NodeState::default() }))
}

#[test]
fn claims_are_written_as_they_are_read() {
    let claim = Claim { tap: uid("3e2a-1"), destination: "sensor".into() };
    assert_eq!(claim.to_string(), "3e2a-1/sensor");
    assert_eq!(claim.to_string().parse(), Ok(claim));
    for text in ["", "a", "/main", "a/"] {
        assert_eq!(text.parse::<Claim>(), Err(ParseClaimError), "{text}");
    }
}

#[test]
fn the_lowest_free_ones_oldest_tap_first() {
    let mut young = plain("young");
    young.metadata.creation_timestamp = time(9);
    let vnis = allocate(&world(vec![young, plain("old")]), &Claims::new());
    assert_eq!(vnis.claims, claims(&[(100, "tap-old/main"), (101, "tap-young/main")]));
}

#[test]
fn a_recorded_claim_stays_although_no_status_and_no_node_has_it_yet() {
    let recorded = claims(&[(105, "tap-a/main")]);
    assert_eq!(allocate(&world(vec![plain("a")]), &recorded).claims, recorded);
}

#[test]
fn a_requested_vni_that_is_taken_waits_for_the_older_tap() {
    let (older, younger) = (requesting("older", 3001, 0), requesting("younger", 3001, 1));
    let both = allocate(&world(vec![younger.clone(), older]), &Claims::new());
    assert_eq!(both.claims, claims(&[(3001, "tap-older/main")]));
    let refusal = Refusal::InUse { vni: vni(3001), holder: "tap-older".into() };
    assert_eq!(both.refusals, [(uid("tap-younger"), refusal)].into());
    // The older one is deleted; a node still has its receiver.
    let mut alone = world(vec![younger]);
    alone.node_taps = vec![holding("tap-older", 3001)];
    assert_eq!(allocate(&alone, &both.claims).refusals.len(), 1);
    alone.node_taps.clear();
    assert_eq!(allocate(&alone, &both.claims).claims, claims(&[(3001, "tap-younger/main")]));
}

#[test]
fn a_younger_tap_that_has_a_vni_keeps_it_against_an_older_request() {
    let recorded = claims(&[(3001, "tap-younger/main")]);
    let both = world(vec![requesting("older", 3001, 0), requesting("younger", 3001, 1)]);
    let vnis = allocate(&both, &recorded);
    assert_eq!(vnis.claims, recorded);
    assert!(vnis.refusals.contains_key("tap-older"));
}

#[test]
fn requests_come_before_allocation() {
    let mut any = plain("any");
    any.metadata.creation_timestamp = time(-5);
    let vnis = allocate(&world(vec![any, requesting("request", 100, 0)]), &Claims::new());
    assert_eq!(vnis.claims, claims(&[(100, "tap-request/main"), (101, "tap-any/main")]));
}

#[test]
fn a_vni_in_use_on_a_node_is_not_assigned_even_without_a_record() {
    let mut cluster = world(vec![plain("a")]);
    cluster.node_taps = vec![holding("tap-gone", 100)];
    assert_eq!(allocate(&cluster, &Claims::new()).claims, claims(&[(101, "tap-a/main")]));
}

#[test]
fn claims_of_deleted_taps_are_released_when_nodes_are_clean() {
    let recorded = claims(&[(100, "tap-gone/main")]);
    let mut cluster = world(vec![]);
    cluster.node_taps = vec![holding("tap-gone", 100)];
    assert_eq!(allocate(&cluster, &recorded).claims, recorded);
    cluster.node_taps.clear();
    assert_eq!(allocate(&cluster, &recorded).claims, Claims::new());
}

#[test]
fn a_range_can_be_exhausted_and_a_request_outside_of_it() {
    let mut cluster = world(vec![plain("a"), plain("b"), requesting("c", 99, 0)]);
    let range = json!({"vniRange": {"first": 100, "last": 100}});
    cluster.policy = Some(crate::fixtures::policy(range));
    let vnis = allocate(&cluster, &Claims::new());
    assert_eq!(vnis.claims, claims(&[(100, "tap-a/main")]));
    assert_eq!(vnis.refusals["tap-b"], Refusal::Exhausted);
    assert_eq!(vnis.refusals["tap-c"], Refusal::NotAllowed { vni: vni(99) });
}

fn node(name: &str, node: &str) -> Value {
    json!({"name": name, "node": {"name": node}})
}

fn external(name: &str) -> Value {
    json!({"name": name, "external": {"address": "192.0.2.1"}})
}

/// The VNIs of the destinations by name, in a cluster of this one tap.
fn of_destinations(tap: &PodTap, recorded: &Claims) -> (BTreeMap<String, u32>, Claims) {
    let snapshot = world(vec![tap.clone()]).snapshot();
    let validated = validate(&snapshot);
    let vnis = reconcile::allocate(&snapshot, &validated, recorded);
    let tap = &validated.taps[0];
    let spec = tap.spec.as_ref().expect("valid");
    let range = &validated.policy.vni_range;
    let vni =
        |d: &RequestedDestination| (d.name.clone(), vnis.of_destination(tap, spec, d, range).expect("a VNI").get());
    (spec.destinations.iter().map(vni).collect(), vnis.claims)
}

fn fresh(destinations: Value) -> BTreeMap<String, u32> {
    of_destinations(&tap("t", destinations), &Claims::new()).0
}

fn vnis(list: &[(&str, u32)]) -> BTreeMap<String, u32> {
    list.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
}

#[test]
fn each_receiver_has_a_claim_and_external_endpoints_share_the_primary_one() {
    assert_eq!(fresh(json!([node("a", "n1"), node("b", "n2")])), vnis(&[("a", 100), ("b", 101)]));
    let mixed = json!([external("x"), node("a", "n1"), node("b", "n2")]);
    assert_eq!(fresh(mixed), vnis(&[("x", 100), ("a", 100), ("b", 101)]));
    let one = json!([node("a", "n1"), external("x"), external("y")]);
    assert_eq!(fresh(one), vnis(&[("a", 100), ("x", 100), ("y", 100)]));
    assert_eq!(fresh(json!([external("x"), external("y")])), vnis(&[("x", 100), ("y", 100)]));
}

#[test]
fn a_destination_keeps_its_vni_wherever_it_is_in_the_list() {
    let destinations = [node("a", "n1"), node("b", "n2"), external("x")];
    let mut tap = tap("t", json!(destinations));
    let (before, recorded) = of_destinations(&tap, &Claims::new());
    assert_eq!(recorded, claims(&[(100, "tap-t/a"), (101, "tap-t/b")]));
    let status = |name: &String, number: &u32| DestinationStatus {
        name: name.clone(),
        vni: Some(vni(*number)),
        ..DestinationStatus::default()
    };
    let shown = before.iter().map(|(name, number)| status(name, number)).collect();
    tap.status = Some(PodTapStatus { vni: Some(vni(100)), destinations: shown, ..PodTapStatus::default() });
    let reordered = |order: &[usize]| {
        let list: Vec<&Value> = order.iter().map(|index| &destinations[*index]).collect();
        let mut tap = tap.clone();
        tap.spec.destinations = crate::fixtures::object(json!(list));
        tap
    };
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        assert_eq!(of_destinations(&reordered(&order), &recorded).0, before, "{order:?}");
        assert_eq!(of_destinations(&reordered(&order), &Claims::new()).0, before, "without a record: {order:?}");
    }
    // Without the primary destination, the external one keeps its VNI as well.
    assert_eq!(of_destinations(&reordered(&[2, 1]), &recorded).0, vnis(&[("b", 101), ("x", 100)]));
    // A remaining receiver becomes the primary one.
    let (alone, _) = of_destinations(&reordered(&[1]), &recorded);
    assert_eq!(alone, vnis(&[("b", 101)]));
}

#[test]
fn of_several_vnis_the_suitable_one_counts() {
    let snapshot = world(vec![plain("t")]).snapshot();
    let mut tap = validate(&snapshot).taps.remove(0);
    let spec = tap.spec.clone().expect("valid");
    let claims = claims(&[(100, "tap-t/main"), (200, "tap-t/main"), (300, "tap-t/main")]);
    let vnis = Vnis { claims, primary: [(uid("tap-t"), "main".to_owned())].into(), ..Vnis::default() };
    let mut find = |shown: Option<u32>, first: u32| {
        tap.status.vni = shown.map(vni);
        let range = VniRange { first: vni(first), last: vni(1000) };
        vnis.of_tap(&tap, &spec, &range).map(Vni::get)
    };
    assert_eq!(find(Some(200), 1), Some(200));
    assert_eq!(find(Some(200), 201), Some(300));
    assert_eq!(find(Some(999), 1), Some(100));
    assert_eq!(find(None, 400), None);
}
