//! Properties of the plan of any cluster.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Namespace;
use podtap_api::EXCLUDE;
use podtap_model::{Endpoint, Tap, Vni};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::{fixtures::object, plan::tap_plan::TapPlan};

const NAMESPACES: [&str; 3] = ["shop", "bank", "closed"];

/// `true` once in `n`.
fn rarely(n: u32) -> impl Strategy<Value = bool> {
    (0..n).prop_map(|number| number == 0)
}

fn nodes_of_any_kind() -> impl Strategy<Value = Vec<k8s_openapi::api::core::v1::Node>> {
    let addresses = |index: usize| {
        prop_oneof![
            6 => Just(vec![format!("10.0.0.{index}")]),
            2 => Just(vec![format!("10.0.0.{index}"), format!("fd00::{index}")]),
            1 => Just(vec![format!("fd00::{index}")]),
            1 => Just(vec![]),
        ]
    };
    let node = move |index: usize| {
        (addresses(index), rarely(6), rarely(8)).prop_map(move |(addresses, is_lost, excluded)| {
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let mut node = node(&format!("n{index}"), &addresses);
            node.metadata.labels = Some([(EXCLUDE.to_owned(), excluded.to_string())].into());
            if is_lost { lost(node) } else { node }
        })
    };
    (node(1), node(2), node(3)).prop_map(|(a, b, c)| vec![a, b, c])
}

fn pod_of_any_kind(index: usize) -> impl Strategy<Value = k8s_openapi::api::core::v1::Pod> {
    // n4 does not exist.
    let node = prop_oneof![8 => select(vec!["n1", "n2", "n3"]), 1 => Just("n4"), 1 => Just("")];
    let kind = (rarely(8), rarely(8), rarely(8), rarely(4));
    (select(NAMESPACES.to_vec()), node, select(vec!["web", "ids"]), 0..3_i64, kind).prop_map(
        move |(namespace, node, app, created, (excluded, host_network, finished, unready))| {
            let name = format!("p{index}");
            object(json!({
                "metadata": {
                    "namespace": namespace, "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1",
                    "creationTimestamp": crate::fixtures::at(created).to_string(), "labels": {"app": app},
                    "annotations": {EXCLUDE: excluded.to_string()},
                },
                "spec": {"nodeName": node, "containers": [], "hostNetwork": host_network},
                "status": {
                    "phase": if finished { "Succeeded" } else { "Running" },
                    "conditions": [{"type": "Ready", "status": if unready { "False" } else { "True" }}],
                },
            }))
        },
    )
}

fn destination_of_any_kind() -> impl Strategy<Value = Value> {
    let node = (select(vec!["n1", "n2", "n3", "n4"]), select(vec!["", "", "", "mirror"]))
        .prop_map(|(name, interface)| json!({"node": {"name": name, "interfaceName": interface}}));
    prop_oneof![
        4 => node,
        2 => (0..12).prop_map(|index| json!({"pod": {"name": format!("p{index}")}})),
        2 => Just(json!({"pod": {"podSelector": {"matchLabels": {"app": "ids"}}}})),
        2 => select(vec!["192.0.2.1", "192.0.2.2", "203.0.113.1"]).prop_map(|a| json!({"external": {"address": a}})),
    ]
}

fn tap_of_any_kind(index: usize) -> impl Strategy<Value = podtap_api::PodTap> {
    let targets = prop_oneof![
        Just(json!({"podSelector": {}})),
        Just(json!({"podSelector": {"matchLabels": {"app": "web"}}})),
        vec((0..12).prop_map(|index| format!("p{index}")), 1..5).prop_map(|names| json!({"podNames": names})),
    ];
    let destinations = vec(destination_of_any_kind(), 1..4);
    let rest = (select(NAMESPACES.to_vec()), 0..3_i64, 1..6, option::weighted(0.3, 5000..5006_u32), rarely(10));
    (targets, destinations, rest).prop_map(
        move |(mut targets, destinations, (namespace, created, max_pods, vni, suspend))| {
            targets["maxPods"] = json!(max_pods);
            let mut tap = tap(&format!("t{index}"), json!(destinations));
            tap.metadata.namespace = Some(namespace.into());
            tap.metadata.creation_timestamp = time(created);
            tap.spec.targets = object(targets);
            tap.spec.mirror.vxlan = vni.map(|number| podtap_api::Vxlan { vni: Some(super::vni(number)) });
            tap.spec.mirror.suspend = suspend;
            tap
        },
    )
}

