//! The pods that a tap taps.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use podtap_api::{EXCLUDE, SkippedPods};
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

/// How many of the pods that are skipped for one reason are named.
const MAX_SKIPPED_NAMES: usize = 4;

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
    /// How many there are, with those above the limit.
    pub matched: usize,
    /// The pods that a selector matches, but that cannot be tapped, by reason.
    pub skipped: Vec<SkippedPods>,
    /// How many pods match that have opted out, or whose node has, or, for a tap of the cluster, whose namespace has.
    pub excluded: usize,
    /// The namespaces whose pods are never tapped, and that this tap may select.
    pub excluded_namespaces: BTreeSet<String>,
    /// What is wrong with the selection as a whole.
    pub failure: Option<Failure>,
}

impl Targets {
    /// The pods to tap.
    pub fn tapped(&self) -> impl Iterator<Item = &Arc<CachedPod>> {
        self.pods.iter().filter(|target| target.failure.is_none()).map(|target| &target.pod)
    }

    /// How many pods are skipped.
    pub fn skipped_pods(&self) -> i32 {
        self.skipped.iter().map(|skipped| skipped.count).sum()
    }
}

/// Resolves the targets. A pod counts from when it is bound to a node, so that it is tapped before its first container starts, until
/// its object is gone: what it sends while it terminates is its traffic, too.
///
/// A selector means "whatever can be tapped": a pod that cannot be is skipped and counted. A name means this pod: if it cannot be
/// tapped, that is a failure.
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
    let excluded_namespaces = excluded_namespaces(snapshot, policy, tap);
    let namespace = &tap.reference.namespace;
    if excluded_namespaces.contains(namespace) {
        let failure = Some(excluded_namespace(policy, namespace));
        return Targets { excluded_namespaces, failure, ..Targets::default() };
    }
    let mut selected = Selected::new(tap, &spec.selection);
    for pod in pods.selected(tap, spec) {
        if excluded_namespaces.contains(&pod.namespace) {
            selected.excluded += 1;
        } else {
            selected.add(pod, unsupported(snapshot, pod, consumers));
        }
    }
    let Selected { mut pods, skipped, excluded, unbound, missing, .. } = selected;

    let matched = pods.len();
    let limit = spec.max_pods.min(usize::try_from(limit(policy, tap).1).unwrap_or(usize::MAX));
    let mut tappable = 0;
    pods.retain(|target| {
        tappable += usize::from(target.failure.is_none());
        target.failure.is_some() || tappable <= limit
    });
    pods.shrink_to_fit();
    let skipped: Vec<SkippedPods> = skipped.into_values().collect();
    let failure = if matched == 0 {
        Some(if unbound == 0 && !(skipped.is_empty() && excluded == 0) {
            all_skipped(tap, spec, &skipped, excluded)
        } else {
            no_pods(tap, spec, unbound, &missing)
        })
    } else if tappable > limit {
        Some(too_many(tappable, limit, policy, tap, spec))
    } else if !missing.is_empty() {
        let names = missing.into_iter().collect::<Vec<_>>().join(", ");
        Some(Failure::new(
            Reason::PodNotFound,
            format!(
                "the namespace {namespace} has no pod {names}: it is tapped as soon as it exists; correct targets.podNames if the name is wrong"
            ),
        ))
    } else {
        None
    };
    Targets { pods, matched, skipped, excluded, excluded_namespaces, failure }
}

/// The limit of the policy for the pods of the tap, with its name.
fn limit(policy: &Policy, tap: &Tap) -> (&'static str, u32) {
    if tap.reference.is_cluster_scoped() {
        ("limits.targetsPerClusterTap", policy.limits.targets_per_cluster_tap)
    } else {
        ("limits.targetsPerTap", policy.limits.targets_per_tap)
    }
}

