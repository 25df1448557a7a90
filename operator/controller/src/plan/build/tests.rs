use podtap_api::NodeTapEndpoint;
use serde_json::json;

use super::*;
use crate::{fixtures::{lost, node, object, pod, policy, tap, time, World}};

mod properties;

fn to_n2() -> serde_json::Value {
    json!([{"node": {"name": "n2"}}])
}

/// Reasons for which the first tap's first target and first destination fail, and its standing.
fn verdicts(world: &World) -> (TapState, Option<String>, Option<String>) {
    world.plan(&Claims::new(), |_, _, plan| {
        let tap = &plan.taps_[0];
        let target = tap.targets.pods.first().and_then(|target| target.failure.as_ref());
        let destination = tap.destinations.first().and_then(|destination| destination.failure.as_ref());
        (tap.standing.clone(), target.map(|p| p.reason.clone()), destination.map(|p| p.reason.clone()))
    })
}

fn nodes(world: &World) -> BTreeMap<String, NodeTapSpec> {
    world.plan(&Claims::new(), |_, _, plan| plan.nodes)
}

fn reason_of(standing: &TapState) -> &str {
    match standing {
        TapState::Refused(failure) => &failure.reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn one_pod_one_node() {
    let nodes = nodes(&World::with(tap("t", to_n2())));
    assert_eq!(nodes.keys().collect::<Vec<_>>(), ["n1", "n2"]);
    let sender = &nodes["n1"].senders[0];
    let receiver = &nodes["n2"].receivers[0];
    assert_eq!((sender.pod.name.as_str(), sender.tap.uid.as_str()), ("web", "tap-t"));
    assert_eq!(sender.destinations, [NodeTapEndpoint { address: "10.0.0.2".into(), port: 14789, vni: 100 }]);
    assert_eq!((receiver.vni, receiver.interface_name.as_str(), receiver.ipv6), (100, "ptap100", false));
    assert_eq!((nodes["n1"].receivers.len(), nodes["n2"].senders.len()), (0, 0));
}

#[test]
fn frames_are_treated_as_the_spec_says() {
    let mut treated = tap("t", json!([{"node": {"name": "n2"}, "raw": true}, {"node": {"name": "n1"}}]));
    treated.spec.filter = Some(object(json!({"expression": "arp"})));
    let mut world = World::with(treated);
    world.pods.push(pod("shop", "web-2", "n1"));
    world.policy = Some(policy(json!({"underlayMTU": 1400})));
    let mut plain = tap("u", to_n2());
    plain.metadata.creation_timestamp = time(1);
    world.taps.push(plain);
    let specs = nodes(&world);
    let treated: Vec<_> = specs["n1"].senders.iter().map(|s| (s.tap.name.as_str(), s.treated)).collect();
    assert_eq!(treated, [("t", true), ("t", true), ("u", false), ("u", false)]);
    let treatments: Vec<_> = specs["n1"].treatments.iter().map(|t| t.tap_uid.as_str()).collect();
    assert_eq!(treatments, ["tap-t"], "once, and only where it is needed");
    assert!(specs["n2"].treatments.is_empty());
    assert_eq!((specs["n1"].underlay_mtu, specs["n2"].underlay_mtu), (Some(1400), None));
    let raw = |node: &str| specs[node].receivers.iter().map(|r| (r.tap.name.as_str(), r.raw)).collect::<Vec<_>>();
    assert_eq!((raw("n1"), raw("n2")), (vec![("t", false)], vec![("t", true), ("u", false)]));

    world.plan(&Claims::new(), |_, _, mut plan| {
        plan.exclude(&["tap-t".to_owned()].into());
        assert!(plan.nodes["n1"].treatments.is_empty());
    });
}

#[test]
fn an_expression_that_is_not_known_yet_keeps_its_tap_waiting() {
    let mut waiting = tap("t", to_n2());
    waiting.spec.filter = Some(object(json!({"expression": "arp"})));
    let mut snapshot = World::with(waiting).snapshot();
    snapshot.expressions.clear();
    let validated = crate::validate::tap::validate(&snapshot);
    let failure = validated.taps[0].spec.clone().expect_err("nothing can be done yet");
    assert_eq!(failure.reason, reason::WAITING);
}

#[test]
fn a_pod_that_is_bound_is_planned_before_it_runs() {
    let mut world = World::with(tap("t", to_n2()));
    world.pods[0].status = None;
    assert_eq!(nodes(&world)["n1"].senders[0].pod.addresses, Vec::<String>::new());
}

#[test]
fn several_destinations_get_every_frame() {
    let destinations =
        json!([{"node": {"name": "n2"}}, {"pod": {"name": "ids"}}, {"external": {"address": "192.0.2.7"}}]);
    let mut world = World::with(tap("t", destinations));
    world.pods.push(pod("shop", "ids", "n2"));
    world.policy = Some(policy(json!({"allowedExternalCIDRs": ["192.0.2.0/24"]})));
    let mut ids = world.pods.remove(1);
    ids.metadata.labels = None;
    world.pods.push(ids);
    let nodes = nodes(&world);
    let endpoints: Vec<_> =
        nodes["n1"].senders[0].destinations.iter().map(|d| (d.address.as_str(), d.port, d.vni)).collect();
    // Two receivers on one node have two VNIs; an external endpoint gets the primary one at the standard port.
    assert_eq!(endpoints, [("10.0.0.2", 14789, 100), ("10.0.0.2", 14789, 101), ("192.0.2.7", 4789, 100)]);
    let receivers: Vec<_> =
        nodes["n2"].receivers.iter().map(|r| (r.vni, r.pod.as_ref().map(|p| p.name.as_str()))).collect();
    assert_eq!(receivers, [(100, None), (101, Some("ids"))]);
}

#[test]
fn what_is_not_carried_out_is_on_no_node() {
    let mut suspended = tap("t", to_n2());
    suspended.spec.suspend = true;
    assert_eq!(verdicts(&World::with(suspended.clone())).0, TapState::Suspended);
    assert!(nodes(&World::with(suspended.clone())).is_empty());

    let mut expired = suspended;
    expired.spec.duration_seconds = Some(60);
    expired.status = Some(podtap_api::PodTapStatus { start_time: time(-60), ..podtap_api::PodTapStatus::default() });
    assert_eq!(verdicts(&World::with(expired.clone())).0, TapState::Expired, "suspended or not");
    expired.spec.suspend = false;
    assert!(nodes(&World::with(expired)).is_empty());

    let invalid = tap("t", json!([{}]));
    assert_eq!(reason_of(&verdicts(&World::with(invalid)).0), reason::INVALID_SPEC);
}

#[test]
fn only_what_is_recorded_is_used() {
    let world = World::with(tap("t", to_n2()));
    let snapshot = world.snapshot();
    let validated = crate::validate::tap::validate(&snapshot);
    let allocation = crate::reconcile::allocate(&snapshot, &validated, &Claims::new());
    let plan = build(&snapshot, &validated, &allocation, &Claims::new());
    assert_eq!(reason_of(&plan.taps_[0].standing), reason::WAITING);
    assert!(plan.nodes.is_empty());
}

#[test]
fn another_wish_is_followed_although_a_dead_node_holds_the_old_vni() {
    let (mut world, claims) = World::with(tap("t", to_n2())).settled(&Claims::new());
    world.nodes[1] = lost(world.nodes[1].clone());
    world.taps[0].spec.vxlan = Some(podtap_api::Vxlan { vni: Some(500) });
    world.plan(&claims, |_, claims, plan| {
        assert_eq!((plan.taps_[0].standing.clone(), plan.taps_[0].vni), (TapState::Active, Some(500)));
        assert_eq!(claims.keys().collect::<Vec<_>>(), [&100, &500], "the old one is not free yet");
    });
}

#[test]
fn a_narrower_range_moves_taps() {
    let (mut world, claims) = World::with(tap("t", to_n2())).settled(&Claims::new());
    world.policy = Some(policy(json!({"vniRange": {"first": 200, "last": 300}})));
    world.plan(&claims, |_, _, plan| assert_eq!(plan.taps_[0].vni, Some(200)));
}

#[test]
fn a_destination_is_no_target_and_takes_no_place_of_one() {
    let mut young = tap("t", json!([{"pod": {"name": "web"}}]));
    young.spec.targets.max_pods = 1;
    let mut world = World::with(young);
    let mut second = pod("shop", "web-2", "n2");
    second.metadata.creation_timestamp = time(1);
    world.pods.push(second);
    world.plan(&Claims::new(), |_, _, plan| {
        let targets = &plan.taps_[0].targets;
        assert_eq!(targets.failure, None, "one pod is to be tapped, which is not too many");
        assert_eq!(targets.pods[0].failure.as_ref().map(|p| p.reason.as_str()), Some(reason::DESTINATION_IS_TARGET));
        assert_eq!(plan.nodes["n2"].senders[0].pod.name, "web-2");
    });
}

#[test]
fn interface_names_go_to_the_older_tap() {
    let destination = json!([{"node": {"name": "n2", "interfaceName": "mirror"}}]);
    let mut world = World::with(tap("a", destination.clone()));
    world.taps.push(tap("b", destination));
    world.plan(&Claims::new(), |_, _, plan| {
        assert_eq!(plan.nodes["n2"].receivers.len(), 1);
        let failure = plan.taps_[1].destinations[0].failure.as_ref().expect("a problem");
        assert_eq!(failure.reason, reason::INTERFACE_NAME_IN_USE);
        assert!(failure.message.contains("shop/a"), "{}", failure.message);
        assert!(plan.nodes["n1"].senders.iter().all(|sender| sender.tap.name == "a"));
    });
}

#[test]
fn a_circle_is_refused_at_the_younger_tap() {
    let to = |name: &str, target: &str, consumer: &str| {
        let mut tap = tap(name, json!([{"pod": {"name": consumer}}]));
        tap.spec.targets.pod_selector = None;
        tap.spec.targets.pod_names = Some(vec![target.into()]);
        tap
    };
    let mut world = World::with(to("there", "web", "ids"));
    world.pods.push(pod("shop", "ids", "n2"));
    let mut back = to("back", "ids", "web");
    back.metadata.creation_timestamp = time(1);
    world.taps.insert(0, back);
    world.plan(&Claims::new(), |_, _, plan| {
        assert_eq!(plan.taps_[0].standing, TapState::Active);
        assert_eq!(reason_of(&plan.taps_[1].standing), reason::MIRRORING_LOOP);
    });
}

#[test]
fn a_pod_is_under_so_many_taps_at_most() {
    let mut world = World::with(tap("a", to_n2()));
    world.taps.push(tap("b", to_n2()));
    world.policy = Some(policy(json!({"limits": {"tapsPerPod": 1}})));
    world.plan(&Claims::new(), |_, _, plan| {
        assert_eq!(plan.nodes["n1"].senders.len(), 1);
        let failure = plan.taps_[1].targets.pods[0].failure.as_ref().expect("a problem");
        assert_eq!(failure.reason, reason::TOO_MANY_TAPS);
    });
}

#[test]
fn a_namespace_has_so_many_taps_at_most() {
    let mut world = World::with(tap("a", to_n2()));
    world.taps.push(tap("b", to_n2()));
    world.policy = Some(policy(json!({"limits": {"tapsPerNamespace": 1}})));
    world.plan(&Claims::new(), |_, _, plan| {
        assert_eq!((plan.nodes["n1"].senders.len(), plan.nodes["n2"].receivers.len()), (1, 1));
        assert_eq!(plan.taps_[0].standing, TapState::Active);
        assert_eq!(reason_of(&plan.taps_[1].standing), reason::TOO_MANY_TAPS);
    });
}

#[test]
fn a_pod_that_claims_to_be_another_one_is_neither_target_nor_destination() {
    let claims = |pod: &mut k8s_openapi::api::core::v1::Pod, hash: &str| {
        let annotations = [("kubernetes.io/config.mirror", hash), ("kubernetes.io/config.hash", hash)];
        pod.metadata.annotations = Some(annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    };
    let hash = "0123456789abcdef0123456789abcdef";
    let mut world = World::with(tap("t", to_n2()));
    claims(&mut world.pods[0], hash);
    assert_eq!(nodes(&world)["n1"].senders[0].pod.cgroup_uid.as_deref(), Some(hash), "a static pod");
    let mut genuine = pod("kube-system", "genuine", "n1");
    genuine.metadata.creation_timestamp = time(-100);
    claims(&mut genuine, hash);
    world.pods.push(genuine);
    assert_eq!(verdicts(&world).1.as_deref(), Some(reason::TARGET_UNSUPPORTED));
    // Another pod's UID is no hash: nothing is looked for but the pod itself.
    claims(&mut world.pods[0], "9ad4fc69-fa8e-4c5e-bf9a-e7f917000dae");
    assert_eq!(nodes(&world)["n1"].senders[0].pod.cgroup_uid, None);
}

#[test]
fn an_external_address_is_not_that_of_a_pod() {
    let mut world = World::with(tap("t", json!([{"external": {"address": "10.8.0.77"}}])));
    world.policy = Some(policy(json!({"allowedExternalCIDRs": ["10.0.0.0/8"]})));
    assert_eq!(verdicts(&world).2, None);
    let mut other = pod("elsewhere", "other", "n2");
    other.status.get_or_insert_default().pod_ip = Some("10.8.0.77".to_owned());
    world.pods.push(other);
    assert_eq!(verdicts(&world).2.as_deref(), Some(reason::EXTERNAL_NOT_ALLOWED));
}

#[test]
fn families_are_not_mixed() {
    let mut world = World::with(tap("t", json!([{"node": {"name": "n2"}}, {"node": {"name": "n3"}}])));
    world.nodes.push(node("n3", &["fd00::3"]));
    assert_eq!(verdicts(&world).2.as_deref(), Some(reason::ADDRESS_FAMILY_MISMATCH));
    assert!(nodes(&world).is_empty());
    world.nodes[1] = node("n2", &["10.0.0.2", "fd00::2"]);
    let nodes = nodes(&world);
    assert!(nodes["n2"].receivers[0].ipv6 && nodes["n3"].receivers[0].ipv6);
}

#[test]
fn what_could_not_be_secured_is_kept_from_the_nodes() {
    let world = World::with(tap("t", to_n2()));
    world.plan(&Claims::new(), |_, _, mut plan| {
        plan.exclude(&["tap-other".to_owned()].into());
        assert_eq!((plan.nodes.len(), plan.taps_[0].standing.clone()), (2, TapState::Active));
        plan.exclude(&["tap-t".to_owned()].into());
        assert!(plan.nodes.is_empty());
        assert_eq!(reason_of(&plan.taps_[0].standing), reason::WAITING);
    });
}
