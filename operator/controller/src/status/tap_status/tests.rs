use std::collections::BTreeMap;

use podtap_api::{
    CONDITION_DEGRADED, CONDITION_DELIVERING, CONDITION_DESTINATIONS_READY, CONDITION_READY, CONDITION_TAPPED,
    CONDITION_TARGETS_RESOLVED, NodeTap, PodTap,
};
use podtap_model::{NodeState, Reason, State};
use serde_json::{Value, json};

use super::*;
use crate::{
    apply::objects::Applied,
    fixtures::{World, at, derived, lost, object, pod, policy, started, tap, time},
    plan::vni::Vnis,
    status::{
        conditions::{OWN_TYPES, condition},
        progress::Reports,
    },
    store::generations::Generations,
};

mod churn;
mod delivery;

fn web() -> PodTap {
    tap("t", json!([{"node": {"name": "n2"}}]))
}

/// The status of the first tap, and what it lacks, if `waits` is what it lacked before.
fn status_and_waits(world: &World, claims: &Vnis, helpers: &[&str], waits: &Waits) -> (PodTapStatus, Waits) {
    world.plan(claims, |snapshot, _, plan| {
        let failure = |node: &&str| ((*node).to_owned(), Failure::new(Reason::HelperPodFailed, "cannot pull"));
        let applied = Applied {
            node_taps: snapshot.node_taps.clone(),
            helper_failures: helpers.iter().map(failure).collect(),
            ..Applied::default()
        };
        let mut generations = Generations::default();
        generations.observe(&snapshot.node_taps);
        let reports = Reports::new(&applied);
        let inputs = StatusInputs { snapshot, applied: &applied, reports: &reports, generations: &generations };
        tap_status(&plan.taps[0], inputs, waits)
    })
}

/// The status of the first tap.
fn current(world: &World, claims: &Vnis) -> PodTapStatus {
    status_and_waits(world, claims, &[], &Waits::default()).0
}

/// The status of the first tap after `change` was made to what the nodes report, and without the helper pods of these nodes.
fn status_of(world: &World, change: impl Fn(&mut NodeTap), helpers: &[&str]) -> PodTapStatus {
    let (mut settled, claims) = world.settled(&Vnis::default());
    settled.node_taps.iter_mut().for_each(change);
    settled.seconds = 7;
    status_and_waits(&settled, &claims, helpers, &Waits::default()).0
}

fn settled(world: &World) -> PodTapStatus {
    status_of(world, |_| {}, &[])
}

fn summary(status: &PodTapStatus) -> BTreeMap<&str, (&str, Reason)> {
    let reason = |text: &str| *Reason::ALL.iter().find(|reason| reason.as_str() == text).expect("a reason");
    status.conditions.iter().map(|c| (c.type_.as_str(), (c.status.as_str(), reason(&c.reason)))).collect()
}

fn message<'a>(status: &'a PodTapStatus, kind: &str) -> &'a str {
    status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.message.as_str()).unwrap_or_default()
}

/// `Ready` is True exactly if the next three are and Delivering is not False, and all six say why, for the generation at hand.
#[track_caller]
fn assert_conventions(status: &PodTapStatus) {
    let kinds: Vec<&str> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(kinds, OWN_TYPES);
    for condition in &status.conditions {
        assert!(!condition.reason.is_empty() && !condition.message.is_empty(), "{condition:?}");
        assert!(condition.message.len() <= 32_768);
        assert_eq!(condition.observed_generation, status.observed_generation);
    }
    let summary = summary(status);
    let others = OWN_TYPES[1..4].iter().all(|kind| summary[kind].0 == "True");
    let others = others && summary[CONDITION_DELIVERING].0 != "False";
    assert_eq!(summary[CONDITION_READY].0 == "True", others, "{summary:?}");
}

