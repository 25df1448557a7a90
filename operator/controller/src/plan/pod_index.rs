//! The pods of each namespace by the labels that taps select, so that a tap need not examine every pod of a large namespace.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use kube::core::{Expression, Selector, SelectorExt as _};

use crate::{
    store::{node::CachedNamespace, pod::CachedPod, snapshot::Snapshot},
    validate::{
        spec::{DestinationKind, Scope, Selection, TapSpec},
        tap::Tap,
    },
};

/// Pods, oldest first.
type Pods<'a> = Vec<&'a Arc<CachedPod>>;

/// The pods of the namespaces that taps select, or that have consumers.
#[derive(Debug)]
pub struct PodIndex<'a> {
    snapshot: &'a Snapshot,
    namespaces: BTreeMap<&'a str, Namespace<'a>>,
}

#[derive(Debug, Default)]
struct Namespace<'a> {
    all: Pods<'a>,
    /// By key and value; only the labels that a selector requires.
    by_label: BTreeMap<String, BTreeMap<String, Pods<'a>>>,
}

impl<'a> PodIndex<'a> {
    /// Looks at each pod once.
    pub fn new(snapshot: &'a Snapshot, taps: &'a [Tap]) -> Self {
        let mut namespaces: BTreeMap<&str, Namespace<'_>> = BTreeMap::new();
        for (tap, spec) in taps.iter().filter_map(|tap| Some((tap, tap.spec.as_ref().ok()?))) {
            let targets = selected(snapshot, tap, &spec.scope).map(|namespace| (namespace, &spec.selection));
            for (namespace, selection) in targets.chain(consumers(spec)) {
                let namespace = namespaces.entry(namespace).or_default();
                let Selection::Labels(selector) = selection else { continue };
                for (key, value) in required(selector) {
                    namespace.by_label.entry(key).or_default().entry(value).or_default();
                }
            }
        }
        for (name, namespace) in &mut namespaces {
            let Some(pods) = snapshot.pods.get(*name) else { continue };
            namespace.all = pods.iter().collect();
            namespace.all.sort_by(|a, b| age(a).cmp(&age(b)));
            for pod in &namespace.all {
                for (key, value) in &pod.labels {
                    if let Some(pods) = namespace.by_label.get_mut(key).and_then(|values| values.get_mut(value)) {
                        pods.push(pod);
                    }
                }
            }
        }
        Self { snapshot, namespaces }
    }

    /// The pods that a tap selects, oldest first.
    pub fn selected(&self, tap: &'a Tap, spec: &'a TapSpec) -> Pods<'a> {
        let namespaces = selected(self.snapshot, tap, &spec.scope);
        let pods = namespaces.flat_map(|namespace| self.matching(namespace, &spec.selection));
        let mut pods: Pods<'a> = pods.filter(|pod| is_on_selected_node(self.snapshot, pod, &spec.scope)).collect();
        pods.sort_by(|a, b| age(a).cmp(&age(b)));
        pods
    }

    /// The pods of the namespace that a selection of a tap matches, oldest first.
    pub fn matching<'b>(
        &'b self,
        namespace: &'b str,
        selection: &'b Selection,
    ) -> impl Iterator<Item = &'a Arc<CachedPod>> + 'b {
        self.candidates(namespace, selection).into_iter().filter(|pod| selection.matches(pod))
    }

    /// The pods that may match.
    fn candidates(&self, namespace: &str, selection: &Selection) -> Pods<'a> {
        match selection {
            Selection::Names(names) => {
                let mut pods: Pods<'a> = names.iter().filter_map(|name| self.snapshot.pod(namespace, name)).collect();
                pods.sort_by(|a, b| age(a).cmp(&age(b)));
                pods
            }
            Selection::Labels(selector) => {
                let Some(namespace) = self.namespaces.get(namespace) else { return Vec::new() };
                let with_label = |(key, value): (String, String)| namespace.by_label.get(&key)?.get(&value);
                let fewest = required(selector).filter_map(with_label).min_by_key(|pods| pods.len());
                fewest.unwrap_or(&namespace.all).clone()
            }
        }
    }
}

/// The namespaces whose pods a tap selects. A tap of the cluster never selects that of PodTap.
fn selected<'a>(snapshot: &'a Snapshot, tap: &'a Tap, scope: &'a Scope) -> impl Iterator<Item = &'a str> {
    let (own, namespaces) = match scope {
        Scope::Namespace => (Some(tap.reference.namespace.as_str()), None),
        Scope::Cluster { namespaces, .. } => (None, Some(namespaces)),
    };
    let matches = move |namespace: &&Arc<CachedNamespace>| {
        !namespace.is_own && namespaces.is_some_and(|selector| selector.matches(&namespace.labels))
    };
    own.into_iter().chain(snapshot.namespaces.values().filter(matches).map(|namespace| namespace.name.as_str()))
}

/// Whether a pod is on one of the nodes that are selected. One that is on none yet is on any, but not on some with certain labels.
fn is_on_selected_node(snapshot: &Snapshot, pod: &CachedPod, scope: &Scope) -> bool {
    match scope {
        Scope::Cluster { nodes, .. } if !nodes.selects_all() => {
            let node = pod.node.as_ref().and_then(|node| snapshot.nodes.get(node));
            node.is_some_and(|node| nodes.matches(&node.labels))
        }
        Scope::Cluster { .. } | Scope::Namespace => true,
    }
}

