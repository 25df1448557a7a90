//! Part of stage 4: which pods a tap is about. Pure.

use std::{collections::BTreeSet, sync::Arc};

use crate::{failure::{count, Failure}, reason, store::{objects::CachedPod, snapshot::Snapshot}, validate::tap::{Policy, Selection, Spec, Tap}};

/// A pod that a tap is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub pod: Arc<CachedPod>,
    /// Why it is not tapped.
    pub failure: Option<Failure>,
}

/// The pods that a tap is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Oldest first, without those that are too many.
    pub pods: Vec<Target>,
    /// How many match, with those that are too many.
    pub matched: usize,
    /// What is wrong with them as a whole.
    pub failure: Option<Failure>,
}

impl Targets {
    /// The pods to tap.
    pub fn tapped(&self) -> impl Iterator<Item = &Arc<CachedPod>> {
        self.pods.iter().filter(|target| target.failure.is_none()).map(|target| &target.pod)
    }
}

/// Finds the pods. A pod counts from the moment that it is bound to a node, so that its tap is there before its first
/// container, until its object is gone: what it sends while it terminates is its traffic too.
///
/// `consumers` are the UIDs of the pods that are destinations of this tap.
pub fn resolve(snapshot: &Snapshot, policy: &Policy, tap: &Tap, spec: &Spec, consumers: &BTreeSet<&str>) -> Targets {
    let namespace = &tap.reference.namespace;
    if let Some(failure) = excluded_namespace(snapshot, policy, namespace) {
        return Targets { failure: Some(failure), ..Targets::default() };
    }
    let pods = snapshot.pods.get(namespace).map(Vec::as_slice).unwrap_or_default();
    let mut candidates: Vec<&Arc<CachedPod>> =
        pods.iter().filter(|pod| !pod.excluded && !pod.finished && spec.selection.matches(pod)).collect();
    let found: BTreeSet<&str> = candidates.iter().map(|pod| pod.name.as_str()).collect();
    let missing = missing_names(&spec.selection, &found);
    let before = candidates.len();
    candidates.retain(|pod| pod.node.is_some());
    let unbound = before - candidates.len();
    candidates.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));

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
            reason::POD_NOT_FOUND,
            format!(
                "there is no pod {names} in the namespace {namespace}: it is tapped as soon as it appears; correct targets.podNames if the name is wrong"
            ),
        ))
    } else {
        None
    };
    Targets { pods: targets, matched, failure }
}

fn excluded_namespace(snapshot: &Snapshot, policy: &Policy, namespace: &str) -> Option<Failure> {
    let who = if policy.excluded_namespaces.contains(namespace) {
        "excludedNamespaces of the PodTapPolicy default lists it".to_owned()
    } else if snapshot.excluded_namespaces.contains(namespace) {
        format!("it carries {}=true", podtap_api::EXCLUDE)
    } else {
        return None;
    };
    Some(Failure::new(
        reason::NAMESPACE_EXCLUDED,
        format!("pods of the namespace {namespace} are never tapped, since {who}: ask the cluster's administrator"),
    ))
}

fn missing_names(selection: &Selection, found: &BTreeSet<&str>) -> Vec<String> {
    match selection {
        Selection::Names(names) => names.iter().filter(|name| !found.contains(name.as_str())).cloned().collect(),
        Selection::Labels(_) => Vec::new(),
    }
}

fn no_pods(tap: &Tap, spec: &Spec, unbound: usize, missing: &[String]) -> Failure {
    let namespace = &tap.reference.namespace;
    let message = if unbound > 0 {
        format!(
            "{} in the namespace {namespace}, but none is on a node yet: tapped as soon as the scheduler has found one",
            count(unbound, "pod matches", "pods match")
        )
    } else if missing.is_empty() {
        format!(
            "no pod of the namespace {namespace} matches targets.podSelector{}: compare it with the labels that `kubectl get pods -n {namespace} --show-labels` shows; pods that appear later are tapped by themselves",
            labels(&spec.selection)
        )
    } else {
        format!(
            "there is no pod {} in the namespace {namespace}: compare targets.podNames with `kubectl get pods -n {namespace}`; pods that appear later are tapped by themselves",
            missing.join(", ")
        )
    };
    Failure::new(reason::NO_PODS_MATCH, message)
}

/// A selector as `kubectl -l` takes it; nothing for one that selects everything.
fn labels(selection: &Selection) -> String {
    match selection {
        Selection::Labels(selector) if !selector.selects_all() => format!(" ({selector})"),
        _ => String::new(),
    }
}

fn too_many(tappable: usize, limit: usize, spec: &Spec) -> Failure {
    let cure = if spec.max_pods <= limit {
        "raise targets.maxPods, or select fewer pods"
    } else {
        "limits.targetsPerTap of the PodTapPolicy default says so: select fewer pods, or make several taps"
    };
    Failure::new(
        reason::TOO_MANY_PODS,
        format!("{tappable} pods match, and the oldest {limit} of them are tapped: {cure}"),
    )
}

fn unsupported(snapshot: &Snapshot, pod: &CachedPod, consumers: &BTreeSet<&str>) -> Option<Failure> {
    if pod.host_network {
        return Some(Failure::new(
            reason::TARGET_UNSUPPORTED,
            "the pod uses the node's network (hostNetwork: true): its traffic cannot be told from the node's. Leave it out of the targets",
        ));
    }
    if snapshot.is_impostor(pod) {
        return Some(Failure::new(
            reason::TARGET_UNSUPPORTED,
            "the pod says by its annotations that it is a static pod, which is another one: leave it out of the targets",
        ));
    }
    if consumers.contains(pod.uid.as_str()) {
        return Some(Failure::new(
            reason::DESTINATION_IS_TARGET,
            "the pod is a destination of this tap, and a copy of its own copies makes no sense: leave it out of the targets, for example by a label, or choose another destination",
        ));
    }
    let name = pod.node.as_deref().unwrap_or_default();
    match snapshot.nodes.get(name) {
        None => Some(Failure::new(
            reason::NODE_NOT_FOUND,
            format!("the pod is bound to the node {name}, which does not exist"),
        )),
        Some(node) if node.excluded => Some(Failure::new(
            reason::EXCLUDED,
            format!("the node {name} carries {}=true: pods on it are not tapped", podtap_api::EXCLUDE),
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
