use podtap_api::NodeTap;
use serde_json::{Value, json};

use super::*;
use crate::{
    fixtures::{World, carry_out, node, node_tap, object, pod, policy, tap},
    plan::{build::build, deduplication::Deduplication, resolve::resolve, vni::Vnis},
    validate::tap::validate,
};

/// A controller and its nodes, which apply what they are told when the test says so.
struct Cluster {
    world: World,
    vnis: Vnis,
    since: BTreeMap<Uid, Timestamp>,
    next: Option<Timestamp>,
}

impl Cluster {
    /// A tap of `web` on n1 to this destination, which every node has applied; n3 has nothing to do.
    fn new(destination: &Value) -> Self {
        let mut world = World::with(tap("t", json!([destination])));
        world.nodes.push(node("n3", &["10.0.0.3"]));
        let mut cluster = Self { world, vnis: Vnis::default(), since: BTreeMap::new(), next: None };
        cluster.reconcile();
        cluster.apply(&["n1", "n2"]);
        assert_eq!(cluster.reconcile(), [""; 0]);
        cluster
    }

    fn change(&mut self, destinations: Value) {
        let status = self.world.taps[0].status.clone();
        self.world.taps = vec![tap("t", destinations)];
        self.world.taps[0].status = status;
    }

    /// Returns the nodes whose object was written.
    fn reconcile(&mut self) -> Vec<String> {
        let snapshot = self.world.snapshot();
        let validated = validate(&snapshot);
        let (taps, vnis) = resolve(&snapshot, &validated, &self.vnis);
        let moves = moves(&taps, &snapshot, &self.since);
        let none = BTreeSet::new();
        let mut plan = build(&snapshot, taps, &none, &none, &validated.policy, &Deduplication::default(), &moves);
        (self.vnis, self.since, self.next) = (vnis, moves.since, moves.next);
        for name in snapshot.node_taps.keys() {
            plan.nodes.entry(name.clone()).or_default();
        }
        let mut written = Vec::new();
        for (name, spec) in plan.nodes {
            let position = self.world.node_taps.iter().position(|object| object.metadata.name.as_ref() == Some(&name));
            match position.map(|position| &mut self.world.node_taps[position]) {
                Some(object) if object.spec.0 == spec => continue,
                Some(object) => {
                    object.spec.0 = spec;
                    object.metadata.generation = object.metadata.generation.map(|generation| generation + 1);
                }
                None => self.world.node_taps.push(node_tap(&name, spec)),
            }
            written.push(name);
        }
        written
    }

    /// These nodes apply what they were told.
    fn apply(&mut self, nodes: &[&str]) {
        for object in &mut self.world.node_taps {
            if nodes.contains(&object.metadata.name.as_deref().unwrap_or_default()) {
                *object = carry_out(object.clone());
            }
        }
    }

    fn object(&self, node: &str) -> &NodeTap {
        let mut objects = self.world.node_taps.iter();
        objects.find(|object| object.metadata.name.as_deref() == Some(node)).expect("the node has one")
    }

    /// Where n1 sends.
    fn sends_to(&self) -> Vec<String> {
        let destinations = self.object("n1").spec.0.taps.iter().flat_map(|tap| &tap.destinations);
        destinations.map(|to| to.address.to_string()).collect()
    }

    /// The number of receivers on each node.
    fn receivers(&self) -> Vec<(&str, usize)> {
        let count = |object: &NodeTap| object.spec.0.receivers.len();
        let mut all: Vec<_> =
            self.world.node_taps.iter().map(|o| (o.metadata.name.as_deref().unwrap_or_default(), count(o))).collect();
        all.retain(|(_, count)| *count > 0);
        all
    }
}

fn at(node: &str) -> Value {
    json!({"node": {"name": node}})
}