fn worlds() -> impl Strategy<Value = World> {
    let policy = option::weighted(0.7, (1..4, 1..6, 5003..5015_u32)).prop_map(|limits| {
        limits.map(|(taps_per_pod, targets_per_tap, last)| {
            policy(json!({
                "allowedExternalCIDRs": ["192.0.2.0/24"],
                "vniRange": {"first": 5001, "last": last},
                "limits": {"tapsPerPod": taps_per_pod, "targetsPerTap": targets_per_tap},
            }))
        })
    });
    let pods: Vec<_> = (0..12).map(pod_of_any_kind).collect();
    let taps: Vec<_> = (0..7).map(tap_of_any_kind).collect();
    (policy, nodes_of_any_kind(), pods, taps).prop_map(|(policy, nodes, pods, taps)| {
        let namespace = |name: &str| -> Namespace {
            object(json!({"metadata": {"name": name, "labels": {EXCLUDE: (name == "closed").to_string()}}}))
        };
        World { policy, nodes, pods, taps, namespaces: NAMESPACES.map(namespace).into(), ..World::default() }
    })
}

/// Who is to be tapped by a plan, derived from the objects, and not from the results of the stages.
fn expected<'a>(world: &'a World, plan: &TapPlan<'_>) -> BTreeMap<&'a str, &'a str> {
    let uid = plan.tap.reference.uid.to_string();
    let tap = world.taps.iter().find(|tap| tap.metadata.uid.as_ref() == Some(&uid));
    let tap = tap.expect("a plan is about a tap");
    let limits = world.policy.as_ref().map_or(500, |policy| policy.spec.limits.targets_per_tap);
    let limit = usize::try_from(tap.spec.targets.max_pods.min(limits)).expect("a limit");
    let is_available = |node: &str| {
        world.nodes.iter().any(|n| {
            n.metadata.name.as_deref() == Some(node)
                && n.metadata.labels.as_ref().is_some_and(|l| l[EXCLUDE] == "false")
        })
    };
    let consumers: Vec<&str> =
        plan.destinations.iter().filter_map(|d| Some(&*d.resolved.as_ref()?.pod()?.uid)).collect();
    let mut pods: Vec<_> = world
        .pods
        .iter()
        .filter_map(|pod| {
            let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
            let (name, uid, node) = (meta.name.as_deref()?, meta.uid.as_deref()?, spec.node_name.as_deref()?);
            let selected = match (&tap.spec.targets.pod_names, &tap.spec.targets.pod_selector) {
                (Some(names), _) => names.iter().any(|selected| selected == name),
                (None, selector) => {
                    let labels = selector.as_ref().and_then(|selector| selector.selector.match_labels.as_ref());
                    labels.is_none_or(|labels| meta.labels.as_ref().is_some_and(|l| l["app"] == labels["app"]))
                }
            };
            let fits = selected
                && meta.namespace == tap.metadata.namespace
                && meta.namespace.as_deref() != Some("closed")
                && meta.annotations.as_ref()?[EXCLUDE] == "false"
                && spec.host_network == Some(false)
                && pod.status.as_ref()?.phase.as_deref() == Some("Running")
                && !consumers.contains(&uid)
                && is_available(node);
            fits.then_some((meta.creation_timestamp.clone(), name, uid, node))
        })
        .collect();
    pods.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    pods.into_iter().take(limit).map(|(_, _, uid, node)| (uid, node)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_matched_pod_is_planned_once_per_tap(world in worlds()) {
        world.plan(&Vnis::default(), |_, _, plan| {
            let mut counts = BTreeMap::<String, u32>::new();
            for tap in &plan.taps {
                let uid = &tap.tap.reference.uid;
                let senders: Vec<(&str, &str)> = plan.nodes.iter().flat_map(|(node, spec)| {
                    spec.senders.iter().filter(|s| s.tap == *uid).map(|s| (&*s.pod.uid, node.as_str()))
                }).collect();
                let planned: BTreeMap<&str, &str> = senders.iter().copied().collect();
                prop_assert_eq!(senders.len(), planned.len(), "a pod is planned twice");
                if !tap.is_executed() {
                    prop_assert!(planned.is_empty());
                    continue;
                }
                let mut expected = expected(&world, tap);
                let limit = world.policy.as_ref().map_or(16, |policy| policy.spec.limits.taps_per_pod);
                expected.retain(|pod, _| {
                    let taps = counts.entry((*pod).to_owned()).or_default();
                    *taps += 1;
                    *taps <= limit
                });
                prop_assert_eq!(planned, expected);
            }
            Ok(())
        })?;
    }

    #[test]
    fn mirrored_frames_of_two_taps_never_mix(world in worlds()) {
        world.plan(&Vnis::default(), |_, _, plan| {
            let mut vnis = BTreeMap::new();
            for (node, spec) in &plan.nodes {
                let mut ports = HashSet::new();
                let mut names = HashSet::new();
                for receiver in &spec.receivers {
                    prop_assert!(ports.insert((receiver.port, receiver.vni)), "{node} has a VNI twice");
                    let netns = receiver.pod.as_ref().map(|pod| &*pod.uid);
                    prop_assert!(names.insert((netns, &*receiver.interface_name)), "{node} has a name twice");
                    let tap = vnis.entry(receiver.vni).or_insert(&receiver.tap.uid);
                    prop_assert_eq!(*tap, &receiver.tap.uid, "two taps have the VNI {}", receiver.vni);
                }
                for sender in &spec.taps {
                    for endpoint in &sender.destinations {
                        let tap = vnis.entry(endpoint.vni).or_insert(&sender.uid);
                        prop_assert_eq!(*tap, &sender.uid, "two taps have the VNI {}", endpoint.vni);
                    }
                }
            }
            if let Some(policy) = &world.policy {
                prop_assert!(vnis.keys().all(|vni| policy.spec.vni_range.contains(*vni)));
            }
            Ok(())
        })?;
    }

    #[test]
    fn senders_and_receivers_fit_together(world in worlds()) {
        world.plan(&Vnis::default(), |snapshot, _, plan| {
            let mut receivers = HashSet::new();
            for (node, spec) in &plan.nodes {
                for receiver in &spec.receivers {
                    let address = snapshot.nodes[node].addresses.iter().find(|a| a.is_ipv6() == receiver.ipv6);
                    receivers.insert((receiver.tap.uid.clone(), *address.expect("one of that family"), receiver.vni));
                }
            }
            for spec in plan.nodes.values() {
                let taps: BTreeMap<_, &Tap> = spec.taps.iter().map(|tap| (&tap.uid, tap)).collect();
                prop_assert_eq!(taps.len(), spec.taps.len(), "a tap is listed twice");
                let used: BTreeSet<_> = spec.senders.iter().map(|sender| &sender.tap).collect();
                prop_assert!(used.iter().copied().eq(taps.keys().copied()), "every listed tap has a sender here");
            }
            for tap in plan.nodes.values().flat_map(|spec| &spec.taps) {
                let families: HashSet<bool> = tap.destinations.iter().map(|d| d.address.is_ipv6()).collect();
                prop_assert_eq!(families.len(), 1, "no destination, or two families");
                let different: HashSet<&Endpoint> = tap.destinations.iter().collect();
                // The schema refuses the same external address twice.
                prop_assert!(different.len() == tap.destinations.len() || tap.destinations.iter().any(|d| d.port == 4789));
                for endpoint in tap.destinations.iter().filter(|endpoint| endpoint.port == 14789) {
                    let exists = receivers.contains(&(tap.uid.clone(), endpoint.address, endpoint.vni));
                    prop_assert!(exists, "nobody receives at {endpoint:?}");
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_opted_out_is_left_alone(world in worlds()) {
        world.plan(&Vnis::default(), |snapshot, _, plan| {
            for (node, spec) in &plan.nodes {
                prop_assert!(!snapshot.nodes[node].excluded, "{node} opted out");
                let senders = spec.senders.iter().map(|sender| &sender.pod);
                for pod in senders.chain(spec.receivers.iter().filter_map(|receiver| receiver.pod.as_ref())) {
                    let cached = snapshot.pod(&pod.namespace, &pod.name).expect("it exists");
                    prop_assert!(!cached.excluded && !cached.host_network && !cached.finished, "{}", pod.name);
                    prop_assert_eq!(cached.node.as_ref(), Some(node));
                }
                let namespace = |uid: &Uid| spec.taps.iter().find(|tap| tap.uid == *uid).map(|tap| &tap.namespace);
                prop_assert!(spec.senders.iter().all(|s| Some(&s.pod.namespace) == namespace(&s.tap) && s.pod.namespace != "closed"));
                prop_assert!(spec.receivers.iter().all(|r| r.pod.as_ref().is_none_or(|p| p.namespace == r.tap.namespace)));
                for endpoint in spec.taps.iter().flat_map(|tap| &tap.destinations) {
                    prop_assert!(world.policy.is_some() || endpoint.port == 14789, "no policy allows {endpoint:?}");
                    prop_assert!(!endpoint.address.to_string().starts_with("203."), "no policy allows {endpoint:?}");
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn the_order_of_events_does_not_matter(
        (world, other) in worlds().prop_flat_map(|world| {
            let (pods, taps) = (Just(world.pods.clone()).prop_shuffle(), Just(world.taps.clone()).prop_shuffle());
            let nodes = Just(world.nodes.clone()).prop_shuffle();
            let shuffled = (Just(world.clone()), pods, taps, nodes)
                .prop_map(|(world, pods, taps, nodes)| World { pods, nodes, taps, ..world });
            (Just(world), shuffled)
        })
    ) {
        let result = |world: &World| world.plan(&Vnis::default(), |_, claims, plan| {
            let taps: Vec<_> = plan.taps.into_iter().map(|t| (t.tap.reference.clone(), t.state, t.targets, t.destinations, t.vni)).collect();
            (claims.clone(), plan.nodes, taps)
        });
        prop_assert_eq!(result(&world), result(&world));
        prop_assert_eq!(result(&world), result(&other));
    }

    #[test]
    fn a_settled_cluster_stays_as_it_is(world in worlds()) {
        let (settled, claims) = world.settled(&Vnis::default());
        let before = world.plan(&Vnis::default(), |_, claims, plan| (claims.clone(), plan.nodes));
        let after = settled.plan(&claims, |_, claims, plan| (claims.clone(), plan.nodes));
        prop_assert_eq!(before, after);
    }

    #[test]
    fn vnis_stay_when_other_taps_come_and_go(world in worlds(), gone in vec(any::<bool>(), 7), late in 0..7_usize) {
        // One tap is created after the others, whatever its age.
        let mut first = world.clone();
        let newcomer = first.taps.remove(late);
        let (mut settled, claims) = first.settled(&Vnis::default());
        let mut leaving = gone.into_iter();
        settled.taps.retain(|_| !leaving.next().unwrap_or_default());
        settled.taps.push(newcomer.clone());
        let before = first.plan(&Vnis::default(), |_, _, plan| vnis(&plan));
        // For this leader, and for the next one.
        for previous in [&claims, &Vnis::default()] {
            let after = settled.plan(previous, |_, _, plan| vnis(&plan));
            for (tap, vnis) in &after {
                if let Some(before) = before.get(tap).filter(|before| before.iter().all(Option::is_some)) {
                    prop_assert_eq!(before, vnis);
                }
            }
            // A VNI is not assigned again before the nodes have released it.
            let in_use: HashSet<Vni> = settled.node_taps.iter().flat_map(|n| n.spec.0.receivers.iter().map(|r| r.vni)).collect();
            let fresh = after.get(newcomer.metadata.uid.as_deref().unwrap_or_default()).into_iter().flatten().flatten();
            for vni in fresh {
                prop_assert!(!in_use.contains(vni), "{vni} is still in use");
            }
        }
    }

    #[test]
    fn the_next_leader_changes_nothing(world in worlds()) {
        let (settled, vnis) = world.settled(&Vnis::default());
        let before = settled.plan(&vnis, |_, vnis, plan| (vnis.clone(), plan.nodes));
        let after = settled.plan(&Vnis::default(), |_, vnis, plan| (vnis.clone(), plan.nodes));
        prop_assert_eq!(before, after);
    }

    /// A controller that does not know the youngest tap assigns the same VNIs to the others.
    #[test]
    fn older_taps_do_not_depend_on_the_youngest(mut world in worlds()) {
        let all = world.plan(&Vnis::default(), |_, vnis, plan| (vnis.clone(), plan.taps.last().map(|plan| plan.tap.reference.uid.clone())));
        let (all, Some(youngest)) = all else { return Ok(()) };
        world.taps.retain(|tap| tap.metadata.uid.as_deref() != Some(&*youngest));
        let others = world.plan(&Vnis::default(), |_, vnis, _| vnis.clone());
        for (tap, vnis) in &others.assigned {
            prop_assert_eq!(Some(vnis), all.assigned.get(tap));
        }
    }
}

/// The VNIs of each tap, by its UID.
fn vnis(plan: &Plan<'_>) -> BTreeMap<String, Vec<Option<Vni>>> {
    let all =
        |tap: &TapPlan<'_>| std::iter::once(tap.vni).chain(tap.destinations.iter().map(|d| d.vni)).collect::<Vec<_>>();
    plan.taps.iter().map(|tap| (tap.tap.reference.uid.to_string(), all(tap))).collect()
}
