use std::{cell::Cell, collections::BTreeSet};

use podtap_api::{DestinationStatus, NodeTap, PodTap, PodTapStatus, Vxlan};
use podtap_model::{FrameFormat, InterfaceName, NodeState, NodeStatus, Reason, Receiver, SentVnis, TapReference};
use serde_json::{Value, json};

use super::*;
use crate::{
    fixtures::{World, carry_out, derived as default_vni, node_tap, policy, tap, time, uid, vni},
    plan::resolve::resolve,
    validate::{state::TapState, tap::validate},
};

thread_local! {
    /// How many VNIs were examined, each for one demand.
    pub static EXAMINED: Cell<usize> = const { Cell::new(0) };
}

fn requesting(name: &str, number: u32, created: i64) -> PodTap {
    let mut tap = plain(name, created);
    tap.spec.mirror.vxlan = Some(Vxlan { vni: Some(vni(number)) });
    tap
}

fn plain(name: &str, created: i64) -> PodTap {
    let mut tap = tap(name, json!([{"node": {"name": "n2"}}]));
    tap.metadata.creation_timestamp = time(created);
    tap
}

fn allocate(world: &World, previous: &Vnis) -> Vnis {
    let snapshot = world.snapshot();
    resolve(&snapshot, &validate(&snapshot), previous).1
}

fn world(taps: Vec<PodTap>) -> World {
    World { taps, ..World::small() }
}

fn within(world: World, first: u32, last: u32) -> World {
    World { policy: Some(policy(json!({"vniRange": {"first": first, "last": last}}))), ..world }
}

/// The VNI of each tap by its name.
fn of_taps(vnis: &Vnis) -> BTreeMap<&str, u32> {
    vnis.assigned.iter().map(|(uid, vnis)| (uid.strip_prefix("tap-").unwrap_or_default(), vnis.tap.get())).collect()
}

/// What an earlier reconcile of this leader assigned to the single receiver of a tap.
fn assigned(tap: &str, number: u32) -> Vnis {
    let vnis = TapVnis { tap: vni(number), receivers: [("main".to_owned(), vni(number))].into() };
    Vnis { assigned: [(uid(tap), vnis)].into(), ..Vnis::default() }
}

/// The `NodeTap` of n1 with a receiver of `tap`.
fn holding(tap: &str, number: u32) -> NodeTap {
    let receiver = Receiver {
        tap: TapReference { namespace: "shop".into(), name: "t".into(), uid: uid(tap) },
        vni: vni(number),
        port: 14789,
        ipv6: false,
        interface_name: "mirror".parse::<InterfaceName>().expect("a name"),
        frame_format: FrameFormat::Wire,
        metadata: false,
        packet_socket: false,
        pod: None,
    };
    carry_out(node_tap("n1", NodeState { receivers: vec![receiver], ..NodeState::default() }))
}

/// The `NodeTap` of n1 with a sender of a tap that is no longer requested.
fn sending(tap: &str, number: u32) -> NodeTap {
    let mut node = node_tap("n1", NodeState::default());
    let sent_vnis = vec![SentVnis { tap_uid: tap.to_owned(), vnis: vec![vni(number)] }];
    node.status = Some(NodeStatus { observed_generation: Some(1), sent_vnis, ..NodeStatus::default() });
    node
}

#[test]
fn vnis_follow_from_the_uid_and_not_from_other_taps() {
    let alone = allocate(&world(vec![plain("a", 5)]), &Vnis::default());
    let many = world((0..50).map(|index| plain(&format!("t{index}"), index)).chain([plain("a", 5)]).collect());
    let many = allocate(&many, &Vnis::default());
    assert_eq!(of_taps(&alone)["a"], of_taps(&many)["a"]);
    assert_eq!(of_taps(&many)["a"], default_vni("tap-a", "").get());
    let numbers: BTreeSet<u32> = of_taps(&many).into_values().collect();
    assert_eq!(numbers.len(), 51);
    let range = VniRange::default();
    assert!(numbers.iter().all(|number| *number >= 4096 && range.contains(vni(*number))));
    // They are not in the order of the taps.
    let step = numbers.iter().zip(numbers.iter().skip(1)).map(|(one, next)| next - one).min();
    assert!(step > Some(1), "{numbers:?}");
}