#[test]
fn everything_in_place() {
    let status = settled(&World::with(web()));
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("True", Reason::AsExpected));
    assert_eq!(summary(&status)[CONDITION_DEGRADED], ("False", Reason::AsExpected));
    let vni = derived("tap-t", "");
    assert_eq!((status.matched_pods, status.tapped_pods, status.vni), (1, 1, Some(vni)));
    assert_eq!(status.destination, format!("node/n2:ptap{vni}"));
    let destination = &status.destinations[0];
    assert_eq!(
        (destination.ready, destination.node.as_deref(), destination.address.as_deref()),
        (true, Some("n2"), Some("10.0.0.2"))
    );
    assert_eq!((status.start_time, status.expiration_time), (time(7), None));
    assert_eq!(status.observed_generation, Some(1));
}

#[test]
fn all_conditions_are_present_from_the_first_reconcile() {
    let status = current(&World::with(web()), &Vnis::default());
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_TARGETS_RESOLVED].0, "True");
    assert_eq!(summary(&status)[CONDITION_TAPPED], ("False", Reason::Pending));
    assert_eq!(summary(&status)[CONDITION_DEGRADED], ("False", Reason::Pending));
    assert_eq!((status.tapped_pods, status.start_time), (0, None));
}

#[test]
fn a_report_on_an_older_generation_says_nothing() {
    let status = status_of(&World::with(web()), |node_tap| node_tap.metadata.generation = Some(2), &[]);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", Reason::Pending));
    assert_eq!(status.tapped_pods, 0);
}

/// The node refuses all of its senders.
fn refuse(node_tap: &mut NodeTap) {
    for sender in node_tap.status.iter_mut().flat_map(|status| &mut status.senders) {
        (sender.state, sender.reason) = (State::Refused, Reason::InterfaceNotFound);
        sender.message = "there is no net7".into();
    }
}

#[test]
fn a_pod_that_a_node_refuses() {
    let mut world = World::with(web());
    world.pods.push(pod("shop", "web-2", "n2"));
    let status = status_of(&world, refuse, &[]);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", Reason::InterfaceNotFound));
    assert_eq!(message(&status, CONDITION_TAPPED), "0 of 2 pods tapped; pod web: node n1: there is no net7");
    assert_eq!(message(&status, CONDITION_DEGRADED), "see Ready", "nothing is mirrored");
    let failures: Vec<_> = status.failures.iter().map(|f| (f.pod.as_str(), f.node.as_deref())).collect();
    assert_eq!(failures, [("web", Some("n1")), ("web-2", Some("n2"))]);
}

/// One pod cannot be tapped, and frames of another may be hidden: each condition says its own.
#[test]
fn a_tap_can_be_degraded_and_not_ready() {
    let mut world = World::with(web());
    world.pods.push(pod("shop", "web-2", "n2"));
    let status = status_of(
        &world,
        |node_tap| {
            let is_first = node_tap.metadata.name.as_deref() == Some("n1");
            if is_first { hiding(&["Frames may be missing."])(node_tap) } else { refuse(node_tap) }
        },
        &[],
    );
    assert_conventions(&status);
    let found = summary(&status);
    assert_eq!(found[CONDITION_READY], ("False", Reason::InterfaceNotFound));
    assert_eq!(found[CONDITION_DEGRADED], ("True", Reason::FramesHidden));
    assert_eq!(message(&status, CONDITION_DEGRADED), "node n1: Frames may be missing");
}

/// A VXLAN endpoint acknowledges nothing.
#[test]
fn ready_says_that_delivery_to_an_external_endpoint_is_unknown() {
    let with = |destinations: Value| {
        let mut world = World::with(tap("t", destinations));
        world.policy = Some(policy(json!({"allowedExternalCIDRs": ["192.0.2.0/24"]})));
        let status = settled(&world);
        assert_eq!(summary(&status)[CONDITION_READY], ("True", Reason::AsExpected));
        message(&status, CONDITION_READY).to_owned()
    };
    let sensor = json!({"name": "a", "external": {"address": "192.0.2.10"}});
    let other = json!({"name": "b", "external": {"address": "192.0.2.11", "port": 9}});
    let node = json!({"name": "c", "node": {"name": "n2", "interfaceName": "x"}});
    let end = |message: String| message.split_once(" mirrored to ").map(|(_, end)| end.to_owned());
    let words = "node/n2:x, 192.0.2.10:4789; whether 192.0.2.10:4789 receives the frames is unknown";
    assert_eq!(end(with(json!([node, sensor]))).as_deref(), Some(words));
    let words = "192.0.2.10:4789, 192.0.2.11:9; whether 192.0.2.10:4789 and 192.0.2.11:9 receive the frames is unknown";
    assert_eq!(end(with(json!([sensor, other]))).as_deref(), Some(words));
    assert_eq!(end(with(json!([node]))).as_deref(), Some("node/n2:x"));
}

