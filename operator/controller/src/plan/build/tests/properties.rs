//! What holds for any cluster.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Namespace;
use podtap_api::EXCLUDE;
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::fixtures::object;

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
    let rest = (select(NAMESPACES.to_vec()), 0..3_i64, 1..6, option::weighted(0.3, 100..106_i64), rarely(10));
    (targets, destinations, rest).prop_map(
        move |(mut targets, destinations, (namespace, created, max_pods, vni, suspend))| {
            targets["maxPods"] = json!(max_pods);
            let mut tap = tap(&format!("t{index}"), json!(destinations));
            tap.metadata.namespace = Some(namespace.into());
            tap.metadata.creation_timestamp = time(created);
            tap.spec.targets = object(targets);
            tap.spec.vxlan = vni.map(|vni| podtap_api::Vxlan { vni: Some(vni) });
            tap.spec.suspend = suspend;
            tap
        },
    )
}

fn worlds() -> impl Strategy<Value = World> {
    let policy = option::weighted(0.7, (1..4, 1..6, 103..115_i64)).prop_map(|limits| {
        limits.map(|(taps_per_pod, targets_per_tap, last)| {
            policy(json!({
                "allowedExternalCIDRs": ["192.0.2.0/24"],
                "vniRange": {"first": 101, "last": last},
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

/// Who is to be tapped by an outcome, worked out from the objects, and not from what the stages made of them.
fn expected<'a>(world: &'a World, tap: &TapPlan<'_>) -> BTreeMap<&'a str, &'a str> {
    let tap = world.taps.iter().find(|tap| tap.metadata.uid.as_ref() == Some(&tap.tap.reference.uid));
    let tap = tap.expect("an outcome is about a tap");
    let limits = world.policy.as_ref().map_or(500, |policy| policy.spec.limits.targets_per_tap);
    let limit = usize::try_from(tap.spec.targets.max_pods.min(limits)).expect("a limit");
    let is_available = |node: &str| {
        world.nodes.iter().any(|n| {
            n.metadata.name.as_deref() == Some(node)
                && n.metadata.labels.as_ref().is_some_and(|l| l[EXCLUDE] == "false")
        })
    };
    let consumers: Vec<&str> = tap.destinations.iter().filter_map(|d| Some(d.pod.as_ref()?.uid.as_str())).collect();
    let mut pods: Vec<_> = world
        .pods
        .iter()
        .filter_map(|pod| {
            let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
            let (name, uid, node) = (meta.name.as_deref()?, meta.uid.as_deref()?, spec.node_name.as_deref()?);
            let selected = match (&tap.spec.targets.pod_names, &tap.spec.targets.pod_selector) {
                (Some(names), _) => names.iter().any(|wanted| wanted == name),
                (None, selector) => {
                    let labels = selector.as_ref().and_then(|selector| selector.match_labels.as_ref());
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
        world.plan(&Claims::new(), |_, _, plan| {
            let mut under = BTreeMap::<String, i32>::new();
            for tap in &plan.taps_ {
                let uid = &tap.tap.reference.uid;
                let senders: Vec<(&str, &str)> = plan.nodes.iter().flat_map(|(node, spec)| {
                    spec.senders.iter().filter(|s| s.tap.uid == *uid).map(|s| (s.pod.uid.as_str(), node.as_str()))
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
                    let taps = under.entry((*pod).to_owned()).or_default();
                    *taps += 1;
                    *taps <= limit
                });
                prop_assert_eq!(planned, expected);
            }
            Ok(())
        })?;
    }

    #[test]
    fn copies_of_two_taps_never_meet(world in worlds()) {
        world.plan(&Claims::new(), |_, _, plan| {
            let mut vnis = BTreeMap::new();
            for (node, spec) in &plan.nodes {
                let mut ports = HashSet::new();
                let mut names = HashSet::new();
                for receiver in &spec.receivers {
                    prop_assert!(ports.insert((receiver.port, receiver.vni)), "{node} has a VNI twice");
                    let place = receiver.pod.as_ref().map(|pod| pod.uid.as_str());
                    prop_assert!(names.insert((place, receiver.interface_name.as_str())), "{node} has a name twice");
                    let tap = vnis.entry(receiver.vni).or_insert(receiver.tap.uid.as_str());
                    prop_assert_eq!(*tap, receiver.tap.uid.as_str(), "two taps have the VNI {}", receiver.vni);
                }
                for sender in &spec.senders {
                    for endpoint in &sender.destinations {
                        let tap = vnis.entry(endpoint.vni).or_insert(sender.tap.uid.as_str());
                        prop_assert_eq!(*tap, sender.tap.uid.as_str(), "two taps have the VNI {}", endpoint.vni);
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
        world.plan(&Claims::new(), |snapshot, _, plan| {
            let mut receivers = HashSet::new();
            for (node, spec) in &plan.nodes {
                for receiver in &spec.receivers {
                    let address = snapshot.nodes[node].addresses.iter().find(|a| a.is_ipv6() == receiver.ipv6);
                    receivers.insert((receiver.tap.uid.clone(), address.expect("one of that family").to_string(), receiver.vni));
                }
            }
            for sender in plan.nodes.values().flat_map(|spec| &spec.senders) {
                let families: HashSet<bool> = sender.destinations.iter().map(|d| d.address.contains(':')).collect();
                prop_assert_eq!(families.len(), 1, "no destination, or two families");
                let different: HashSet<_> = sender.destinations.iter().map(|d| (&d.address, d.port, d.vni)).collect();
                // The same external address twice is the user's own wish.
                prop_assert!(different.len() == sender.destinations.len() || sender.destinations.iter().any(|d| d.port == 4789));
                for endpoint in sender.destinations.iter().filter(|endpoint| endpoint.port == 14789) {
                    let there = receivers.contains(&(sender.tap.uid.clone(), endpoint.address.clone(), endpoint.vni));
                    prop_assert!(there, "nobody receives at {endpoint:?}");
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_opted_out_is_left_alone(world in worlds()) {
        world.plan(&Claims::new(), |snapshot, _, plan| {
            for (node, spec) in &plan.nodes {
                prop_assert!(!snapshot.nodes[node].excluded, "{node} opted out");
                let senders = spec.senders.iter().map(|sender| &sender.pod);
                for pod in senders.chain(spec.receivers.iter().filter_map(|receiver| receiver.pod.as_ref())) {
                    let fact = snapshot.pod(&pod.namespace, &pod.name).expect("it is there");
                    prop_assert!(!fact.excluded && !fact.host_network && !fact.finished, "{}", pod.name);
                    prop_assert_eq!(fact.node.as_ref(), Some(node));
                }
                prop_assert!(spec.senders.iter().all(|s| s.pod.namespace == s.tap.namespace && s.pod.namespace != "closed"));
                prop_assert!(spec.receivers.iter().all(|r| r.pod.as_ref().is_none_or(|p| p.namespace == r.tap.namespace)));
                for endpoint in spec.senders.iter().flat_map(|sender| &sender.destinations) {
                    prop_assert!(world.policy.is_some() || endpoint.port == 14789, "no policy allows {endpoint:?}");
                    prop_assert!(!endpoint.address.starts_with("203."), "no policy allows {endpoint:?}");
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
        let look = |world: &World| world.plan(&Claims::new(), |_, claims, plan| {
            let taps_: Vec<_> = plan.taps_.into_iter().map(|o| (o.tap.reference.clone(), o.standing, o.targets, o.destinations, o.vni)).collect();
            (claims.clone(), plan.nodes, taps_)
        });
        prop_assert_eq!(look(&world), look(&world));
        prop_assert_eq!(look(&world), look(&other));
    }

    #[test]
    fn a_settled_cluster_stays_as_it_is(world in worlds()) {
        let (settled, claims) = world.settled(&Claims::new());
        let before = world.plan(&Claims::new(), |_, claims, plan| (claims.clone(), plan.nodes));
        let after = settled.plan(&claims, |_, claims, plan| (claims.clone(), plan.nodes));
        prop_assert_eq!(before, after);
    }

    #[test]
    fn vnis_stay_when_other_taps_come_and_go(world in worlds(), gone in vec(any::<bool>(), 7), late in 0..7_usize) {
        // One tap comes only after the others, whatever its age says.
        let mut first = world.clone();
        let newcomer = first.taps.remove(late);
        let (mut settled, claims) = first.settled(&Claims::new());
        let mut leaving = gone.into_iter();
        settled.taps.retain(|_| !leaving.next().unwrap_or_default());
        settled.taps.push(newcomer.clone());
        let before = first.plan(&Claims::new(), |_, _, plan| vnis(&plan));
        let after = settled.plan(&claims, |_, _, plan| vnis(&plan));
        for (tap, vnis) in &after {
            if let Some(before) = before.get(tap).filter(|before| before.iter().all(Option::is_some)) {
                prop_assert_eq!(before, vnis);
            }
        }
        // What somebody held is not given away before the nodes have let go of it.
        let held: HashSet<i64> = settled.node_taps.iter().flat_map(|n| n.spec.receivers.iter().map(|r| r.vni)).collect();
        let fresh = after.get(newcomer.metadata.uid.as_deref().unwrap_or_default()).into_iter().flatten().flatten();
        for vni in fresh {
            prop_assert!(!held.contains(vni), "{vni} is still in use");
        }
    }

    #[test]
    fn a_lost_record_is_made_anew_from_what_the_taps_show(world in worlds()) {
        let (settled, claims) = world.settled(&Claims::new());
        let before = settled.plan(&claims, |_, _, plan| plan.nodes);
        let after = settled.plan(&Claims::new(), |_, _, plan| plan.nodes);
        prop_assert_eq!(before, after);
    }
}

/// The VNIs of each tap, by its UID.
fn vnis(plan: &Plan<'_>) -> BTreeMap<String, Vec<Option<i64>>> {
    let all = |tap: &TapPlan<'_>| {
        std::iter::once(tap.vni).chain(tap.destinations.iter().map(|d| d.vni)).collect::<Vec<_>>()
    };
    plan.taps_.iter().map(|tap| (tap.tap.reference.uid.clone(), all(tap))).collect()
}