/// The pods that match, sorted by what becomes of them.
struct Selected<'a> {
    tap: &'a Tap,
    /// Whether the tap names its pods.
    by_name: bool,
    pods: Vec<Target>,
    skipped: BTreeMap<Reason, SkippedPods>,
    excluded: usize,
    /// How many are not bound to a node yet.
    unbound: usize,
    /// The names that no pod has.
    missing: BTreeSet<&'a str>,
}

impl<'a> Selected<'a> {
    fn new(tap: &'a Tap, selection: &'a Selection) -> Self {
        let missing = match selection {
            Selection::Names(names) => names.iter().map(String::as_str).collect(),
            Selection::Labels(_) => BTreeSet::new(),
        };
        let by_name = matches!(selection, Selection::Names(_));
        Self { tap, by_name, pods: Vec::new(), skipped: BTreeMap::new(), excluded: 0, unbound: 0, missing }
    }

    fn add(&mut self, pod: &Arc<CachedPod>, failure: Option<Failure>) {
        self.missing.remove(pod.name.as_str());
        match failure {
            None if pod.node.is_none() => self.unbound += 1,
            Some(Failure { reason: Reason::Excluded, .. }) if !self.by_name => self.excluded += 1,
            Some(Failure { reason, .. }) if !self.by_name => {
                let new = || SkippedPods { reason, count: 0, pods: Vec::new() };
                let skipped = self.skipped.entry(reason).or_insert_with(new);
                skipped.count += 1;
                if skipped.pods.len() < MAX_SKIPPED_NAMES {
                    skipped.pods.push(self.tap.shown(pod));
                }
            }
            failure => self.pods.push(Target { pod: Arc::clone(pod), failure }),
        }
    }
}

/// The namespaces that have opted out, or that the policy lists: of all that the tap can select pods of.
fn excluded_namespaces(snapshot: &Snapshot, policy: &Policy, tap: &Tap) -> BTreeSet<String> {
    let by_policy = policy.excluded_namespaces.iter();
    let by_themselves = snapshot.namespaces.values().filter(|namespace| namespace.excluded);
    let excluded = by_policy.chain(by_themselves.map(|namespace| &namespace.name));
    let is_of_tap = |name: &&String| tap.reference.is_cluster_scoped() || **name == tap.reference.namespace;
    excluded.filter(is_of_tap).cloned().collect()
}

fn excluded_namespace(policy: &Policy, namespace: &str) -> Failure {
    let cause = if policy.excluded_namespaces.contains(namespace) {
        "excludedNamespaces of the PodTapPolicy default lists it".to_owned()
    } else {
        format!("it has opted out with {EXCLUDE}")
    };
    Failure::new(
        Reason::NamespaceExcluded,
        format!("pods of the namespace {namespace} are never tapped, since {cause}: ask the cluster's administrator"),
    )
}

fn no_pods(tap: &Tap, spec: &TapSpec, unbound: usize, missing: &BTreeSet<&str>) -> Failure {
    let namespace = &tap.reference.namespace;
    let message = if unbound > 0 {
        format!(
            "{} in {}, but none is scheduled yet: tapped as soon as they are on a node",
            count(unbound, "pod matches", "pods match"),
            place(tap)
        )
    } else if tap.reference.is_cluster_scoped() {
        format!(
            "no pod of {} matches targets.podSelector{}: compare targets with the labels that `kubectl get namespaces,nodes --show-labels` and `kubectl get pods --all-namespaces --show-labels` show; matching pods are tapped as they are created",
            place(tap),
            labels(&spec.selection)
        )
    } else if missing.is_empty() {
        format!(
            "no pod of the namespace {namespace} matches targets.podSelector{}: compare it with the labels that `kubectl get pods -n {namespace} --show-labels` shows; matching pods are tapped as they are created",
            labels(&spec.selection)
        )
    } else {
        format!(
            "the namespace {namespace} has no pod {}: compare targets.podNames with `kubectl get pods -n {namespace}`; matching pods are tapped as they are created",
            missing.iter().copied().collect::<Vec<_>>().join(", ")
        )
    };
    Failure::new(Reason::NoPodsMatch, message)
}