/// Each sender of a node reports that frames may be hidden.
fn hiding(messages: &[&str]) -> impl Fn(&mut NodeTap) {
    let messages: Vec<String> = messages.iter().map(|message| (*message).to_owned()).collect();
    move |node_tap| {
        for sender in node_tap.status.iter_mut().flat_map(|status| &mut status.senders) {
            sender.degraded.clone_from(&messages);
        }
    }
}

#[test]
fn what_may_hide_frames_is_reported_with_the_nodes() {
    let mut world = World::with(web());
    world.pods.extend([pod("shop", "web-2", "n1"), pod("shop", "web-3", "n2")]);
    let status = status_of(&world, hiding(&["Frames may be missing."]), &[]);
    assert_conventions(&status);
    let words = "nodes n1, n2: Frames may be missing";
    assert_eq!(summary(&status)[CONDITION_DEGRADED], ("True", Reason::FramesHidden));
    assert_eq!(message(&status, CONDITION_DEGRADED), words);
    assert_eq!(summary(&status)[CONDITION_READY].0, "True");
    let ready = message(&status, CONDITION_READY);
    let words =
        format!("mirrored to node/n2:ptap{}, but other programs may hide frames: see Degraded", derived("tap-t", ""));
    assert!(ready.ends_with(&words), "{ready}");

    let status = status_of(&world, hiding(&["a", "b", "c", "d", "e", "f"]), &[]);
    assert!(message(&status, CONDITION_DEGRADED).ends_with("; nodes n1, n2: d; and 2 more messages"));

    // A sender that mirrors nothing lacks nothing.
    let refused = |node_tap: &mut NodeTap| {
        hiding(&["a"])(node_tap);
        let senders = node_tap.status.iter_mut().flat_map(|status| &mut status.senders);
        senders.for_each(|sender| sender.state = State::Refused);
    };
    let status = status_of(&world, refused, &[]);
    assert_eq!(summary(&status)[CONDITION_DEGRADED].0, "False");
}

#[test]
fn frames_may_be_hidden_on_many_nodes() {
    let mut world = World::with(web());
    for index in 3..10 {
        world.nodes.push(crate::fixtures::node(&format!("n{index}"), &["10.0.0.9"]));
        world.pods.push(pod("shop", &format!("web-{index}"), &format!("n{index}")));
    }
    let status = status_of(&world, hiding(&["a"]), &[]);
    assert_eq!(message(&status, CONDITION_DEGRADED), "nodes n1, n3, n4, n5, n6 and 3 more: a");
}

#[test]
fn an_invalid_expression_changes_nothing_else_of_an_established_tap() {
    let with = |mut tap: PodTap, expression: &str| {
        tap.spec.mirror.options.filter = Some(object(json!({"expression": expression})));
        tap
    };
    for before in [web(), with(web(), "arp")] {
        let (mut world, claims) = World::with(before).settled(&Vnis::default());
        let specs: BTreeMap<String, NodeState> =
            world.node_taps.iter().map(|n| (n.metadata.name.clone().expect("a name"), n.spec.0.clone())).collect();
        world.taps[0] = with(world.taps[0].clone(), "tcp prot 443");
        world.plan(&claims, |_, _, plan| assert_eq!(plan.nodes, specs));
        let status = current(&world, &claims);
        assert_conventions(&status);
        assert_eq!(summary(&status)[CONDITION_READY], ("False", Reason::InvalidSpec));
        assert_eq!(summary(&status)[CONDITION_DESTINATIONS_READY].0, "True");
        assert_eq!(status.tapped_pods, 1);
        let words = message(&status, CONDITION_TAPPED);
        assert!(
            words.contains("1 of 1 pod tapped, with the previous expression: filter.expression \"tcp prot 443\""),
            "{words}"
        );
    }
}

