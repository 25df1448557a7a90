use podtap_model::Sender;

use super::*;
use crate::fixtures::uid;

fn pod(addresses: &[&str]) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: "web".into(),
        uid: uid("web"),
        config_hash: None,
        addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
    }
}

fn spec(taps: &[&str]) -> NodeState {
    let sender = |tap: &&str| Sender { tap: uid(tap), pod: pod(&[]), details: None };
    NodeState { senders: taps.iter().map(sender).collect(), ..NodeState::default() }
}

fn object(uid: &str, generation: i64, taps: &[&str]) -> CachedNodeTap {
    CachedNodeTap { name: "n1".into(), uid: uid.into(), generation, spec: Some(spec(taps)), ..CachedNodeTap::default() }
}

fn observe(generations: &mut Generations, object: &CachedNodeTap) {
    generations.observe(&[("n1".to_owned(), Arc::new(object.clone()))].into());
}

fn sender(generations: &Generations, object: &CachedNodeTap, tap: &str, pod: &str) -> Change {
    generations.change(object, &Part::Sender { tap: uid(tap), pod: uid(pod) })
}

#[test]
fn only_the_taps_that_a_write_changed_wait_for_it() {
    let mut generations = Generations::default();
    let old = object("u", 3, &["a"]);
    observe(&mut generations, &old);
    assert_eq!(generations.required(&old, "a"), 3, "after a restart: what exists has to be observed");
    let new = object("u", 4, &["a", "b"]);
    generations.record(Some(&old), &new);
    assert_eq!((generations.required(&new, "a"), generations.required(&new, "b")), (3, 4));
    let removed = object("u", 5, &["b"]);
    generations.record(Some(&new), &removed);
    assert_eq!((generations.required(&removed, "a"), generations.required(&removed, "b")), (5, 4));
}

#[test]
fn addresses_that_become_known_change_nothing() {
    let mut generations = Generations::default();
    let old = object("u", 1, &["a"]);
    observe(&mut generations, &old);
    let mut new = object("u", 2, &["a"]);
    new.spec.as_mut().expect("a spec").senders[0].pod = pod(&["10.1.0.1"]);
    generations.record(Some(&old), &new);
    assert_eq!(generations.required(&new, "a"), 1);
}

#[test]
fn a_tap_that_has_started_does_not_wait_until_its_nodes_know_when_it_ends() {
    let mut generations = Generations::default();
    let with_expiration = |generation: i64, expiration: Option<u32>| {
        let mut object = object("u", generation, &["a"]);
        let tap = serde_json::json!({
            "namespace": "shop", "name": "a", "uid": "a", "direction": "Both", "destinations": [],
            "expirationTime": expiration.map(|minute| format!("2027-01-15T08:{minute:02}:00Z")),
        });
        object.spec.as_mut().expect("a spec").taps = vec![serde_json::from_value(tap).expect("a tap")];
        object
    };
    let old = with_expiration(1, Some(21));
    observe(&mut generations, &old);
    let new = with_expiration(2, Some(1));
    generations.record(Some(&old), &new);
    assert_eq!(generations.required(&new, "a"), 1);
}

#[test]
fn an_object_that_was_recreated_is_another_one() {
    let mut generations = Generations::default();
    observe(&mut generations, &object("u", 7, &["a"]));
    let recreated = object("v", 1, &["a"]);
    generations.record(None, &recreated);
    assert_eq!((generations.required(&recreated, "a"), generations.required(&recreated, "never")), (1, 0));
    // Another client created it: all of it has to be observed.
    let foreign = object("w", 2, &["a"]);
    assert_eq!(generations.required(&foreign, "a"), 2);
    observe(&mut generations, &foreign);
    assert_eq!(generations.required(&foreign, "a"), 2);
}

#[test]
fn a_pod_that_is_added_changes_no_other() {
    let mut generations = Generations::default();
    let old = object("u", 3, &["a"]);
    observe(&mut generations, &old);
    let mut new = object("u", 4, &["a"]);
    let spec = new.spec.as_mut().expect("a spec");
    spec.senders.push(Sender { tap: uid("a"), pod: Pod { uid: uid("new"), ..pod(&[]) }, details: None });
    generations.record(Some(&old), &new);
    assert_eq!(sender(&generations, &new, "a", "web"), Change::Before(3));
    assert_eq!(sender(&generations, &new, "a", "new"), Change::Added(4));
    assert_eq!(generations.required(&new, "a"), 4, "a deletion waits for all of it");
    // Gone, and added again before the node has noticed.
    let removed = object("u", 5, &["a"]);
    generations.record(Some(&new), &removed);
    let again = CachedNodeTap { generation: 6, ..new.clone() };
    generations.record(Some(&removed), &again);
    assert_eq!(sender(&generations, &again, "a", "new"), Change::Added(6));
}

#[test]
fn another_destination_changes_every_sender_and_another_end_none() {
    let mut generations = Generations::default();
    let entry = |port: u16, expiration: i64| -> Tap {
        crate::fixtures::object(serde_json::json!({
            "namespace": "shop", "name": "a", "uid": "a", "direction": "Both", "options": {},
            "destinations": [{"address": "10.0.0.2", "port": port, "vni": 100}],
            "expirationTime": crate::fixtures::at(expiration).to_string(),
        }))
    };
    let with = |generation: i64, tap: Tap| {
        let mut object = object("u", generation, &["a"]);
        object.spec.as_mut().expect("a spec").taps.push(tap);
        object
    };
    let first = with(1, entry(14789, 60));
    observe(&mut generations, &first);
    let prolonged = with(2, entry(14789, 120));
    generations.record(Some(&first), &prolonged);
    assert_eq!(sender(&generations, &prolonged, "a", "web"), Change::Before(1));
    let moved = with(3, entry(14790, 120));
    generations.record(Some(&prolonged), &moved);
    assert_eq!(sender(&generations, &moved, "a", "web"), Change::Modified(3));
}
