use std::collections::BTreeMap;

use podtap_api::{NodeTap, PodTap};
use serde_json::json;

use super::*;
use crate::{fixtures::{at, lost, pod, tap, time, World}, plan::vni::Claims};

fn web() -> PodTap {
    tap("t", json!([{"node": {"name": "n2"}}]))
}

/// The status of the first tap after `change` was made to what the nodes report, and with these problems of helpers.
fn status_of(world: &World, change: impl Fn(&mut NodeTap), helpers: &[&str]) -> PodTapStatus {
    let (mut settled, claims) = world.settled(&Claims::new());
    settled.node_taps.iter_mut().for_each(change);
    settled.seconds = 7;
    settled.plan(&claims, |snapshot, _, plan| {
        let failure = |node: &&str| ((*node).to_owned(), Failure::new(reason::HELPER_FAILED, "cannot pull"));
        let applied = Applied {
            node_taps: snapshot.node_taps.clone(),
            helper_failures: helpers.iter().map(failure).collect(),
            errors: Vec::new(),
        };
        let mut generations = Generations::default();
        generations.look(&snapshot.node_taps);
        status(&plan.taps_[0], StatusInputs { snapshot, applied: &applied, generations: &generations })
    })
}

fn settled(world: &World) -> PodTapStatus {
    status_of(world, |_| {}, &[])
}

fn summary(status: &PodTapStatus) -> BTreeMap<&str, (&str, &str)> {
    status.conditions.iter().map(|c| (c.type_.as_str(), (c.status.as_str(), c.reason.as_str()))).collect()
}

fn message<'a>(status: &'a PodTapStatus, kind: &str) -> &'a str {
    status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.message.as_str()).unwrap_or_default()
}

/// `Ready` is True exactly if the next three are, and all five say why, for the generation at hand.
#[track_caller]
fn assert_conventions(status: &PodTapStatus) {
    let kinds: Vec<&str> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(kinds, OURS);
    for condition in &status.conditions {
        assert!(!condition.reason.is_empty() && !condition.message.is_empty(), "{condition:?}");
        assert!(condition.message.len() <= 32_768);
        assert_eq!(condition.observed_generation, status.observed_generation);
    }
    let summary = summary(status);
    let others = OURS[1..4].iter().all(|kind| summary[kind].0 == "True");
    assert_eq!(summary[CONDITION_READY].0 == "True", others, "{summary:?}");
}

#[test]
fn everything_in_place() {
    let status = settled(&World::with(web()));
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("True", reason::ESTABLISHED));
    assert_eq!(summary(&status)[CONDITION_DEGRADED], ("False", reason::NOTHING_MISSING));
    assert_eq!((status.matched_pods, status.tapped_pods, status.vni), (1, 1, Some(100)));
    assert_eq!(status.destination, "node/n2:ptap100");
    let destination = &status.destinations[0];
    assert_eq!((destination.ready, destination.node.as_str(), destination.address.as_str()), (true, "n2", "10.0.0.2"));
    assert_eq!((status.start_time, status.expires_at), (time(7), None));
    assert_eq!(status.observed_generation, Some(1));
}

#[test]
fn the_first_visit_says_everything() {
    let world = World::with(web());
    let status = world.plan(&Claims::new(), |snapshot, _, plan| {
        let applied = Applied { node_taps: BTreeMap::new(), helper_failures: BTreeMap::new(), errors: Vec::new() };
        status(&plan.taps_[0], StatusInputs { snapshot, applied: &applied, generations: &Generations::default() })
    });
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_TARGETS_RESOLVED].0, "True");
    assert_eq!(summary(&status)[CONDITION_TAPPED], ("False", reason::WAITING));
    assert_eq!(summary(&status)[CONDITION_DEGRADED], ("False", reason::WAITING));
    assert_eq!((status.tapped_pods, status.start_time), (0, None));
}

#[test]
fn a_report_on_an_older_generation_says_nothing() {
    let status = status_of(&World::with(web()), |node_tap| node_tap.metadata.generation = Some(2), &[]);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", reason::WAITING));
    assert_eq!(status.tapped_pods, 0);
}

#[test]
fn a_pod_that_a_node_refuses() {
    let refuse = |node_tap: &mut NodeTap| {
        for sender in node_tap.status.iter_mut().flat_map(|status| &mut status.senders) {
            (sender.state, sender.reason) = (ItemState::Refused, "InterfaceNotFound".into());
            sender.message = "there is no net7".into();
        }
    };
    let mut world = World::with(web());
    world.pods.push(pod("shop", "web-2", "n2"));
    let status = status_of(&world, refuse, &[]);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", "InterfaceNotFound"));
    assert!(message(&status, CONDITION_TAPPED).contains("0 of 2 pods tapped; pod web: there is no net7"));
    let failures: Vec<_> = status.failures.iter().map(|f| (f.pod.as_str(), f.node.as_str())).collect();
    assert_eq!(failures, [("web", "n1"), ("web-2", "n2")]);
}