fn all_skipped(tap: &Tap, spec: &TapSpec, skipped: &[SkippedPods], excluded: usize) -> Failure {
    let by_reason = skipped.iter().map(|skipped| format!("{} ({})", skipped_because(skipped.reason), skipped.count));
    let excluded = (excluded > 0).then(|| format!("opted out with {EXCLUDE} ({excluded})"));
    Failure::new(
        Reason::AllPodsSkipped,
        format!(
            "every pod of {} that matches targets.podSelector{} is skipped: {}. Other pods are tapped as they are created",
            place(tap),
            labels(&spec.selection),
            by_reason.chain(excluded).collect::<Vec<_>>().join(", ")
        ),
    )
}

/// Why pods are skipped, in a few words.
fn skipped_because(reason: Reason) -> &'static str {
    match reason {
        Reason::HostNetwork => "uses the network of its node",
        Reason::DestinationIsTarget => "is a destination of this tap",
        Reason::PodFinished => "has ended",
        Reason::NodeNotFound => "its node does not exist",
        _ => "cannot be tapped",
    }
}

/// Where the tap's pods are.
fn place(tap: &Tap) -> String {
    if tap.reference.is_cluster_scoped() {
        "the selected namespaces and nodes".to_owned()
    } else {
        format!("the namespace {}", tap.reference.namespace)
    }
}

/// A selector as `kubectl -l` takes it; empty for one that selects everything.
fn labels(selection: &Selection) -> String {
    match selection {
        Selection::Labels(selector) if !selector.selects_all() => format!(" ({selector})"),
        _ => String::new(),
    }
}

fn too_many(tappable: usize, limit: usize, policy: &Policy, tap: &Tap, spec: &TapSpec) -> Failure {
    let action = if spec.max_pods <= limit {
        "raise targets.maxPods, or select fewer pods".to_owned()
    } else {
        let (name, _) = self::limit(policy, tap);
        format!(
            "{name} of the PodTapPolicy default allows no more: select fewer pods, create several taps, or ask the cluster's administrator"
        )
    };
    Failure::new(
        Reason::TooManyPods,
        format!("{tappable} pods match, and the oldest {limit} of them are tapped: {action}"),
    )
}

/// Why a pod cannot be tapped. The messages are for pods that a tap names.
fn unsupported(snapshot: &Snapshot, pod: &CachedPod, consumers: &BTreeSet<&str>) -> Option<Failure> {
    let failure = |reason, message: &str| Some(Failure::new(reason, message));
    let node = pod.node.as_ref().map(|name| (name, snapshot.nodes.get(name)));
    if pod.excluded {
        failure(Reason::Excluded, "the pod has opted out with podtap.dev/exclude: remove it from targets.podNames")
    } else if pod.finished {
        failure(
            Reason::PodFinished,
            "the pod has ended, and sends nothing any more: remove it from targets.podNames, or recreate it",
        )
    } else if pod.host_network {
        failure(
            Reason::HostNetwork,
            "the pod uses the network of its node (hostNetwork: true), and its traffic cannot be told apart from the node's: remove it from targets.podNames",
        )
    } else if consumers.contains(&*pod.uid) {
        failure(
            Reason::DestinationIsTarget,
            "the pod is a destination of this tap, and would receive its own mirrored frames: remove it from targets.podNames, or choose another destination",
        )
    } else if let Some((name, None)) = node {
        failure(
            Reason::NodeNotFound,
            &format!("the pod is bound to the node {name}, which does not exist any more: recreate the pod"),
        )
    } else if let Some((name, Some(node))) = node
        && node.excluded
    {
        failure(
            Reason::Excluded,
            &format!("the node {name} of the pod has opted out with {EXCLUDE}: remove the pod from targets.podNames"),
        )
    } else if snapshot.is_impostor(pod) {
        failure(
            Reason::TargetUnsupported,
            "the annotations of the pod claim that it is the static pod of another one: remove it from targets.podNames",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