/// The namespaces of the pods to which a tap mirrors, and which of their pods.
fn consumers(spec: &TapSpec) -> impl Iterator<Item = (&str, &Selection)> {
    spec.destinations.iter().filter_map(|destination| match &destination.kind {
        DestinationKind::Pod { namespace, selection, .. } => Some((namespace.as_str(), selection)),
        DestinationKind::Node { .. } | DestinationKind::External { .. } | DestinationKind::Collector => None,
    })
}

/// Older pods first.
fn age(pod: &CachedPod) -> (Timestamp, &str, &str) {
    (pod.created, &pod.namespace, &pod.name)
}

/// The labels that every pod has that the selector matches, as keys and values.
fn required(selector: &Selector) -> impl Iterator<Item = (String, String)> {
    selector.clone().into_iter().filter_map(|expression| match expression {
        Expression::Equal(key, value) => Some((key, value)),
        Expression::In(key, values) if values.len() == 1 => values.into_iter().next().map(|value| (key, value)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        fixtures::{World, object, pod, policy, tap, time},
        validate::tap::validate,
    };

    /// How many pods of the namespace each tap examines.
    fn examined(world: &World) -> Vec<usize> {
        let snapshot = world.snapshot();
        let validated = validate(&snapshot);
        let index = PodIndex::new(&snapshot, &validated.taps);
        let spec = |tap: &Tap| tap.spec.clone().expect("valid");
        validated.taps.iter().map(|tap| index.candidates("shop", &spec(tap).selection).len()).collect()
    }

    #[test]
    fn a_tap_examines_only_pods_with_one_of_its_labels() {
        let mut world = World::small();
        world.policy = Some(policy(json!({"limits": {"tapsPerNamespace": 1000}})));
        for number in 0..2000 {
            let mut pod = pod("shop", &format!("p{number}"), "n1");
            let labels = [("app", format!("a{}", number % 100)), ("tier", "web".to_owned())];
            pod.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value)).into());
            world.pods.push(pod);
        }
        for number in 0..100 {
            let mut tap = tap(&format!("t{number}"), json!([{"node": {"name": "n2"}}]));
            tap.spec.targets =
                object(json!({"podSelector": {"matchLabels": {"app": format!("a{number}"), "tier": "web"}}}));
            world.taps.push(tap);
        }
        let examined = examined(&world);
        assert_eq!((examined.len(), examined.iter().sum::<usize>()), (100, 2000), "and not 100 times 2000");
    }

    fn targets_of_any_kind() -> impl Strategy<Value = Value> {
        let value = || select(vec!["x", "y", "z"]);
        let expression =
            (select(vec!["a", "b"]), value(), value(), 0..6).prop_map(|(key, one, other, kind)| match kind {
                0 => json!({"key": key, "operator": "In", "values": [one]}),
                1 => json!({"key": key, "operator": "In", "values": [one, other]}),
                2 => json!({"key": key, "operator": "NotIn", "values": [one]}),
                3 => json!({"key": key, "operator": "Exists"}),
                _ => json!({"key": key, "operator": "DoesNotExist"}),
            });
        let labels = vec((select(vec!["a", "b"]), value()), 0..3);
        prop_oneof![
            4 => (labels, vec(expression, 0..3)).prop_map(|(labels, expressions)| {
                let labels: BTreeMap<_, _> = labels.into_iter().collect();
                json!({"podSelector": {"matchLabels": labels, "matchExpressions": expressions}})
            }),
            1 => vec((0..10).prop_map(|number| format!("p{number}")), 1..4).prop_map(|names| json!({"podNames": names})),
        ]
    }

    proptest! {
        #[test]
        fn it_finds_what_a_scan_of_every_pod_finds(
            labels in vec(vec((select(vec!["a", "b"]), select(vec!["x", "y", "z"])), 0..3), 1..10),
            created in vec(0..3_i64, 10),
            targets in vec(targets_of_any_kind(), 1..6),
        ) {
            let mut world = World::small();
            world.pods.clear();
            for (number, (labels, created)) in labels.into_iter().zip(created).enumerate() {
                let mut pod = pod(if number == 0 { "bank" } else { "shop" }, &format!("p{number}"), "n1");
                pod.metadata.labels = Some(labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect());
                pod.metadata.creation_timestamp = time(created);
                world.pods.push(pod);
            }
            for (number, targets) in targets.into_iter().enumerate() {
                let mut tap = tap(&format!("t{number}"), json!([{"node": {"name": "n2"}}]));
                tap.spec.targets = object(targets);
                world.taps.push(tap);
            }
            let snapshot = world.snapshot();
            let validated = validate(&snapshot);
            let index = PodIndex::new(&snapshot, &validated.taps);
            for tap in &validated.taps {
                let selection = &tap.spec.as_ref().expect("valid").selection;
                let mut expected: Vec<_> =
                    snapshot.pods.get("shop").into_iter().flatten().filter(|pod| selection.matches(pod)).collect();
                expected.sort_by_key(|pod| (pod.created, &pod.name));
                let found: Vec<_> = index.matching("shop", selection).collect();
                prop_assert_eq!(found, expected, "{:?}", selection);
            }
        }
    }
}
