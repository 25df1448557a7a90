use podtap_model::bounds::MAX_SENDERS;
use podtap_model::{Instruction, Limit, NodeState, Program, ProgramId, SenderStatus, SentVnis, State};
use serde_json::json;

use super::*;
use crate::{
    fixtures::{World, carry_out, cluster_tap, node_tap, pod, policy, sized, tap, time},
    plan::{build::build, deduplication::Deduplication, moves::Moves, resolve::resolve, tap_plan::TapPlan, vni::Vnis},
    validate::tap::validate,
};

const UID: &str = "0b1c2d3e-1111-2222-3333-444455556666";
/// `--max-request-bytes` of etcd.
const ETCD_LIMIT: usize = 3 << 19;

/// A UID as the API server makes them.
fn uid(kind: u32, number: usize) -> String {
    format!("{kind:08x}-1111-2222-3333-{number:012x}")
}

/// A cluster of two namespaces: `pods` pods on n1 under each of `taps` taps in `shop`; one pod and one tap in `bank`, the youngest of all.
fn world(pods: usize, taps: usize) -> World {
    let to_n2 = || json!([{"node": {"name": "n2"}}]);
    let mut world = World::small();
    world.policy = Some(policy(json!({"limits": {"tapsPerPod": 64, "tapsPerNamespace": 1000}})));
    world.pods.clear();
    for number in 0..pods {
        let mut pod = pod("shop", &format!("web-7d4b9c5f6d-{number:05}"), "n1");
        pod.metadata.uid = Some(uid(1, number));
        pod.status.get_or_insert_default().pod_ip = Some(format!("10.244.1.{}", number % 256));
        world.pods.push(pod);
    }
    for number in 0..taps {
        let mut tap = tap(&format!("t{number:03}"), to_n2());
        tap.metadata.uid = Some(uid(2, number));
        tap.metadata.creation_timestamp = time(i64::try_from(number).expect("few"));
        tap.spec.targets.max_pods = 500;
        world.taps.push(tap);
    }
    let mut small = tap("small", to_n2());
    small.metadata.namespace = Some("bank".into());
    small.metadata.creation_timestamp = time(10_000);
    world.taps.push(small);
    world.pods.push(pod("bank", "web", "n1"));
    world
}

