//! The pods of each namespace by the labels that its taps select, so that a tap need not examine every pod of a large namespace.

use std::{collections::BTreeMap, sync::Arc};

use kube::core::{Expression, Selector};

use crate::{
    store::{pod::CachedPod, snapshot::Snapshot},
    validate::{
        spec::{DestinationKind, Selection, TapSpec},
        tap::Tap,
    },
};

/// Pods, oldest first.
type Pods<'a> = Vec<&'a Arc<CachedPod>>;

/// The pods of the namespaces that have taps.
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
            let namespace = namespaces.entry(&tap.reference.namespace).or_default();
            for (key, value) in selectors(spec).flat_map(required) {
                namespace.by_label.entry(key).or_default().entry(value).or_default();
            }
        }
        for (name, namespace) in &mut namespaces {
            let Some(pods) = snapshot.pods.get(*name) else { continue };
            namespace.all = pods.iter().collect();
            namespace.all.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
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

    /// The pods of the namespace that a selection of one of its taps matches, oldest first.
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
                pods.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
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

/// The selectors of a tap.
fn selectors(spec: &TapSpec) -> impl Iterator<Item = &Selector> {
    let of_destinations = spec.destinations.iter().filter_map(|destination| match &destination.kind {
        DestinationKind::Pod { selection, .. } => Some(selection),
        DestinationKind::Node { .. } | DestinationKind::External { .. } | DestinationKind::Collector => None,
    });
    std::iter::once(&spec.selection).chain(of_destinations).filter_map(|selection| match selection {
        Selection::Labels(selector) => Some(selector),
        Selection::Names(_) => None,
    })
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
