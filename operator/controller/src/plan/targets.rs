//! The pods that a tap taps.

use std::{collections::BTreeSet, sync::Arc};

use podtap_api::EXCLUDE;
use podtap_model::Reason;

use crate::{
    failure::{Failure, count},
    plan::pod_index::PodIndex,
    store::{pod::CachedPod, snapshot::Snapshot},
    validate::{
        policy::Policy,
        spec::{Selection, TapSpec},
        tap::Tap,
    },
};

/// A pod that a tap selects.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub pod: Arc<CachedPod>,
    /// Why it is not tapped.
    pub failure: Option<Failure>,
}

/// The pods that a tap selects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Oldest first, without those above the limit.
    pub pods: Vec<Target>,
    /// How many match, with those above the limit.
    pub matched: usize,
    /// What is wrong with the selection as a whole.
    pub failure: Option<Failure>,
}

impl Targets {
    /// The pods to tap.
    pub fn tapped(&self) -> impl Iterator<Item = &Arc<CachedPod>> {
        self.pods.iter().filter(|target| target.failure.is_none()).map(|target| &target.pod)
    }
}

/// Resolves the targets. A pod counts from when it is bound to a node, so that it is tapped before its first container starts, until
/// its object is gone: what it sends while it terminates is its traffic, too.
///
/// `consumers` are the UIDs of the pods that are destinations of this tap.
pub fn resolve(
    snapshot: &Snapshot,
    pods: &PodIndex<'_>,
    policy: &Policy,
    tap: &Tap,
    spec: &TapSpec,
    consumers: &BTreeSet<&str>,
) -> Targets {
    let namespace = &tap.reference.namespace;
    if let Some(failure) = excluded_namespace(snapshot, policy, namespace) {
        return Targets { failure: Some(failure), ..Targets::default() };
    }
    let matching = pods.matching(namespace, &spec.selection);
    let mut candidates: Vec<&Arc<CachedPod>> = matching.filter(|pod| !pod.excluded && !pod.finished).collect();
    let found: BTreeSet<&str> = candidates.iter().map(|pod| pod.name.as_str()).collect();
    let missing = missing_names(&spec.selection, &found);
    let before = candidates.len();
    candidates.retain(|pod| pod.node.is_some());
    let unbound = before - candidates.len();

    let matched = candidates.len();
    let limit = spec.max_pods.min(usize::try_from(policy.limits.targets_per_tap).unwrap_or(usize::MAX));
    let mut tappable = 0;
    let mut targets: Vec<Target> = candidates
        .into_iter()
        .map(|pod| Target { failure: unsupported(snapshot, pod, consumers), pod: Arc::clone(pod) })
        .filter(|target| {
            tappable += usize::from(target.failure.is_none());
            target.failure.is_some() || tappable <= limit
        })
        .collect();
    targets.shrink_to_fit();
    let failure = if matched == 0 {
        Some(no_pods(tap, spec, unbound, &missing))
    } else if tappable > limit {
        Some(too_many(tappable, limit, spec))
    } else if !missing.is_empty() {
        let names = missing.join(", ");
        Some(Failure::new(
            Reason::PodNotFound,
            format!(
                "the namespace {namespace} has no pod {names}: it is tapped as soon as it exists; correct targets.podNames if the name is wrong"
            ),
        ))
    } else {
        None
    };
    Targets { pods: targets, matched, failure }
}

fn excluded_namespace(snapshot: &Snapshot, policy: &Policy, namespace: &str) -> Option<Failure> {
    let cause = if policy.excluded_namespaces.contains(namespace) {
        "excludedNamespaces of the PodTapPolicy default lists it".to_owned()
    } else if snapshot.excluded_namespaces.contains(namespace) {
        format!("it has {EXCLUDE}=true")
    } else {
        return None;
    };
    Some(Failure::new(
        Reason::NamespaceExcluded,
        format!("pods of the namespace {namespace} are never tapped, since {cause}: ask the cluster's administrator"),
    ))
}

fn missing_names(selection: &Selection, found: &BTreeSet<&str>) -> Vec<String> {
    match selection {
        Selection::Names(names) => names.iter().filter(|name| !found.contains(name.as_str())).cloned().collect(),
        Selection::Labels(_) => Vec::new(),
    }
}

fn no_pods(tap: &Tap, spec: &TapSpec, unbound: usize, missing: &[String]) -> Failure {
    let namespace = &tap.reference.namespace;
    let message = if unbound > 0 {
        format!(
            "{} in the namespace {namespace}, but none is scheduled yet: tapped as soon as they are on a node",
            count(unbound, "pod matches", "pods match")
        )
    } else if missing.is_empty() {
        format!(
            "no pod of the namespace {namespace} matches targets.podSelector{}: compare it with the labels that `kubectl get pods -n {namespace} --show-labels` shows; matching pods are tapped as they are created",
            labels(&spec.selection)
        )
    } else {
        format!(
            "the namespace {namespace} has no pod {}: compare targets.podNames with `kubectl get pods -n {namespace}`; matching pods are tapped as they are created",
            missing.join(", ")
        )
    };
    Failure::new(Reason::NoPodsMatch, message)
}

/// A selector as `kubectl -l` takes it; empty for one that selects everything.
fn labels(selection: &Selection) -> String {
    match selection {
        Selection::Labels(selector) if !selector.selects_all() => format!(" ({selector})"),
        _ => String::new(),
    }
}

fn too_many(tappable: usize, limit: usize, spec: &TapSpec) -> Failure {
    let action = if spec.max_pods <= limit {
        "raise targets.maxPods, or select fewer pods"
    } else {
        "limits.targetsPerTap of the PodTapPolicy default allows no more: select fewer pods, or create several taps"
    };
    Failure::new(
        Reason::TooManyPods,
        format!("{tappable} pods match, and the oldest {limit} of them are tapped: {action}"),
    )
}

fn unsupported(snapshot: &Snapshot, pod: &CachedPod, consumers: &BTreeSet<&str>) -> Option<Failure> {
    if pod.host_network {
        return Some(Failure::new(
            Reason::TargetUnsupported,
            "the pod shares the node's network (hostNetwork: true), and its traffic cannot be told apart from the node's: leave it out of the targets",
        ));
    }
    if snapshot.is_impostor(pod) {
        return Some(Failure::new(
            Reason::TargetUnsupported,
            "the annotations of the pod claim that it is the static pod of another one: leave it out of the targets",
        ));
    }
    if consumers.contains(&*pod.uid) {
        return Some(Failure::new(
            Reason::DestinationIsTarget,
            "the pod is a destination of this tap, and would receive its own mirrored frames: leave it out of the targets, for example by a label, or choose another destination",
        ));
    }
    let name = pod.node.as_deref().unwrap_or_default();
    match snapshot.nodes.get(name) {
        None => Some(Failure::new(
            Reason::NodeNotFound,
            format!("the pod is bound to the node {name}, which does not exist"),
        )),
        Some(node) if node.excluded => Some(Failure::new(
            Reason::Excluded,
            format!("the node {name} has {EXCLUDE}=true: pods on it are not tapped"),
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