#[test]
fn a_node_sends_to_the_old_destination_until_the_new_one_is_in_place() {
    let mut cluster = Cluster::new(&at("n2"));
    assert_eq!((cluster.sends_to(), cluster.receivers()), (vec!["10.0.0.2".into()], vec![("n2", 1)]));
    cluster.change(json!([at("n3")]));
    assert_eq!(cluster.reconcile(), ["n2", "n3"], "n1 keeps sending to n2, which accepts frames from n3, too");
    assert_eq!((cluster.sends_to(), cluster.receivers()), (vec!["10.0.0.2".into()], vec![("n2", 1), ("n3", 1)]));
    assert_eq!(cluster.reconcile(), [""; 0]);
    cluster.apply(&["n3"]);
    assert_eq!(cluster.reconcile(), ["n1"]);
    assert_eq!((cluster.sends_to(), cluster.receivers()), (vec!["10.0.0.3".into()], vec![("n2", 1), ("n3", 1)]));
    assert_eq!(cluster.reconcile(), [""; 0], "n1 may still send to n2");
    cluster.apply(&["n1"]);
    assert_eq!(cluster.reconcile(), ["n2"]);
    assert_eq!((cluster.sends_to(), cluster.receivers()), (vec!["10.0.0.3".into()], vec![("n3", 1)]));
    cluster.apply(&["n2"]);
    assert_eq!(cluster.reconcile(), [""; 0]);
    assert_eq!((cluster.since.len(), cluster.next), (0, None));
}

#[test]
fn one_of_two_destinations_is_replaced() {
    let named = |name: &str, node: &str| json!({"name": name, "node": {"name": node}});
    let mut cluster = Cluster::new(&named("one", "n1"));
    cluster.change(json!([named("one", "n1"), named("two", "n2")]));
    cluster.reconcile();
    assert_eq!(cluster.sends_to(), ["10.0.0.1", "10.0.0.2"], "nothing is replaced");
    cluster.apply(&["n1", "n2"]);
    cluster.change(json!([named("one", "n1"), named("three", "n3")]));
    cluster.reconcile();
    assert_eq!(cluster.sends_to(), ["10.0.0.1", "10.0.0.2"]);
    cluster.apply(&["n1", "n3"]);
    cluster.reconcile();
    assert_eq!(cluster.sends_to(), ["10.0.0.1", "10.0.0.3"]);
}

#[test]
fn a_destination_that_is_removed_gets_nothing_more() {
    let named = |name: &str, node: &str| json!({"name": name, "node": {"name": node}});
    let mut cluster = Cluster::new(&named("one", "n1"));
    cluster.change(json!([named("one", "n1"), named("two", "n2")]));
    cluster.reconcile();
    cluster.apply(&["n1", "n2"]);
    cluster.change(json!([named("two", "n2")]));
    cluster.reconcile();
    assert_eq!((cluster.sends_to(), cluster.receivers()), (vec!["10.0.0.2".into()], vec![("n2", 1)]));
}

#[test]
fn an_old_destination_stays_for_a_while_only() {
    let mut cluster = Cluster::new(&at("n2"));
    cluster.change(json!([at("n3")]));
    cluster.world.seconds = 100;
    cluster.reconcile();
    assert_eq!(cluster.next, Some(crate::fixtures::at(130)));
    cluster.world.seconds = 129;
    assert_eq!(cluster.reconcile(), [""; 0]);
    cluster.world.seconds = 130;
    assert_eq!(cluster.reconcile(), ["n1", "n2"]);
    assert_eq!((cluster.sends_to(), cluster.receivers()), (vec!["10.0.0.3".into()], vec![("n3", 1)]));
}

type Change = fn(&mut World);