#[test]
fn a_requested_vni_that_is_taken_waits_for_the_older_tap() {
    let (older, younger) = (requesting("older", 3001, 0), requesting("younger", 3001, 1));
    let allowed = |world| within(world, 100, 9999);
    let both = allocate(&allowed(world(vec![younger.clone(), older])), &Vnis::default());
    assert_eq!(of_taps(&both), [("older", 3001)].into());
    assert_eq!(both.refusals, [(uid("tap-younger"), Refusal::InUse(vni(3001)))].into());
    // The older one is deleted; a node still has its receiver or its sender.
    let mut deleted = requesting("older", 3001, 0);
    deleted.metadata.deletion_timestamp = time(2);
    deleted.status = Some(PodTapStatus { vni: Some(vni(3001)), ..PodTapStatus::default() });
    for node in [holding("tap-older", 3001), sending("tap-older", 3001)] {
        let mut alone = allowed(world(vec![younger.clone(), deleted.clone()]));
        alone.node_taps = vec![node];
        for previous in [&both, &Vnis::default()] {
            assert_eq!(allocate(&alone, previous).refusals.len(), 1, "also for the next leader");
        }
        alone.node_taps.clear();
        alone.taps.pop();
        assert_eq!(of_taps(&allocate(&alone, &both)), [("younger", 3001)].into());
    }
}

#[test]
fn a_younger_tap_that_has_a_vni_keeps_it_against_an_older_request() {
    let both = within(world(vec![requesting("older", 3001, 0), requesting("younger", 3001, 1)]), 100, 9999);
    let vnis = allocate(&both, &assigned("tap-younger", 3001));
    assert_eq!(of_taps(&vnis), [("younger", 3001)].into());
    assert!(vnis.refusals.contains_key("tap-older"));
}

/// Otherwise a controller that does not know the younger tap yet would assign other VNIs than one that does.
#[test]
fn a_younger_request_does_not_change_what_an_older_tap_gets() {
    let derived = default_vni("tap-a", "");
    let vnis = allocate(&world(vec![plain("a", 0), requesting("b", derived.get(), 1)]), &Vnis::default());
    assert_eq!(of_taps(&vnis), [("a", derived.get())].into());
    let vnis = allocate(&world(vec![plain("a", 1), requesting("b", derived.get(), 0)]), &Vnis::default());
    assert_eq!(of_taps(&vnis)["b"], derived.get());
    assert_ne!(of_taps(&vnis)["a"], derived.get());
}

#[test]
fn what_nodes_have_for_another_tap_is_not_assigned() {
    let derived = default_vni("tap-a", "").get();
    for node in [holding("tap-gone", derived), sending("tap-gone", derived)] {
        let mut cluster = world(vec![plain("a", 0)]);
        cluster.node_taps = vec![node];
        assert_ne!(of_taps(&allocate(&cluster, &Vnis::default()))["a"], derived);
    }
}

/// Otherwise an agent that was taken over could make every VNI unavailable.
#[test]
fn what_a_node_reports_without_having_been_told_blocks_no_vni() {
    let claims = |world: World, numbers: std::ops::RangeInclusive<u32>| {
        let mut node = sending("tap-made-up", 100);
        let known = SentVnis { tap_uid: "tap-a".into(), vnis: numbers.clone().map(vni).collect() };
        let status = node.status.get_or_insert_default();
        status.sent_vnis[0].vnis = numbers.map(vni).collect();
        status.sent_vnis.push(known);
        World { node_taps: vec![node], ..world }
    };
    let cluster = || within(world(vec![requesting("a", 105, 0), plain("b", 1), plain("c", 2)]), 100, 105);
    let some = allocate(&claims(cluster(), 102..=105), &Vnis::default());
    assert_eq!(of_taps(&some)["a"], 105, "it is requested");
    assert_eq!([of_taps(&some)["b"], of_taps(&some)["c"]].into_iter().max(), Some(101), "the others are avoided");
    let all = allocate(&claims(cluster(), 100..=105), &Vnis::default());
    assert_eq!((all.assigned.len(), all.refusals.len()), (3, 0), "as long as there are any");
}

/// The last leader ended after it had written a `NodeTap`, and before it wrote the status.
#[test]
fn what_nodes_have_for_the_same_tap_is_found_without_a_status() {
    let second = derived(&VniRange::default(), &uid("tap-a"), "", 1).get();
    let mut cluster = world(vec![plain("a", 0)]);
    cluster.node_taps = vec![holding("tap-a", second)];
    assert_eq!(of_taps(&allocate(&cluster, &Vnis::default()))["a"], second);
}

/// A node has been told of a VNI and then of another one, and has reported neither.
#[test]
fn a_vni_is_not_free_while_a_node_may_be_about_to_use_it() {
    let mut cluster = within(world(vec![requesting("a", 200, 0), requesting("b", 100, 1)]), 100, 300);
    cluster.node_taps = vec![holding("tap-a", 200)];
    cluster.node_taps[0].status = None;
    let before = assigned("tap-a", 100);
    let vnis = allocate(&cluster, &before);
    assert_eq!(of_taps(&vnis), [("a", 200)].into());
    assert_eq!(vnis.released, [(vni(100), uid("tap-a"))].into());
    assert_eq!(allocate(&cluster, &vnis).refusals[&uid("tap-b")], Refusal::InUse(vni(100)));
    cluster.node_taps = vec![holding("tap-a", 200)];
    assert_eq!(of_taps(&allocate(&cluster, &vnis)), [("a", 200), ("b", 100)].into());
}

