use std::collections::BTreeMap;

use podtap_model::{Endpoint, FrameFormat, NodeState, Vni};
use serde_json::json;

use super::*;
use crate::{
    fixtures::{OWN_NAMESPACE, World, derived, lost, node, object, pod, policy, tap, time, uid, vni},
    plan::{deduplication::Deduplication, moves::Moves, resolve::resolve, vni::Vnis},
    validate::{
        state::{SuspendedBy, TapState},
        tap::validate,
    },
};

mod properties;

fn to_n2() -> serde_json::Value {
    json!([{"node": {"name": "n2"}}])
}

/// The state of the first tap, and why its first target and its first destination fail.
fn results(world: &World) -> (TapState, Option<Reason>, Option<Reason>) {
    world.plan(&Vnis::default(), |_, _, plan| {
        let tap = &plan.taps[0];
        let target = tap.targets.pods.first().and_then(|target| target.failure.as_ref());
        let destination = tap.destinations.first().and_then(|destination| destination.failure.as_ref());
        (tap.state.clone(), target.map(|failure| failure.reason), destination.map(|failure| failure.reason))
    })
}

fn nodes(world: &World) -> BTreeMap<String, NodeState> {
    world.plan(&Vnis::default(), |_, _, plan| plan.nodes)
}

fn reason_of(state: &TapState) -> Reason {
    match state {
        TapState::Refused(failure) => failure.reason,
        other => panic!("not refused: {other:?}"),
    }
}

fn endpoint(address: &str, port: u16, vni: Vni) -> Endpoint {
    Endpoint { address: address.parse().expect("an address"), port, vni }
}

#[test]
fn one_pod_one_node() {
    let nodes = nodes(&World::with(tap("t", to_n2())));
    assert_eq!(nodes.keys().collect::<Vec<_>>(), ["n1", "n2"]);
    let (tap, sender, receiver) = (&nodes["n1"].taps[0], &nodes["n1"].senders[0], &nodes["n2"].receivers[0]);
    assert_eq!((sender.pod.name.as_str(), &*sender.tap, &*tap.uid), ("web", "tap-t", "tap-t"));
    assert_eq!(tap.destinations, [endpoint("10.0.0.2", 14789, derived("tap-t", ""))]);
    let vni = derived("tap-t", "");
    assert_eq!((receiver.vni, receiver.interface_name.to_string()), (vni, format!("ptap{vni}")));
    assert!(!receiver.ipv6);
    assert_eq!((nodes["n1"].receivers.len(), nodes["n2"].senders.len()), (0, 0));
    assert!(nodes["n2"].taps.is_empty(), "options do not concern a node that only receives");
}

#[test]
fn options_and_programs_are_on_each_node_once() {
    let mut with_options = tap("t", json!([{"node": {"name": "n2"}, "frameFormat": "Raw"}, {"node": {"name": "n1"}}]));
    with_options.spec.mirror.options.filter = Some(object(json!({"expression": "arp"})));
    let mut world = World::with(with_options);
    world.pods.push(pod("shop", "web-2", "n1"));
    world.policy = Some(policy(json!({"underlayMTU": 1400, "orphanTimeout": "10m", "probeEtherType": 0x88b6})));
    for (name, created) in [("u", 1), ("v", 2)] {
        let mut tap = tap(name, to_n2());
        tap.metadata.creation_timestamp = time(created);
        tap.spec.mirror.options.filter = (name == "v").then(|| object(json!({"expression": "arp"})));
        world.taps.push(tap);
    }
    let specs = nodes(&world);
    assert_eq!(specs["n1"].senders.len(), 6);
    let taps: Vec<_> = specs["n1"].taps.iter().map(|t| (t.name.as_str(), t.options.expression())).collect();
    assert_eq!(taps, [("t", Some("arp")), ("u", None), ("v", Some("arp"))]);
    let program = &specs["n1"].programs[0];
    assert_eq!(specs["n1"].programs.len(), 1, "two taps have the same expression");
    let programs: Vec<_> = specs["n1"].taps.iter().map(|t| t.program.as_ref()).collect();
    assert_eq!(programs, [Some(&program.id), None, Some(&program.id)]);
    assert!(specs["n2"].taps.is_empty() && specs["n2"].programs.is_empty());
    assert_eq!((specs["n1"].underlay_mtu, specs["n2"].underlay_mtu), (Some(1400), None));
    let ether_types = ["n1", "n2"].map(|node| specs[node].probe_ether_type.map(podtap_model::EtherType::get));
    assert_eq!(ether_types, [Some(0x88b6); 2], "senders and receivers agree");
    assert_eq!((specs["n1"].orphan_timeout_seconds, specs["n2"].orphan_timeout_seconds), (Some(600), None));
    let format = |node: &str| -> BTreeMap<_, _> {
        specs[node].receivers.iter().map(|r| (r.tap.name.as_str(), r.frame_format)).collect()
    };
    assert_eq!(format("n1"), [("t", FrameFormat::Wire)].into());
    assert_eq!(format("n2"), [("t", FrameFormat::Raw), ("u", FrameFormat::Wire), ("v", FrameFormat::Wire)].into());

    let nodes = plan_without(&world, &["tap-t", "tap-v"], |plan| plan.nodes);
    assert_eq!(nodes["n1"].taps.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["u"]);
    assert!(nodes["n1"].programs.is_empty());
}