#[test]
fn failures_are_bounded() {
    let names: Vec<String> = (0..30).map(|index| format!("host-{index}")).chain(["web".to_owned()]).collect();
    let mut tap = web();
    tap.spec.targets = object(json!({"podNames": names}));
    let mut world = World::with(tap);
    for index in 0..30 {
        let mut pod = pod("shop", &format!("host-{index}"), "n1");
        pod.spec.as_mut().expect("a spec").host_network = Some(true);
        world.pods.push(pod);
    }
    let status = settled(&world);
    assert_conventions(&status);
    assert_eq!((status.failures.len(), status.matched_pods, status.tapped_pods), (MAX_FAILURES, 31, 1));
    assert!(message(&status, CONDITION_TARGETS_RESOLVED).contains("29 other pods"));
}

#[test]
fn a_receiver_whose_name_is_taken() {
    let take = |node_tap: &mut NodeTap| {
        for receiver in node_tap.status.iter_mut().flat_map(|status| &mut status.receivers) {
            (receiver.state, receiver.reason) = (State::Refused, Reason::InterfaceNameConflict);
            receiver.message = "mirror is a dummy".into();
        }
    };
    let status = status_of(&World::with(web()), take, &[]);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_DESTINATIONS_READY], ("False", Reason::InterfaceNameConflict));
    assert_eq!(message(&status, CONDITION_DESTINATIONS_READY), "node n2: mirror is a dummy");
    assert_eq!(summary(&status)[CONDITION_TAPPED].0, "True");
    assert!(!status.destinations[0].ready);
}

#[test]
fn a_helper_that_does_not_run() {
    let mut world = World::with(web());
    // Nothing is tapped yet, since there is no helper pod.
    let forget = |node_tap: &mut NodeTap| node_tap.status = None;
    let status = status_of(&world, forget, &["n1"]);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_TAPPED], ("False", Reason::HelperPodFailed));
    assert_eq!(summary(&status)[CONDITION_DESTINATIONS_READY], ("False", Reason::Pending));
    // Mirrors keep working, but changes are not applied.
    let status = status_of(&world, |_| {}, &["n1"]);
    assert_eq!(status.tapped_pods, 1);
    assert_eq!(summary(&status)[CONDITION_TAPPED], ("False", Reason::HelperPodFailed));
    assert!(message(&status, CONDITION_TAPPED).contains("changes are not applied"));
    // Helper pods of other nodes do not matter.
    world.nodes.push(crate::fixtures::node("n3", &["10.0.0.3"]));
    assert_eq!(summary(&status_of(&world, |_| {}, &["n3"]))[CONDITION_READY].0, "True");
}

#[test]
fn a_node_that_is_not_ready() {
    let (mut world, claims) = World::with(web()).settled(&Vnis::default());
    world.nodes[0] = lost(world.nodes[0].clone());
    world.pods[0] = started(world.pods[0].clone());
    let status = current(&world, &claims);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_TAPPED], ("False", Reason::NodeNotReady));
}

#[test]
fn suspended_expired_and_invalid() {
    let mut suspended = web();
    suspended.spec.mirror.suspend = true;
    let status = settled(&World::with(suspended));
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", Reason::Suspended));
    assert_eq!(status.failures, []);

    let suspend_all = policy(json!({"suspendAll": true}));
    let status = settled(&World { policy: Some(suspend_all), ..World::with(web()) });
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", Reason::Suspended));
    assert!(message(&status, CONDITION_READY).contains("PodTapPolicy default suspends all taps"));

    let mut expired = web();
    expired.spec.mirror.duration = Some(std::time::Duration::from_secs(5).into());
    expired.status = Some(PodTapStatus { start_time: time(0), ..PodTapStatus::default() });
    let status = settled(&World::with(expired));
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", Reason::Expired));
    assert_eq!((status.vni, status.start_time, status.expiration_time), (None, time(0), time(5)));

    let status = settled(&World::with(tap("t", json!([]))));
    assert_conventions(&status);
    assert!(summary(&status).values().all(|condition| *condition == ("False", Reason::InvalidSpec)));
}