/// What each sender of a node says that its kernel cannot do.
fn limited(sentences: &[&str]) -> impl Fn(&mut NodeTap) {
    let sentences: Vec<String> = sentences.iter().map(|sentence| (*sentence).to_owned()).collect();
    move |node_tap| {
        for sender in node_tap.status.iter_mut().flat_map(|status| &mut status.senders) {
            sender.degraded.clone_from(&sentences);
        }
    }
}

#[test]
fn a_kernel_that_cannot_do_all_of_it() {
    let mut world = World::with(web());
    world.pods.extend([pod("shop", "web-2", "n1"), pod("shop", "web-3", "n2")]);
    let status = status_of(&world, limited(&["filter.expression needs eBPF."]), &[]);
    assert_conventions(&status);
    let words = "nodes n1, n2: filter.expression needs eBPF";
    assert_eq!(summary(&status)[CONDITION_DEGRADED], ("True", reason::KERNEL_LIMITED));
    assert_eq!(message(&status, CONDITION_DEGRADED), words);
    assert_eq!(summary(&status)[CONDITION_READY].0, "True");
    assert!(message(&status, CONDITION_READY).contains(&format!("but not as spec says (Degraded): {words}")));

    let status = status_of(&world, limited(&["a", "b", "c", "d", "e", "f"]), &[]);
    assert!(message(&status, CONDITION_DEGRADED).ends_with("; nodes n1, n2: d; and 2 more limits, see the NodeTaps"));

    // One that copies nothing lacks nothing.
    let refused = |node_tap: &mut NodeTap| {
        limited(&["a"])(node_tap);
        let senders = node_tap.status.iter_mut().flat_map(|status| &mut status.senders);
        senders.for_each(|sender| sender.state = ItemState::Refused);
    };
    let status = status_of(&world, refused, &[]);
    assert_eq!(summary(&status)[CONDITION_DEGRADED], ("False", reason::WAITING));
}

#[test]
fn many_nodes_that_cannot_do_all_of_it() {
    let mut world = World::with(web());
    for index in 3..10 {
        world.nodes.push(crate::fixtures::node(&format!("n{index}"), &["10.0.0.9"]));
        world.pods.push(pod("shop", &format!("web-{index}"), &format!("n{index}")));
    }
    let status = status_of(&world, limited(&["a"]), &[]);
    assert_eq!(message(&status, CONDITION_DEGRADED), "nodes n1, n3, n4, n5, n6 and 3 more: a");
}

#[test]
fn a_mistake_in_the_expression_of_a_tap_that_stands_changes_nothing_else() {
    let with = |mut tap: PodTap, expression: &str| {
        tap.spec.filter = Some(crate::fixtures::object(json!({"expression": expression})));
        tap
    };
    for before in [web(), with(web(), "arp")] {
        let (mut world, claims) = World::with(before).settled(&Claims::new());
        let specs: BTreeMap<_, _> = world.node_taps.iter().map(|n| (n.metadata.name.clone(), n.spec.clone())).collect();
        world.taps[0] = with(world.taps[0].clone(), "tcp prot 443");
        let status = world.plan(&claims, |snapshot, _, plan| {
            let planned: BTreeMap<_, _> = plan.nodes.iter().map(|(n, spec)| (Some(n.clone()), spec.clone())).collect();
            let same = planned.values().zip(specs.values()).all(|(new, old)| {
                let programs = |spec: &podtap_api::NodeTapSpec| {
                    let filters = spec.treatments.iter().filter_map(|t| t.filter.clone());
                    filters.map(|filter| filter.expression).filter(|program| !program.is_empty()).collect::<Vec<_>>()
                };
                programs(new) == programs(old) && new.senders.len() == old.senders.len()
            });
            assert!(same && planned.keys().eq(specs.keys()), "{planned:?}");
            let node_taps = snapshot.node_taps.clone();
            let applied = Applied { node_taps, helper_failures: BTreeMap::new(), errors: Vec::new() };
            let mut generations = Generations::default();
            generations.look(&snapshot.node_taps);
            status(&plan.taps_[0], StatusInputs { snapshot, applied: &applied, generations: &generations })
        });
        assert_conventions(&status);
        assert_eq!(summary(&status)[CONDITION_READY], ("False", reason::INVALID_SPEC));
        assert_eq!(summary(&status)[CONDITION_DESTINATIONS_READY].0, "True");
        assert_eq!(status.tapped_pods, 1);
        let words = message(&status, CONDITION_TAPPED);
        assert!(
            words.contains("1 of 1 pod tapped, with the expression before: filter.expression \"tcp prot 443\""),
            "{words}"
        );
    }
}