/// Sensors check checksums, and know no frames of 64 KiB.
#[test]
fn a_collector_with_sensors_gets_frames_as_on_the_wire() {
    for (container, expected) in [("capture", FrameFormat::Raw), ("sensor", FrameFormat::Wire)] {
        let mut world = World::with(tap("t", json!([{"collector": {}}])));
        let mut collector = pod(OWN_NAMESPACE, "collector", "n2");
        let labels = [("app.kubernetes.io/name", "podtap"), ("app.kubernetes.io/component", "collector")];
        collector.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        collector.spec.as_mut().expect("a spec").containers = object(json!([{"name": container}]));
        world.pods.push(collector);
        assert_eq!(nodes(&world)["n2"].receivers[0].frame_format, expected, "{container}");
        // A user's pod may have a container of any name.
        world.taps[0].spec.mirror.destinations = object(json!([{"pod": {"name": "ids"}, "frameFormat": "Raw"}]));
        let mut ids = pod("shop", "ids", "n2");
        ids.spec.as_mut().expect("a spec").containers = object(json!([{"name": container}]));
        world.pods.push(ids);
        assert_eq!(nodes(&world)["n2"].receivers[0].frame_format, FrameFormat::Raw);
    }
}

#[test]
fn a_settled_node_can_be_decoded_by_the_tap_helper() {
    let mut with_options = tap("t", json!([{"node": {"name": "n2"}, "frameFormat": "Raw"}, {"pod": {"name": "ids"}}]));
    with_options.spec.mirror.options = object(json!({
        "filter": {"expression": "arp", "include": [{"cidrs": ["10.1.2.3/8"]}]}, "deduplicate": {},
        "limit": {"bitsPerSecond": "100M"}, "truncate": {"headersOnly": true},
    }));
    let mut world = World::with(with_options);
    world.pods.push(pod("shop", "ids", "n2"));
    for (node, state) in nodes(&world) {
        let decoded = NodeState::decode(&json!(state)).expect("the spec of a NodeTap");
        assert_eq!((decoded.senders.len(), decoded.receivers.len()), (state.senders.len(), state.receivers.len()));
        assert!(decoded.refused_senders.is_empty() && decoded.refused_receivers.is_empty(), "{node}: {decoded:?}");
        let read: NodeState = serde_json::from_value(json!(state)).expect("it can be read");
        assert_eq!(read, state, "it would be written at every reconcile");
    }
}