/// The plan, and what n1 is to have of it, if each tap has a program of its own with that many instructions.
fn planned<T>(world: &World, instructions: usize, check: impl FnOnce(&[TapPlan<'_>], &NodeState) -> T) -> T {
    let snapshot = world.snapshot();
    let validated = validate(&snapshot);
    let (mut taps, _) = resolve(&snapshot, &validated, &Vnis::default());
    if instructions > 0 {
        for (number, plan) in taps.iter_mut().enumerate() {
            let id = ProgramId::from_digest([u8::try_from(number).expect("few"); 32]);
            plan.program = Some(Program { id, instructions: vec![Instruction::from((6, 0, 0, 0)); instructions] });
        }
        refuse(&mut taps, &snapshot, &validated.policy);
    }
    let plan = build(
        &snapshot,
        taps,
        &BTreeSet::new(),
        &BTreeSet::new(),
        &validated.policy,
        &Deduplication::default(),
        &Moves::default(),
    );
    check(&plan.taps, &plan.nodes["n1"])
}

/// The names of refused taps.
fn refused<'a>(taps: &'a [TapPlan<'_>]) -> Vec<&'a str> {
    let refused = taps.iter().filter(|plan| match &plan.state {
        TapState::Refused(failure) => {
            assert_eq!(failure.reason, Reason::NodeFull);
            assert!(failure.message.contains("n1") && !failure.message.contains("bank"), "{}", failure.message);
            true
        }
        _ => false,
    });
    refused.map(|plan| plan.tap.reference.name.as_str()).collect()
}

/// The size of the object with a status of the longest entries, and without `managedFields`.
fn object_size(state: &NodeState) -> usize {
    let mut object = carry_out(node_tap("n1", state.clone()));
    for sender in &mut object.status.as_mut().expect("a status").senders {
        sender.interface = Some("fifteen-letters".into());
        (sender.state, sender.reason) = (State::Removing, Reason::KernelFeatureMissing);
    }
    size(&object)
}

#[test]
fn the_most_pods_that_a_kubelet_runs_fit() {
    planned(&world(110, 8), 0, |taps, n1| {
        assert_eq!((refused(taps), n1.senders.len()), (vec![], 110 * 8 + 1));
        assert!(object_size(n1) < NODE_BUDGET, "{}", object_size(n1));
    });
}

#[test]
fn many_senders_are_cut_to_the_budget() {
    let world = world(250, 16);
    planned(&world, 0, |taps, n1| {
        let gone = refused(taps);
        let youngest: Vec<String> = (16 - gone.len()..16).map(|number| format!("t{number:03}")).collect();
        assert_eq!(gone, youngest, "the youngest of shop, and not the one of bank, which is younger");
        assert!((1..15).contains(&gone.len()), "{gone:?}");
        assert!(object_size(n1) <= NODE_BUDGET, "{}", object_size(n1));
        // It is not refused too early: the memory of the tap-helper would not suffice for a tap more.
        assert!((MAX_SENDERS - 250..=MAX_SENDERS).contains(&n1.senders.len()), "{}", n1.senders.len());
        // The senders of the removed taps still exist, and the others come and go once more.
        let leftover = n1.senders.len() * STATUS_ENTRY;
        assert!(NODE_BUDGET + leftover + podtap_model::bounds::MAX_STATUS_TEXT < ETCD_LIMIT);
    });
}

#[test]
fn a_small_node_has_fewer_senders() {
    let mut world = world(100, 8);
    world.nodes[0] = sized(world.nodes[0].clone(), "4Gi", "2");
    planned(&world, 0, |taps, n1| {
        assert_eq!((refused(taps).len(), n1.senders.len()), (6, 201), "of 256");
        let TapState::Refused(failure) = &taps[7].state else { panic!("{:?}", taps[7].state) };
        assert!(failure.message.contains("at most 256 tapped pods"), "{}", failure.message);
    });
}

/// What the taps of the namespace use of n1, if a flow table counts as 1,000,000 bytes.
fn bytes(world: &World) -> usize {
    let snapshot = world.snapshot();
    let validated = validate(&snapshot);
    let (taps, _) = resolve(&snapshot, &validated, &Vnis::default());
    usage(&taps, &validated.policy, |_| MAX_SENDERS, |_| 1_000_000)["n1"]["shop"]
        .values()
        .map(|usage| usage.bytes)
        .sum()
}

/// A tap of the cluster that finds no room on one node is not refused: it loses its youngest pods there.
#[test]
fn a_cluster_tap_loses_pods_where_a_node_is_full() {
    let mut world = world(300, 0);
    world.nodes[0] = sized(world.nodes[0].clone(), "4Gi", "2");
    world.namespaces = vec![crate::fixtures::namespace("shop"), crate::fixtures::namespace("bank")];
    world.cluster_taps = vec![cluster_tap("all", json!([{"node": {"name": "n2"}}]))];
    planned(&world, 0, |taps, n1| {
        assert_eq!(refused(taps), [""; 0]);
        let all = taps.iter().find(|plan| plan.tap.reference.is_cluster_scoped()).expect("a plan");
        let (gone, stays): (Vec<_>, Vec<_>) = all.targets.pods.iter().partition(|target| target.failure.is_some());
        assert!((250..=256).contains(&n1.senders.len()), "{} of 256", n1.senders.len());
        // The tap of bank has one.
        assert_eq!(stays.len() + 1, n1.senders.len());
        let age = |target: &&crate::plan::targets::Target| {
            (target.pod.created, target.pod.namespace.clone(), target.pod.name.clone())
        };
        assert!(stays.iter().map(age).max() < gone.iter().map(age).min(), "the youngest pods go");
        let failure = gone[0].failure.as_ref().expect("a failure");
        assert_eq!(failure.reason, Reason::NodeFull);
        assert!(failure.message.contains("n1") && failure.message.contains("at most 256"), "{}", failure.message);
        assert!(object_size(n1) < NODE_BUDGET, "{}", object_size(n1));
    });
}

/// Whatever an older tap of the cluster uses of a node, a younger one keeps its pods elsewhere.
#[test]
fn of_two_cluster_taps_none_is_refused() {
    let mut world = world(300, 0);
    world.nodes[0] = sized(world.nodes[0].clone(), "4Gi", "2");
    world.pods.push(pod("bank", "elsewhere", "n2"));
    world.namespaces = vec![crate::fixtures::namespace("shop"), crate::fixtures::namespace("bank")];
    world.cluster_taps = ["first", "second"].map(|name| cluster_tap(name, json!([{"node": {"name": "n2"}}]))).into();
    world.cluster_taps[1].metadata.creation_timestamp = time(100);
    planned(&world, 0, |taps, n1| {
        assert_eq!(refused(taps), [""; 0]);
        let tapped = |name: &str| {
            let plan = taps.iter().find(|plan| plan.tap.reference.name == name).expect("a plan");
            plan.targets.tapped().map(|pod| pod.node.clone().unwrap_or_default()).collect::<Vec<_>>()
        };
        assert_eq!(tapped("second"), ["n2"], "the youngest tap loses its pods on the full node only");
        assert!(tapped("first").len() > 200 && n1.senders.len() <= 256, "{}", n1.senders.len());
    });
}

#[test]
fn flow_tables_count() {
    let mut world = world(20, 2);
    let without = bytes(&world);
    let tap = &mut world.taps[0].spec.mirror.options;
    tap.limit = Some(Limit { bytes_per_flow: Some(65_536.into()), ..Limit::default() });
    let one = bytes(&world) - without;
    assert!((20_000_000..20_000_100).contains(&one), "{one}: one for each of 20 senders");
}

#[test]
fn peers_count_before_they_are_known() {
    let mut world = world(400, 2);
    for (number, pod) in world.pods.iter_mut().enumerate() {
        let status = pod.status.get_or_insert_default();
        let address = |number| json!({"ip": format!("fd00:aaaa:bbbb:cccc:dddd:eeee:{number:x}:ffff")});
        status.pod_ips = serde_json::from_value(json!([address(number), address(number + 1000)])).expect("addresses");
    }
    let without = bytes(&world);
    for tap in &mut world.taps {
        tap.spec.mirror.options.deduplicate = Some(podtap_model::Deduplicate::default());
    }
    assert!(bytes(&world) > without + 2 * 800 * 39, "{} {without}", bytes(&world));
}

#[test]
fn many_programs_are_cut_to_the_budget() {
    let world = world(20, 64);
    planned(&world, podtap_model::bounds::MAX_INSTRUCTIONS, |taps, n1| {
        let gone = refused(taps);
        assert!(!gone.is_empty() && !gone.contains(&"small") && gone.contains(&"t063"), "{gone:?}");
        assert_eq!(n1.programs.len(), 65 - gone.len());
        assert!(object_size(n1) <= NODE_BUDGET, "{}", object_size(n1));
    });
}

#[test]
fn a_deleted_tap_makes_room() {
    let mut world = world(250, 16);
    let before = planned(&world, 0, |taps, _| refused(taps).len());
    world.taps.remove(3);
    assert_eq!(planned(&world, 0, |taps, _| refused(taps).len()), before - 1);
}

#[test]
fn a_refused_tap_leaves_every_node() {
    let mut world = world(250, 16);
    let mut elsewhere = pod("shop", "elsewhere", "n2");
    elsewhere.metadata.uid = Some(uid(3, 0));
    world.pods.push(elsewhere);
    world.plan(&Vnis::default(), |_, _, plan| {
        let executed =
            plan.taps.iter().filter(|plan| plan.is_executed() && &*plan.tap.reference.namespace == "shop").count();
        assert_eq!((plan.nodes["n2"].senders.len(), plan.nodes["n2"].receivers.len()), (executed, executed + 1));
    });
}

fn used(taps: &[(usize, Option<u8>)]) -> BTreeMap<usize, Usage<'static>> {
    let usage = |(index, (bytes, program)): (usize, &(usize, Option<u8>))| {
        let id = |digest: u8| -> &'static ProgramId { Box::leak(Box::new(ProgramId::from_digest([digest; 32]))) };
        (index, Usage { bytes: bytes << 10, pods: Vec::new(), program: program.map(|digest| (id(digest), 100 << 10)) })
    };
    taps.iter().enumerate().map(usage).collect()
}

/// The taps that have to go. None has pods of its own.
fn excess_taps(usage: NodeUsage<'_>) -> Vec<usize> {
    let index = |part| match part {
        Part::Tap(index) => index,
        Part::Pod(..) => panic!("a pod of the tap goes instead: {part:?}"),
    };
    excess(usage).into_iter().map(index).collect()
}

#[test]
fn a_shared_program_counts_once() {
    let shared = |count| vec![(1, Some(1)); count];
    assert_eq!(excess_taps([("a", used(&shared(700)))].into()), [0; 0]);
    assert_eq!(excess_taps([("a", used(&shared(735)))].into()), [734, 733, 732], "100 + 732 of 832");
    let own: Vec<(usize, Option<u8>)> = (0..10).map(|program| (0, Some(program))).collect();
    assert_eq!(excess_taps([("a", used(&own))].into()), [9, 8]);
}

#[test]
fn the_estimate_of_a_status_entry_is_enough() {
    for reason in Reason::ALL {
        let entry = SenderStatus {
            tap_uid: UID.into(),
            pod_uid: UID.into(),
            interface: Some("fifteen-letters".into()),
            addresses: Vec::new(),
            state: State::Removing,
            reason: *reason,
            message: "?".into(),
            degraded: vec!["?".into()],
        };
        assert!(size(&entry) < STATUS_ENTRY + 8, "{reason}: {}", size(&entry));
    }
    let sent = SentVnis { tap_uid: UID.into(), vnis: vec![crate::fixtures::vni(15_999_999); 4] };
    assert!(size(&sent) <= STATUS_VNIS, "{}", size(&sent));
}

mod properties {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn only_what_exceeds_the_share_of_its_namespace_goes(
            namespaces in vec(vec((0..400_usize, option::of(0..3_u8)), 0..8), 1..6)
        ) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let mut owner = BTreeMap::new();
            let mut usages = BTreeMap::new();
            let mut next = 0;
            for (name, taps) in names.iter().zip(&namespaces) {
                let of_namespace: BTreeMap<usize, Usage<'_>> = used(taps).into_iter().map(|(index, usage)| (next + index, usage)).collect();
                owner.extend(of_namespace.keys().map(|index| (*index, *name)));
                next += taps.len();
                usages.insert(*name, of_namespace);
            }
            // Bytes of those taps of a namespace that stay, counted from scratch.
            let bytes = |name: &str, gone: &BTreeSet<usize>| -> usize {
                let taps = &usages[name];
                let left = || taps.iter().filter(|(index, _)| !gone.contains(index)).map(|(_, usage)| usage);
                let programs: BTreeMap<_, usize> = left().filter_map(|usage| usage.program).collect();
                left().map(|usage| usage.bytes).sum::<usize>() + programs.values().sum::<usize>()
            };
            let total = |gone: &BTreeSet<usize>| usages.keys().map(|name| bytes(name, gone)).sum::<usize>();
            let order = excess_taps(usages.clone());
            let mut gone = BTreeSet::new();
            for index in &order {
                prop_assert!(total(&gone) > NODE_BUDGET, "{index} goes without need");
                let namespace = owner[index];
                let largest = usages.keys().map(|name| bytes(name, &gone)).max();
                prop_assert_eq!(Some(bytes(namespace, &gone)), largest, "another namespace uses more");
                let younger = usages[namespace].keys().rev().find(|index| !gone.contains(*index));
                prop_assert_eq!(younger, Some(index), "a younger tap stays");
                prop_assert!(bytes(namespace, &gone) * usages.len() > NODE_BUDGET, "within its share");
                gone.insert(*index);
            }
            prop_assert!(total(&gone) <= NODE_BUDGET);
        }
    }
}