#[test]
fn networks_that_nobody_knows() {
    let mut once = web();
    once.spec.deduplicate = Some(podtap_api::Deduplicate::default());
    let status = settled(&World::with(once.clone()));
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_DEGRADED], ("True", reason::NETWORKS_UNKNOWN));
    assert!(message(&status, CONDITION_DEGRADED).contains("set deduplicate.podCIDRs"));
    let status = status_of(&World::with(once), limited(&["a"]), &[]);
    let words = message(&status, CONDITION_DEGRADED);
    assert!(words.contains("set deduplicate.podCIDRs; node n1: a"), "{words}");
}

#[test]
fn failures_are_bounded() {
    let mut world = World::with(web());
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
            (receiver.state, receiver.reason) = (ItemState::Refused, "NameTaken".into());
            receiver.message = "mirror is a dummy".into();
        }
    };
    let status = status_of(&World::with(web()), take, &[]);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_DESTINATIONS_READY], ("False", "NameTaken"));
    assert_eq!(summary(&status)[CONDITION_TAPPED].0, "True");
    assert!(!status.destinations[0].ready);
}

#[test]
fn a_helper_that_does_not_run() {
    let mut world = World::with(web());
    // Nothing is there yet: the helper is why.
    let forget = |node_tap: &mut NodeTap| node_tap.status = None;
    let status = status_of(&world, forget, &["n1"]);
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_TAPPED], ("False", reason::HELPER_FAILED));
    assert_eq!(summary(&status)[CONDITION_DESTINATIONS_READY], ("False", reason::WAITING));
    // What stands goes on, but is not looked after.
    let status = status_of(&world, |_| {}, &["n1"]);
    assert_eq!(status.tapped_pods, 1);
    assert_eq!(summary(&status)[CONDITION_TAPPED], ("False", reason::HELPER_FAILED));
    assert!(message(&status, CONDITION_TAPPED).contains("changes are not followed"));
    // A helper elsewhere is no concern of this tap.
    world.nodes.push(crate::fixtures::node("n3", &["10.0.0.3"]));
    assert_eq!(summary(&status_of(&world, |_| {}, &["n3"]))[CONDITION_READY].0, "True");
}

#[test]
fn a_node_that_is_away() {
    let (mut world, claims) = World::with(web()).settled(&Claims::new());
    world.nodes[0] = lost(world.nodes[0].clone());
    let status = world.plan(&claims, |snapshot, _, plan| {
        let node_taps = snapshot.node_taps.clone();
        let applied = Applied { node_taps, helper_failures: BTreeMap::new(), errors: Vec::new() };
        status(&plan.taps_[0], StatusInputs { snapshot, applied: &applied, generations: &Generations::default() })
    });
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_TAPPED], ("False", reason::NODE_NOT_READY));
}

#[test]
fn suspended_expired_and_invalid() {
    let mut suspended = web();
    suspended.spec.suspend = true;
    let status = settled(&World::with(suspended));
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", reason::SUSPENDED));
    assert_eq!(status.failures, []);

    let mut expired = web();
    expired.spec.duration_seconds = Some(5);
    expired.status = Some(PodTapStatus { start_time: time(0), ..PodTapStatus::default() });
    let status = settled(&World::with(expired));
    assert_conventions(&status);
    assert_eq!(summary(&status)[CONDITION_READY], ("False", reason::EXPIRED));
    assert_eq!((status.vni, status.start_time, status.expires_at), (None, time(0), time(5)));

    let status = settled(&World::with(tap("t", json!([]))));
    assert_conventions(&status);
    assert!(summary(&status).values().all(|condition| *condition == ("False", reason::INVALID_SPEC)));
}

#[test]
fn time_counts_from_the_first_tapped_pod() {
    let mut limited = web();
    limited.spec.duration_seconds = Some(60);
    let status = settled(&World::with(limited.clone()));
    assert_eq!((status.start_time, status.expires_at), (time(7), time(67)));
    limited.status = Some(PodTapStatus { start_time: time(3), ..PodTapStatus::default() });
    let status = settled(&World::with(limited));
    assert_eq!((status.start_time, status.expires_at), (time(3), time(63)));
}

#[test]
fn transitions_keep_their_time() {
    let before = settled(&World::with(web())).conditions;
    let verdict = || Ok(Failure::new(reason::ESTABLISHED, "other words"));
    let same = condition(CONDITION_READY, verdict(), 2, &before, at(99));
    assert_eq!((same.last_transition_time.0, same.observed_generation), (at(7), Some(2)));
    let other = condition(CONDITION_READY, Err(Failure::new(reason::WAITING, "w")), 2, &before, at(99));
    assert_eq!(other.last_transition_time.0, at(99));
}