/// The plan with these taps excluded.
fn plan_without<T>(world: &World, excluded: &[&str], check: impl FnOnce(Plan<'_>) -> T) -> T {
    let snapshot = world.snapshot();
    let validated = validate(&snapshot);
    let (taps, _) = resolve(&snapshot, &validated, &Vnis::default());
    let excluded = excluded.iter().map(|tap| uid(tap)).collect();
    check(build(
        &snapshot,
        taps,
        &excluded,
        &[].into(),
        &validated.policy,
        &Deduplication::default(),
        &Moves::default(),
    ))
}

#[test]
fn an_expression_that_is_not_compiled_yet_keeps_its_tap_pending() {
    let mut pending = tap("t", to_n2());
    pending.spec.mirror.options.filter = Some(object(json!({"expression": "arp"})));
    let mut snapshot = World::with(pending).snapshot();
    snapshot.expressions.clear();
    let validated = validate(&snapshot);
    let failure = validated.taps[0].spec.clone().expect_err("nothing can be done yet");
    assert_eq!(failure.reason, Reason::Pending);
}

#[test]
fn an_established_tap_keeps_its_expression_if_the_new_one_is_invalid() {
    let mut tap = tap("t", to_n2());
    tap.spec.mirror.options.filter = Some(object(json!({"expression": "arp"})));
    let (mut world, vnis) = World::with(tap).settled(&Vnis::default());
    let before = world.plan(&vnis, |_, _, plan| plan.nodes);
    world.taps[0].spec.mirror.options.filter = Some(object(json!({"expression": "tcp prot 443"})));
    assert_eq!(world.plan(&vnis, |_, _, plan| plan.nodes), before);
}

#[test]
fn a_pod_that_is_bound_is_planned_before_it_runs() {
    let mut world = World::with(tap("t", to_n2()));
    world.pods[0].status = None;
    assert_eq!(nodes(&world)["n1"].senders[0].pod.addresses, [] as [std::net::IpAddr; 0]);
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
    // Two receivers on one node have two VNIs; an external endpoint gets the tap's VNI at the standard port.
    let [own, of_ids] = ["", "second"].map(|key| derived("tap-t", key));
    let expected =
        [endpoint("10.0.0.2", 14789, own), endpoint("10.0.0.2", 14789, of_ids), endpoint("192.0.2.7", 4789, own)];
    assert_eq!(nodes["n1"].taps[0].destinations, expected);
    let receivers: BTreeMap<_, _> =
        nodes["n2"].receivers.iter().map(|r| (r.vni, r.pod.as_ref().map(|p| p.name.as_str()))).collect();
    assert_eq!(receivers, [(own, None), (of_ids, Some("ids"))].into());
}

#[test]
fn a_tap_that_is_not_carried_out_is_on_no_node() {
    let mut suspended = tap("t", to_n2());
    suspended.spec.mirror.suspend = true;
    assert_eq!(results(&World::with(suspended.clone())).0, TapState::Suspended(SuspendedBy::Tap));
    assert!(nodes(&World::with(suspended.clone())).is_empty());

    let mut expired = suspended;
    expired.spec.mirror.duration = Some(std::time::Duration::from_secs(60).into());
    expired.status = Some(podtap_api::PodTapStatus { start_time: time(-60), ..podtap_api::PodTapStatus::default() });
    assert_eq!(results(&World::with(expired.clone())).0, TapState::Expired, "suspended or not");
    expired.spec.mirror.suspend = false;
    assert!(nodes(&World::with(expired)).is_empty());

    let mut world = World::with(tap("t", to_n2()));
    world.policy = Some(policy(json!({"suspendAll": true})));
    assert_eq!(results(&world).0, TapState::Suspended(SuspendedBy::Policy));
    assert!(nodes(&world).is_empty());
    world.policy = Some(policy(json!({"suspendAll": false})));
    assert_eq!((results(&world).0, nodes(&world).len()), (TapState::Active, 2));

    let invalid = tap("t", json!([{}]));
    assert_eq!(reason_of(&results(&World::with(invalid)).0), Reason::InvalidSpec);
}

#[test]
fn another_requested_vni_is_assigned_although_a_dead_node_has_the_old_one() {
    let (mut world, vnis) = World::with(tap("t", to_n2())).settled(&Vnis::default());
    world.nodes[1] = lost(world.nodes[1].clone());
    world.taps[0].spec.mirror.vxlan = Some(podtap_api::Vxlan { vni: Some(vni(5000)) });
    world.plan(&vnis, |_, vnis, plan| {
        assert_eq!((plan.taps[0].state.clone(), plan.taps[0].vni), (TapState::Active, Some(vni(5000))));
        assert_eq!(vnis.released, [(derived("tap-t", ""), uid("tap-t"))].into(), "the old one is not free yet");
    });
}

#[test]
fn a_narrower_range_moves_taps() {
    let (mut world, vnis) = World::with(tap("t", to_n2())).settled(&Vnis::default());
    world.policy = Some(policy(json!({"vniRange": {"first": 200, "last": 300}})));
    world.plan(&vnis, |_, _, plan| {
        assert!(plan.taps[0].vni.is_some_and(|vni| (200..=300).contains(&vni.get())), "{:?}", plan.taps[0].vni);
    });
}

#[test]
fn a_destination_is_not_tapped_and_does_not_count_as_a_target() {
    let mut young = tap("t", json!([{"pod": {"name": "web"}}]));
    young.spec.targets.max_pods = 1;
    let mut world = World::with(young);
    let mut second = pod("shop", "web-2", "n2");
    second.metadata.creation_timestamp = time(1);
    world.pods.push(second);
    world.plan(&Vnis::default(), |_, _, plan| {
        let targets = &plan.taps[0].targets;
        assert_eq!(targets.failure, None, "one pod is to be tapped, which is not too many");
        assert_eq!(targets.skipped[0].reason, Reason::DestinationIsTarget);
        assert_eq!(plan.nodes["n2"].senders[0].pod.name, "web-2");
    });
}

#[test]
fn interface_names_go_to_the_older_tap() {
    let destination = json!([{"node": {"name": "n2", "interfaceName": "mirror"}}]);
    let mut world = World::with(tap("a", destination.clone()));
    world.taps.push(tap("b", destination));
    world.plan(&Vnis::default(), |_, _, plan| {
        assert_eq!(plan.nodes["n2"].receivers.len(), 1);
        let failure = plan.taps[1].destinations[0].failure.as_ref().expect("a failure");
        assert_eq!(failure.reason, Reason::InterfaceNameConflict);
        let words = "the interface mirror on node n2 belongs to the PodTap a:";
        assert!(failure.message.contains(words), "{}", failure.message);
        assert!(plan.nodes["n1"].senders.iter().all(|sender| *sender.tap == *"tap-a"));
    });
    // A tap of another namespace is not named.
    world.taps[1].metadata.namespace = Some("bank".into());
    world.plan(&Vnis::default(), |_, _, plan| {
        let failure = plan.taps[1].destinations[0].failure.as_ref().expect("a failure");
        assert!(
            failure.message.contains("an older tap that is not of this namespace") && !failure.message.contains("shop"),
            "{}",
            failure.message
        );
    });
}

#[test]
fn taps_of_other_namespaces_are_not_named() {
    let destination = json!([{"node": {"name": "n2", "interfaceName": "mirror"}}]);
    let mut world = World::with(tap("a", destination.clone()));
    let mut other = tap("b", destination);
    other.metadata.namespace = Some("bank".into());
    other.metadata.creation_timestamp = time(1);
    world.taps.push(other);
    world.pods.push(pod("bank", "vault", "n1"));
    world.plan(&Vnis::default(), |_, _, plan| {
        let failure = plan.taps[1].destinations[0].failure.as_ref().expect("a failure");
        assert!(failure.message.contains("mirror on node n2 belongs to an older tap that is not of this namespace"));
        assert!(!failure.message.contains("shop"), "{}", failure.message);
    });
}

#[test]
fn a_mirroring_loop_is_refused_at_the_younger_tap() {
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
    world.plan(&Vnis::default(), |_, _, plan| {
        assert_eq!(plan.taps[0].state, TapState::Active);
        assert_eq!(reason_of(&plan.taps[1].state), Reason::MirroringLoop);
    });
}

#[test]
fn metadata_tell_of_a_pod_what_the_policy_lists() {
    let external = |metadata: bool| json!([{"external": {"address": "192.0.2.1", "metadata": metadata}}]);
    let mut world = World::with(tap("t", external(true)));
    let labels =
        [("app", "web"), ("secret", "x"), ("pod-template-hash", "7c9f"), ("long", &"l".repeat(140)), ("z", "1")];
    world.pods[0].metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    world.pods[0].metadata.owner_references =
        Some(vec![object(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9f", "uid": "u"}))]);
    let listed =
        |labels: &[&str]| Some(policy(json!({"allowedExternalCIDRs": ["192.0.2.0/24"], "metadataLabels": labels})));
    for (keys, expected) in [
        (&[][..], &[][..]),
        (&["missing", "app"], &["app"]),
        // With "long", there is no room for more.
        (&["app", "long", "z"], &["app", "long"]),
        (&["app", "z", "secret", "long"], &["app", "secret", "z"]),
    ] {
        world.policy = listed(keys);
        let details = nodes(&world)["n1"].senders[0].details.clone().expect("the tap sends metadata");
        assert_eq!(details.labels.keys().collect::<Vec<_>>(), expected, "{keys:?}");
        let workload = details.workload.map(|workload| (workload.kind, workload.name));
        assert_eq!(
            (details.node.as_deref(), workload),
            (Some("n1"), Some(("Deployment".to_owned(), "web".to_owned())))
        );
    }
    world.taps[0].spec.mirror.destinations = object(external(false));
    assert_eq!(nodes(&world)["n1"].senders[0].details, None);
}

#[test]
fn a_pod_that_is_handed_a_packet_socket_gets_metadata() {
    let receiver = |packet_socket: bool| {
        let mut world = World::with(tap("t", json!([{"pod": {"name": "ids", "packetSocket": packet_socket}}])));
        world.pods.push(pod("shop", "ids", "n2"));
        let nodes = nodes(&world);
        let receiver = &nodes["n2"].receivers[0];
        (receiver.packet_socket, receiver.metadata, nodes["n1"].taps[0].metadata)
    };
    assert_eq!(receiver(true), (true, true, true));
    assert_eq!(receiver(false), (false, false, false));
}

#[test]
fn taps_per_pod_are_limited() {
    let mut world = World::with(tap("a", to_n2()));
    world.taps.push(tap("b", to_n2()));
    world.policy = Some(policy(json!({"limits": {"tapsPerPod": 1}})));
    world.plan(&Vnis::default(), |_, _, plan| {
        assert_eq!(plan.nodes["n1"].senders.len(), 1);
        let failure = plan.taps[1].targets.pods[0].failure.as_ref().expect("a failure");
        assert_eq!(failure.reason, Reason::TooManyTaps);
    });
}

#[test]
fn taps_per_namespace_are_limited() {
    let mut world = World::with(tap("a", to_n2()));
    world.taps.push(tap("b", to_n2()));
    world.policy = Some(policy(json!({"limits": {"tapsPerNamespace": 1}})));
    world.plan(&Vnis::default(), |_, _, plan| {
        assert_eq!((plan.nodes["n1"].senders.len(), plan.nodes["n2"].receivers.len()), (1, 1));
        assert_eq!(plan.taps[0].state, TapState::Active);
        assert_eq!(reason_of(&plan.taps[1].state), Reason::TooManyTaps);
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
    assert_eq!(nodes(&world)["n1"].senders[0].pod.config_hash.as_deref(), Some(hash), "a static pod");
    let mut genuine = pod("kube-system", "genuine", "n1");
    genuine.metadata.creation_timestamp = time(-100);
    claims(&mut genuine, hash);
    world.pods.push(genuine);
    assert!(!nodes(&world).contains_key("n1"), "it is skipped");
    world.taps[0].spec.targets = object(json!({"podNames": ["web"]}));
    assert_eq!(results(&world).1, Some(Reason::TargetUnsupported));
    // Another pod's UID is not a hash, and is ignored.
    claims(&mut world.pods[0], "9ad4fc69-fa8e-4c5e-bf9a-e7f917000dae");
    assert_eq!(nodes(&world)["n1"].senders[0].pod.config_hash, None);
}

#[test]
fn families_are_not_mixed() {
    let mut world = World::with(tap("t", json!([{"node": {"name": "n2"}}, {"node": {"name": "n3"}}])));
    world.nodes.push(node("n3", &["fd00::3"]));
    assert_eq!(results(&world).2, Some(Reason::AddressFamilyMismatch));
    assert!(nodes(&world).is_empty());
    world.nodes[1] = node("n2", &["10.0.0.2", "fd00::2"]);
    let nodes = nodes(&world);
    assert!(nodes["n2"].receivers[0].ipv6 && nodes["n3"].receivers[0].ipv6);
}

#[test]
fn no_node_learns_of_a_tap_without_finalizer() {
    let world = World::with(tap("t", to_n2()));
    let planned =
        |excluded: &[&str]| plan_without(&world, excluded, |plan| (plan.nodes.len(), plan.taps[0].state.clone()));
    assert_eq!(planned(&["tap-other"]), (2, TapState::Active));
    let (nodes, state) = planned(&["tap-t"]);
    assert_eq!((nodes, reason_of(&state)), (0, Reason::Pending));
}