#[test]
fn a_range_can_be_exhausted_and_a_request_outside_of_it() {
    let cluster = within(world(vec![plain("a", 0), plain("b", 1), plain("c", 2), requesting("d", 99, 3)]), 100, 101);
    let vnis = allocate(&cluster, &Vnis::default());
    assert_eq!(of_taps(&vnis).values().collect::<BTreeSet<_>>(), [&100, &101].into());
    assert_eq!(vnis.refusals["tap-c"], Refusal::Exhausted);
    assert_eq!(vnis.refusals["tap-d"], Refusal::NotAllowed(vni(99)));
}

/// The attempts of a sequence repeat in a small range; all of it is used nevertheless.
#[test]
fn the_last_free_vni_is_found() {
    let cluster = within(world((0..300).map(|index| plain(&format!("t{index}"), index)).collect()), 5000, 5299);
    let mut cluster = cluster;
    let limits = json!({"vniRange": {"first": 5000, "last": 5299}, "limits": {"tapsPerNamespace": 1000}});
    cluster.policy = Some(policy(limits));
    let vnis = allocate(&cluster, &Vnis::default());
    assert_eq!((vnis.assigned.len(), vnis.refusals.len()), (300, 0));
}

/// No tenant can use up the VNIs of a small range by taps that are not carried out.
#[test]
fn taps_that_are_not_carried_out_have_no_vni() {
    let mut taps: Vec<PodTap> = (0..20).map(|index| plain(&format!("t{index:02}"), 0)).collect();
    taps[0].spec.mirror.suspend = true;
    taps[1].spec.mirror.duration = Some(std::time::Duration::from_secs(1).into());
    taps[1].status = Some(PodTapStatus { start_time: time(-60), ..PodTapStatus::default() });
    taps[2].spec.targets.pod_selector = None;
    let mut other = plain("other", 9);
    other.metadata.namespace = Some("bank".into());
    let mut cluster = world(taps.into_iter().chain([other]).collect());
    let limits = json!({"vniRange": {"first": 100, "last": 105}, "limits": {"tapsPerNamespace": 5}});
    cluster.policy = Some(policy(limits));
    let vnis = allocate(&cluster, &Vnis::default());
    // The expired one started first, which makes it the oldest.
    assert_eq!(of_taps(&vnis).keys().copied().collect::<Vec<_>>(), ["other", "t03", "t04", "t05", "t06", "t07"]);
    assert_eq!(vnis.refusals, BTreeMap::new());
}

#[test]
fn a_suspended_tap_resumes_with_its_vni() {
    let (mut settled, vnis) = world(vec![plain("a", 0)]).settled(&Vnis::default());
    settled.taps[0].spec.mirror.suspend = true;
    let (mut settled, none) = settled.settled(&vnis);
    assert_eq!((none.assigned.len(), settled.taps[0].status.as_ref().and_then(|status| status.vni)), (0, None));
    settled.taps[0].spec.mirror.suspend = false;
    assert_eq!(of_taps(&allocate(&settled, &none)), of_taps(&vnis));
}

/// The number of steps does not grow with the number of pairs.
#[test]
fn many_taps_take_few_steps() {
    let tap = |index: usize| {
        let mut tap = plain(&format!("t{index}"), 0);
        tap.metadata.namespace = Some(format!("team-{}", index % 100));
        tap
    };
    let mut cluster = world((0..20_000).map(tap).collect());
    cluster.policy = Some(policy(json!({"limits": {"tapsPerNamespace": 1000}})));
    let vnis = allocate(&cluster, &Vnis::default());
    assert_eq!((vnis.assigned.len(), vnis.refusals.len()), (20_000, 0));
    assert_eq!(allocate(&cluster, &vnis).assigned, vnis.assigned);
    // A VNI of the large range is hardly ever taken.
    assert!((20_000..40_000).contains(&EXAMINED.get()), "{} VNIs examined", EXAMINED.get());

    let cluster = within(world((0..2000).map(|index| plain(&format!("t{index}"), index)).collect()), 5000, 5099);
    EXAMINED.set(0);
    let limits = json!({"vniRange": {"first": 5000, "last": 5099}, "limits": {"tapsPerNamespace": 5000}});
    let cluster = World { policy: Some(policy(limits)), ..cluster };
    let vnis = allocate(&cluster, &Vnis::default());
    assert_eq!((vnis.assigned.len(), vnis.refusals.len()), (100, 1900));
    // An exhausted range is searched once, not for each tap.
    assert!(EXAMINED.get() < 2000 * 40 + 100 * 200, "{} VNIs examined", EXAMINED.get());
}