/// What opted out, is gone or is not in the cluster gets nothing from then on.
#[test]
fn not_every_old_destination_stays() {
    let consumer = || {
        let mut consumer = pod("shop", "consumer", "n2");
        consumer.metadata.labels = None;
        consumer
    };
    let changes: [(&str, Change); 4] = [
        ("the node has opted out", |world| {
            world.nodes[1].metadata.labels.get_or_insert_default().insert(podtap_api::EXCLUDE.into(), "true".into());
        }),
        ("the node is gone", |world| drop(world.nodes.remove(1))),
        ("the pod has opted out", |world| {
            let labels = world.pods[1].metadata.labels.get_or_insert_default();
            labels.insert(podtap_api::EXCLUDE.into(), "true".into());
        }),
        ("the pod is gone", |world| drop(world.pods.remove(1))),
    ];
    for (what, change) in changes {
        let mut cluster = Cluster::new(&at("n3"));
        cluster.world.pods.push(consumer());
        cluster.change(json!([{"pod": {"name": "consumer"}}]));
        cluster.reconcile();
        cluster.apply(&["n1", "n2", "n3"]);
        cluster.reconcile();
        cluster.apply(&["n1", "n2", "n3"]);
        cluster.reconcile();
        assert_eq!((cluster.sends_to(), cluster.receivers()), (vec!["10.0.0.2".to_owned()], vec![("n2", 1)]), "{what}");
        change(&mut cluster.world);
        cluster.change(json!([at("n3")]));
        cluster.reconcile();
        assert_eq!((cluster.sends_to(), cluster.receivers()), (vec!["10.0.0.3".to_owned()], vec![("n3", 1)]), "{what}");
    }

    let mut cluster = Cluster::new(&at("n3"));
    cluster.world.policy = Some(policy(json!({"allowedExternalCIDRs": ["192.0.2.0/24"]})));
    cluster.change(json!([{"external": {"address": "192.0.2.10"}}]));
    for _ in 0..3 {
        cluster.reconcile();
        cluster.apply(&["n1", "n2", "n3"]);
    }
    assert_eq!(cluster.sends_to(), ["192.0.2.10"]);
    cluster.change(json!([at("n3")]));
    cluster.reconcile();
    assert_eq!(cluster.sends_to(), ["10.0.0.3"]);
}

/// No spec asked for these to be sent to the old destination.
#[test]
fn an_old_destination_gets_nothing_new() {
    let changes: [Change; 3] = [
        |world| world.pods.push(pod("shop", "another", "n1")),
        |world| world.taps[0].spec.mirror.direction = podtap_model::Direction::Ingress,
        |world| world.taps[0].spec.mirror.options.filter = Some(object(json!({"exclude": [{"protocol": "SCTP"}]}))),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut cluster = Cluster::new(&at("n2"));
        cluster.change(json!([at("n3")]));
        cluster.reconcile();
        assert_eq!(cluster.sends_to(), ["10.0.0.2"]);
        change(&mut cluster.world);
        cluster.reconcile();
        assert_eq!(cluster.sends_to(), ["10.0.0.3"], "change {number}");
    }
}

/// The younger tap takes the name that the older one gives up.
#[test]
fn an_interface_in_the_way_of_another_tap_goes_at_once() {
    let named = |node: &str, name: &str| json!({"node": {"name": node, "interfaceName": name}});
    let mut cluster = Cluster::new(&named("n2", "mirror"));
    cluster.change(json!([named("n3", "mirror")]));
    let mut other = tap("u", json!([named("n2", "mirror")]));
    other.metadata.uid = Some("tap-u".into());
    cluster.world.taps.push(other);
    cluster.reconcile();
    let receivers: Vec<_> = cluster.object("n2").spec.0.receivers.iter().map(|r| r.tap.name.clone()).collect();
    assert_eq!(receivers, ["u"]);
}

/// The old interface has the name that the new one needs.
#[test]
fn an_interface_of_the_same_name_is_replaced_at_once() {
    let named = |name: &str| json!({"name": name, "node": {"name": "n2", "interfaceName": "mirror"}});
    let mut cluster = Cluster::new(&named("one"));
    cluster.change(json!([named("two")]));
    cluster.reconcile();
    assert_eq!(cluster.receivers(), [("n2", 1)]);
    assert_eq!(cluster.object("n1").spec.0.taps[0].destinations[0].vni, cluster.object("n2").spec.0.receivers[0].vni);
}

#[test]
fn a_tap_that_ends_sends_nothing_more() {
    let mut cluster = Cluster::new(&at("n2"));
    cluster.change(json!([at("n3")]));
    cluster.reconcile();
    cluster.world.taps[0].spec.mirror.suspend = true;
    cluster.reconcile();
    assert_eq!((cluster.sends_to().len(), cluster.receivers().len()), (0, 0));
}