/// How many conditions have a message with these words.
fn mentions(status: &PodTapStatus, words: &str) -> Vec<String> {
    let with = status.conditions.iter().filter(|condition| condition.message.contains(words));
    with.map(|condition| condition.type_.clone()).collect()
}

#[test]
fn a_failure_is_told_by_its_owner_and_by_ready() {
    let status = settled(&World::with(tap("t", json!([]))));
    assert_eq!(mentions(&status, "one to four destinations"), [CONDITION_READY]);
    assert_eq!(mentions(&status, "see Ready").len(), 5);

    let mut world = World::with(web());
    world.pods.clear();
    let status = settled(&world);
    assert_eq!(mentions(&status, "no pod of the namespace"), [CONDITION_READY, CONDITION_TARGETS_RESOLVED]);
    assert_eq!(message(&status, CONDITION_TAPPED), "see TargetsResolved");

    let status = settled(&World::with(tap("t", json!([{"node": {"name": "n9"}}]))));
    assert_eq!(mentions(&status, "no node n9"), [CONDITION_READY, CONDITION_DESTINATIONS_READY]);
    assert!(message(&status, CONDITION_TAPPED).ends_with("see DestinationsReady"));
}

#[test]
fn messages_name_what_is_awaited() {
    let awaited = |world: &World| {
        let status = current(world, &Vnis::default());
        (status.conditions[2].message.clone(), status.conditions[3].message.clone())
    };
    let mut world = World::with(web());
    assert_eq!(
        awaited(&world),
        (
            "node n2 is about to learn of it".into(),
            "0 of 1 pod tapped, 1 pending; pod web: node n1 is about to learn of it".into()
        )
    );
    world = world.settled(&Vnis::default()).0;
    world.node_taps.iter_mut().for_each(|node_tap| node_tap.status = None);
    assert!(awaited(&world).0.contains("the helper pod of node n2 is being created"), "{:?}", awaited(&world));
    let mut helper = pod(crate::fixtures::OWN_NAMESPACE, "podtap-helper-n2", "n2");
    helper.metadata.labels = Some(
        [("app.kubernetes.io/name", "podtap"), ("app.kubernetes.io/component", "helper")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    );
    world.pods.push(helper);
    assert!(awaited(&world).0.contains("node n2 has not reported on it yet"), "{:?}", awaited(&world));
    world.pods[1].status = None;
    assert!(awaited(&world).0.contains("the helper pod of node n2 is starting"), "{:?}", awaited(&world));
}

#[test]
fn time_counts_from_the_first_tapped_pod() {
    let mut limited = web();
    limited.spec.mirror.duration = Some(std::time::Duration::from_secs(60).into());
    let status = settled(&World::with(limited.clone()));
    assert_eq!((status.start_time, status.expiration_time), (time(7), time(67)));
    limited.status = Some(PodTapStatus { start_time: time(3), ..PodTapStatus::default() });
    let status = settled(&World::with(limited));
    assert_eq!((status.start_time, status.expiration_time), (time(3), time(63)));
}

#[test]
fn transitions_keep_their_time() {
    let before = settled(&World::with(web())).conditions;
    let result = || Ok(Failure::new(Reason::AsExpected, "other words"));
    let same = condition(CONDITION_READY, result(), 2, &before, at(99));
    assert_eq!((same.last_transition_time.0, same.observed_generation), (at(7), Some(2)));
    let other = condition(CONDITION_READY, Err(Failure::new(Reason::Pending, "w")), 2, &before, at(99));
    assert_eq!(other.last_transition_time.0, at(99));
}