#[test]
fn a_refusal_names_no_other_tap() {
    let mut theirs = requesting("secret-name", 5000, 0);
    theirs.metadata.namespace = Some("secret-place".into());
    let snapshot = world(vec![theirs, requesting("t", 5000, 1)]).snapshot();
    let validated = validate(&snapshot);
    let (taps, _) = resolve(&snapshot, &validated, &Vnis::default());
    let TapState::Refused(failure) = &taps[1].state else { panic!("{:?}", taps[1].state) };
    assert_eq!(failure.reason, Reason::VniInUse);
    assert!(failure.message.contains("5000") && !failure.message.contains("secret"), "{}", failure.message);
}

fn node(name: &str, node: &str) -> Value {
    json!({"name": name, "node": {"name": node}})
}

fn external(name: &str) -> Value {
    json!({"name": name, "external": {"address": "192.0.2.1"}})
}

/// The VNIs of the destinations by name, in a cluster of this one tap.
fn of_destinations(tap: &PodTap, previous: &Vnis) -> (BTreeMap<String, u32>, Vnis) {
    let snapshot = world(vec![tap.clone()]).snapshot();
    let validated = validate(&snapshot);
    let (taps, vnis) = resolve(&snapshot, &validated, previous);
    let vni = |d: &crate::plan::tap_plan::PlannedDestination| (d.name.clone(), d.vni.expect("a VNI").get());
    (taps[0].destinations.iter().map(vni).collect(), vnis)
}

fn fresh(destinations: Value) -> BTreeMap<String, u32> {
    of_destinations(&tap("t", destinations), &Vnis::default()).0
}

/// The derived VNIs of `tap-t`: its own is that of the key "".
fn vnis(list: &[(&str, &str)]) -> BTreeMap<String, u32> {
    list.iter().map(|(name, key)| ((*name).to_owned(), default_vni("tap-t", key).get())).collect()
}

#[test]
fn each_receiver_has_a_vni_and_external_endpoints_share_that_of_the_tap() {
    assert_eq!(fresh(json!([node("a", "n1"), node("b", "n2")])), vnis(&[("a", ""), ("b", "b")]));
    let mixed = json!([external("x"), node("a", "n1"), node("b", "n2")]);
    assert_eq!(fresh(mixed), vnis(&[("x", ""), ("a", ""), ("b", "b")]));
    let one = json!([node("a", "n1"), external("x"), external("y")]);
    assert_eq!(fresh(one), vnis(&[("a", ""), ("x", ""), ("y", "")]));
    assert_eq!(fresh(json!([external("x"), external("y")])), vnis(&[("x", ""), ("y", "")]));
}

#[test]
fn a_destination_keeps_its_vni_wherever_it_is_in_the_list() {
    let destinations = [node("a", "n1"), node("b", "n2"), external("x")];
    let mut tap = tap("t", json!(destinations));
    let (before, assigned) = of_destinations(&tap, &Vnis::default());
    let status = |name: &String, number: &u32| DestinationStatus {
        name: name.clone(),
        vni: Some(vni(*number)),
        ..DestinationStatus::default()
    };
    let shown = before.iter().map(|(name, number)| status(name, number)).collect();
    let own = default_vni("tap-t", "");
    tap.status = Some(PodTapStatus { vni: Some(own), destinations: shown, ..PodTapStatus::default() });
    let reordered = |order: &[usize]| {
        let list: Vec<&Value> = order.iter().map(|index| &destinations[*index]).collect();
        let mut tap = tap.clone();
        tap.spec.mirror.destinations = crate::fixtures::object(json!(list));
        tap
    };
    // For this leader, and for the next one.
    for previous in [&assigned, &Vnis::default()] {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            assert_eq!(of_destinations(&reordered(&order), previous).0, before, "{order:?}");
        }
        // Without the receiver that shared it, the external endpoint keeps the tap's VNI.
        assert_eq!(of_destinations(&reordered(&[2, 1]), previous).0, vnis(&[("b", "b"), ("x", "")]));
        // Without an external endpoint, the VNI of a remaining receiver becomes that of the tap.
        let (alone, after) = of_destinations(&reordered(&[1]), previous);
        assert_eq!((alone, after.assigned[&uid("tap-t")].tap), (vnis(&[("b", "b")]), default_vni("tap-t", "b")));
    }
}
