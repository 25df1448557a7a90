//! Which pods a tap matches, and which of them it mirrors.

use std::{collections::BTreeMap, fmt::Debug};

use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::ListParams,
    core::{Selector, SelectorExt as _},
};
use podtap_api::{
    ClusterTargets, NodeTap, ObjectSelector, POLICY_NAME, PodTapPolicy, SkippedPods, Targets, is_excluded,
};
use podtap_model::{Reason, State};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    connection::Cluster,
    exit::{Exit, Failure, Outcome},
    selector,
    tap::Tap,
};

/// Whether a tap mirrors a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Verdict {
    /// It is tapped.
    Tapped,
    /// It is not, and no action is needed.
    Pending(Cause),
    /// It matches, and is not tapped.
    NotTapped(Cause),
    /// The tap does not select it.
    NotMatched(Cause),
    /// The user may not read what tells.
    Unknown(Cause),
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cause {
    /// One of the reasons of the documentation; empty if the tap does not select the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Cause {
    /// A reason, and a message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason: reason.to_string(), message: message.into() }
    }

    fn unread(what: &str) -> Self {
        Self { reason: String::new(), message: format!("you may not read {what}, which tell") }
    }
}

/// What else decides about pods, as far as the user may read it.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// By name.
    pub namespaces: Option<BTreeMap<String, ObjectMeta>>,
    /// By name.
    pub nodes: Option<BTreeMap<String, ObjectMeta>>,
    /// None if there is none, too.
    pub policy: Option<PodTapPolicy>,
    /// Whether the user may read the policy.
    pub is_policy_known: bool,
    /// The state of the nodes.
    pub node_taps: Option<Vec<NodeTap>>,
}

/// None if the user may not read it.
pub fn if_permitted<T>(result: Result<T, impl Into<Failure>>) -> Outcome<Option<T>> {
    match result.map_err(Into::into) {
        Ok(value) => Ok(Some(value)),
        Err(failure) if failure.exit == Exit::NotPermitted => Ok(None),
        Err(failure) => Err(failure),
    }
}

impl Surroundings {
    /// Reads what the user may read.
    pub async fn read(cluster: &Cluster) -> Outcome<Self> {
        let client = || cluster.client.clone();
        let policies = Api::<PodTapPolicy>::all(client());
        let node_taps = Api::<NodeTap>::all(client());
        let all = ListParams::default();
        let (namespaces, nodes, policy, node_taps) = tokio::join!(
            metadata(Api::<Namespace>::all(client())),
            metadata(Api::<Node>::all(client())),
            policies.get_opt(POLICY_NAME),
            node_taps.list(&all)
        );
        let policy = if_permitted(policy)?;
        Ok(Self {
            namespaces: namespaces?,
            nodes: nodes?,
            is_policy_known: policy.is_some(),
            policy: policy.flatten(),
            node_taps: if_permitted(node_taps)?.map(|list| list.items),
        })
    }
}

/// Metadata of all objects of a kind, by name.
async fn metadata<K>(api: Api<K>) -> Outcome<Option<BTreeMap<String, ObjectMeta>>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let list = if_permitted(api.list_metadata(&ListParams::default()).await)?;
    let by_name = |meta: ObjectMeta| Some((meta.name.clone()?, meta));
    Ok(list.map(|list| list.items.into_iter().filter_map(|object| by_name(object.metadata)).collect()))
}

/// The pods that the selection of a tap matches, or none if the user may not list them.
pub async fn matching(cluster: &Cluster, tap: &Tap) -> Outcome<Option<Vec<Pod>>> {
    let api: Api<Pod> = match tap.namespace() {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let pod_selector = match tap {
        Tap::Namespaced(tap) => tap.spec.targets.pod_selector.as_ref(),
        Tap::Cluster(tap) => Some(&tap.spec.targets.pod_selector),
    };
    let mut parameters = ListParams::default();
    if let Some(selector) = pod_selector.and_then(|selector| Selector::try_from(selector.selector.clone()).ok()) {
        parameters = parameters.labels_from(&selector);
    }
    let Some(list) = if_permitted(api.list(&parameters).await)? else { return Ok(None) };
    let mut pods = list.items;
    if let Tap::Namespaced(tap) = tap {
        let names = tap.spec.targets.pod_names.as_ref();
        pods.retain(|pod| names.is_none_or(|names| names.contains(&pod.name_any())));
    }
    Ok(Some(pods))
}

/// Whether a tap mirrors a pod, and why not.
pub fn verdict(tap: &Tap, pod: &Pod, around: &Surroundings) -> Verdict {
    if let Some(verdict) = without_nodes(tap, pod, around) {
        return verdict;
    }
    let Some(node_taps) = &around.node_taps else { return by_status(tap, around) };
    let senders = node_taps.iter().filter_map(|node| node.status.as_ref()).flat_map(|status| &status.senders);
    let uid = pod.uid().unwrap_or_default();
    let sender = senders.into_iter().find(|sender| sender.tap_uid == tap.uid() && sender.pod_uid == uid);
    if let Some(sender) = sender {
        let cause = Cause::new(sender.reason, &sender.message);
        return match sender.state {
            State::Active => Verdict::Tapped,
            State::Pending => Verdict::Pending(cause),
            State::Refused | State::Failed | State::Removing => Verdict::NotTapped(cause),
        };
    }
    not_reported(tap)
}

/// Why a tap does not mirror a pod, as far as that depends on no node; none if nothing speaks against it.
pub fn without_nodes(tap: &Tap, pod: &Pod, around: &Surroundings) -> Option<Verdict> {
    if let Some(message) = mismatch(tap, pod, around) {
        return Some(Verdict::NotMatched(Cause { reason: String::new(), message }));
    }
    if let Some(cause) = obstacle(tap, pod, around) {
        return Some(Verdict::NotTapped(cause));
    }
    let is_bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    (!is_bound).then(|| Verdict::Pending(Cause::new(Reason::Pending, "it is on no node yet")))
}

/// Without the states of the nodes: whether a pod that could be tapped is, by what the status of the tap tells of all of them.
fn by_status(tap: &Tap, around: &Surroundings) -> Verdict {
    let is_unread = |selector: &ObjectSelector, objects: Option<&BTreeMap<String, ObjectMeta>>| {
        selector.selector != LabelSelector::default() && objects.is_none()
    };
    if let Tap::Cluster(tap) = tap {
        let ClusterTargets { namespace_selector, node_selector, .. } = &tap.spec.targets;
        if is_unread(namespace_selector, around.namespaces.as_ref()) || is_unread(node_selector, around.nodes.as_ref())
        {
            return Verdict::Unknown(Cause::unread("the labels of namespaces and nodes"));
        }
    }
    let status = tap.status().cloned().unwrap_or_default();
    if status.tapped_pods == 0 {
        return not_reported(tap);
    }
    let failures = i32::try_from(status.failures.len()).unwrap_or(i32::MAX);
    let is_complete = status.tapped_pods.saturating_add(failures) >= status.matched_pods;
    // Of many pods with the same reason, a few are named.
    let are_named =
        |skipped: &SkippedPods| usize::try_from(skipped.count).is_ok_and(|count| count == skipped.pods.len());
    let is_limited = tap.ready().is_some_and(|ready| ready.reason == Reason::TooManyPods.as_str());
    if is_complete && !is_limited && status.skipped.iter().all(are_named) {
        Verdict::Tapped
    } else {
        Verdict::Unknown(Cause::unread("NodeTaps"))
    }
}

/// Of a pod of which no node tells.
fn not_reported(tap: &Tap) -> Verdict {
    match tap.ready() {
        Some(ready) if ready.status == "False" => {
            let cause = Cause { reason: ready.reason.clone(), message: ready.message.clone() };
            // Other pods may be tapped while one of the tap's destinations is not ready.
            if ready.reason == Reason::Pending.as_str() { Verdict::Pending(cause) } else { Verdict::NotTapped(cause) }
        }
        _ => Verdict::Pending(Cause::new(Reason::Pending, "its node has not reported it yet")),
    }
}

/// Why a tap does not select a pod.
fn mismatch(tap: &Tap, pod: &Pod, around: &Surroundings) -> Option<String> {
    match tap {
        Tap::Namespaced(tap) => {
            let Targets { pod_names, pod_selector, .. } = &tap.spec.targets;
            if tap.namespace() != pod.namespace() {
                return Some("it taps pods of its own namespace".to_owned());
            }
            match (pod_names, pod_selector) {
                (Some(names), _) => {
                    (!names.contains(&pod.name_any())).then(|| format!("podNames has {}", names.join(", ")))
                }
                (None, Some(selector)) => unmatched("podSelector", &selector.selector, pod.meta()),
                (None, None) => None,
            }
        }
        Tap::Cluster(tap) => {
            let ClusterTargets { namespace_selector, pod_selector, node_selector, .. } = &tap.spec.targets;
            let namespace = around.namespaces.as_ref().and_then(|all| all.get(&pod.namespace()?));
            let node = around.nodes.as_ref().and_then(|all| all.get(pod.spec.as_ref()?.node_name.as_ref()?));
            unmatched("podSelector", &pod_selector.selector, pod.meta())
                .or_else(|| unmatched("namespaceSelector", &namespace_selector.selector, namespace?))
                .or_else(|| unmatched("nodeSelector", &node_selector.selector, node?))
        }
    }
}

fn unmatched(field: &str, selector: &LabelSelector, meta: &ObjectMeta) -> Option<String> {
    let labels = meta.labels.clone().unwrap_or_default();
    let parsed = Selector::try_from(selector.clone()).ok()?;
    if parsed.matches(&labels) {
        return None;
    }
    let keys: Vec<_> = parsed.into_iter().map(|expression| key(&expression).to_owned()).collect();
    let has = keys.iter().map(|key| labels.get(key).map_or(format!("no {key}"), |value| format!("{key}={value}")));
    Some(format!("{field} is {}, and there is {}", selector::text(selector), has.collect::<Vec<_>>().join(", ")))
}

fn key(expression: &kube::core::Expression) -> &str {
    use kube::core::Expression::{DoesNotExist, Equal, Exists, In, NotEqual, NotIn};
    match expression {
        Equal(key, _) | NotEqual(key, _) | In(key, _) | NotIn(key, _) | Exists(key) | DoesNotExist(key) => key,
    }
}

/// Why a pod that a tap selects is not tapped.
fn obstacle(tap: &Tap, pod: &Pod, around: &Surroundings) -> Option<Cause> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let spec = pod.spec.as_ref();
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let node = spec.and_then(|spec| spec.node_name.as_ref());
    let opted_out = |what: &str, metas: Option<&BTreeMap<String, ObjectMeta>>, name: &str| {
        let meta = metas.and_then(|metas| metas.get(name)).filter(|meta| is_excluded(meta));
        meta.map(|_| {
            Cause::new(Reason::Excluded, format!("its {what} {name} has opted out with {}", podtap_api::EXCLUDE))
        })
    };
    if tap.mirror().suspend {
        return Some(Cause::new(Reason::Suspended, "the tap is suspended"));
    }
    if let Some(ready) = tap.ready().filter(|ready| ready.reason == Reason::Expired.as_str()) {
        return Some(Cause::new(Reason::Expired, &ready.message));
    }
    if is_excluded(pod.meta()) {
        return Some(Cause::new(Reason::Excluded, format!("it has opted out with {}", podtap_api::EXCLUDE)));
    }
    if let Some(cause) = opted_out("namespace", around.namespaces.as_ref(), &namespace) {
        return Some(cause);
    }
    if let Some(cause) = node.and_then(|node| opted_out("node", around.nodes.as_ref(), node)) {
        return Some(cause);
    }
    if let Some(policy) = &around.policy {
        if policy.spec.excluded_namespaces.contains(&namespace) {
            let message = format!("excludedNamespaces of the PodTapPolicy has {namespace}");
            return Some(Cause::new(Reason::NamespaceExcluded, message));
        }
        if policy.spec.suspend_all {
            return Some(Cause::new(Reason::Suspended, "suspendAll of the PodTapPolicy stops all taps"));
        }
    }
    if spec.is_some_and(|spec| spec.host_network == Some(true)) {
        return Some(Cause::new(Reason::HostNetwork, "it uses the network of its node, which cannot be tapped"));
    }
    if matches!(phase, "Succeeded" | "Failed") {
        return Some(Cause::new(Reason::PodFinished, "it has ended"));
    }
    let status = tap.status()?;
    let called = tap.pod_name(&namespace, &name);
    if let Some(failure) = status.failures.iter().find(|failure| failure.pod == called) {
        return Some(Cause::new(failure.reason, &failure.message));
    }
    if let Some(skipped) = status.skipped.iter().find(|skipped| skipped.pods.contains(&called)) {
        return Some(Cause::new(skipped.reason, "it is skipped"));
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tap(targets: &Value, status: &Value) -> Tap {
        let tap = json!({
            "metadata": {"name": "t", "namespace": "shop", "uid": "tap-1", "generation": 1},
            "spec": {"targets": targets, "destinations": [{"node": {"name": "n2"}}]},
            "status": status,
        });
        Tap::Namespaced(Box::new(serde_json::from_value(tap).expect("a tap")))
    }

    fn pod(changes: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "pod-1", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running"},
        });
        for (pointer, value) in changes.as_object().into_iter().flatten() {
            let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
            pod.pointer_mut(parent).expect("a parent")[name] = value.clone();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    fn said(verdict: &Verdict) -> String {
        match verdict {
            Verdict::Tapped => "tapped".to_owned(),
            Verdict::Pending(cause) => format!("pending {}", cause.reason),
            Verdict::NotTapped(cause) => cause.reason.clone(),
            Verdict::NotMatched(cause) => cause.message.clone(),
            Verdict::Unknown(cause) => format!("unknown: {}", cause.message),
        }
    }

    fn metas(name: &str, meta: Value) -> BTreeMap<String, ObjectMeta> {
        [(name.to_owned(), serde_json::from_value(meta).expect("metadata"))].into()
    }

    #[test]
    fn each_reason_why_a_pod_is_not_tapped() {
        let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
        let done = json!({"matchedPods": 1, "tappedPods": 1});
        let done_but_many_skipped = json!({"matchedPods": 1, "tappedPods": 1,
            "skipped": [{"reason": "TargetUnsupported", "count": 5, "pods": ["a", "b", "c", "d"]}]});
        let limited = json!({"matchedPods": 1, "tappedPods": 1, "conditions": [{"type": "Ready", "status": "False",
            "reason": "TooManyPods", "message": "", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let plain = json!({});
        let excluded = json!({"annotations": {"podtap.dev/exclude": "true"}});
        let around = Surroundings::default;
        let node_status = json!({
            "metadata": {"name": "n1"}, "spec": {},
            "status": {"senders": [{"tapUid": "tap-1", "podUid": "pod-1", "state": "Failed", "reason": "KernelError", "message": "m"}]},
        });
        let failures = json!({"failures": [{"pod": "web-0", "reason": "InterfaceNotFound", "message": "m"}]});
        let not_ready = |reason: &str| {
            json!({"conditions": [{"type": "Ready", "status": "False", "reason": reason, "message": "m", "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
        };
        for (targets, status, changes, around, expected) in [
            (&web, &done, &plain, around(), "tapped"),
            (&json!({"podNames": ["web-0"]}), &done, &plain, around(), "tapped"),
            (&json!({"podNames": ["db-0"]}), &done, &plain, around(), "podNames has db-0"),
            (
                &json!({"podSelector": {"matchLabels": {"app": "api", "tier": "x"}}}),
                &done,
                &plain,
                around(),
                "podSelector is app=api,tier=x, and there is app=web, no tier",
            ),
            (&web, &done, &json!({"/metadata/namespace": "other"}), around(), "it taps pods of its own namespace"),
            (&web, &done, &json!({"/metadata/annotations": {"podtap.dev/exclude": ""}}), around(), "Excluded"),
            (&web, &done, &plain, Surroundings { nodes: Some(metas("n1", excluded.clone())), ..around() }, "Excluded"),
            (
                &web,
                &done,
                &plain,
                Surroundings { namespaces: Some(metas("shop", excluded.clone())), ..around() },
                "Excluded",
            ),
            (&web, &done, &json!({"/spec/hostNetwork": true}), around(), "HostNetwork"),
            (&web, &done, &json!({"/status/phase": "Succeeded"}), around(), "PodFinished"),
            (&web, &done, &json!({"/spec/nodeName": null}), around(), "pending Pending"),
            (&web, &done_but_many_skipped, &plain, around(), "unknown: you may not read NodeTaps, which tell"),
            (&web, &limited, &plain, around(), "unknown: you may not read NodeTaps, which tell"),
            (&web, &failures, &plain, around(), "InterfaceNotFound"),
            (
                &web,
                &json!({"skipped": [{"reason": "DestinationIsTarget", "count": 1, "pods": ["web-0"]}]}),
                &plain,
                around(),
                "DestinationIsTarget",
            ),
            (&web, &not_ready("Expired"), &plain, around(), "Expired"),
            (&web, &not_ready("InvalidSpec"), &plain, around(), "InvalidSpec"),
            (&web, &not_ready("Pending"), &plain, around(), "pending Pending"),
            (&web, &json!({}), &plain, around(), "pending Pending"),
            (
                &web,
                &done,
                &plain,
                Surroundings {
                    node_taps: Some(vec![serde_json::from_value(node_status).expect("a NodeTap")]),
                    ..around()
                },
                "KernelError",
            ),
            (&web, &done, &plain, Surroundings { node_taps: Some(Vec::new()), ..around() }, "pending Pending"),
        ] {
            assert_eq!(
                said(&verdict(&tap(targets, status), &pod(changes), &around)),
                expected,
                "{targets} {status} {changes}"
            );
        }
        for (field, value, expected) in
            [("excludedNamespaces", json!(["shop"]), "NamespaceExcluded"), ("suspendAll", json!(true), "Suspended")]
        {
            let policy = json!({"metadata": {"name": "default"}, "spec": {field: value}});
            let policy = Some(serde_json::from_value(policy).expect("a policy"));
            let around = Surroundings { policy, ..Surroundings::default() };
            assert_eq!(said(&verdict(&tap(&web, &done), &pod(&plain), &around)), expected);
        }
    }

    #[test]
    fn a_tap_of_the_cluster_matches_by_namespace_and_node() {
        let object = json!({
            "metadata": {"name": "all", "uid": "tap-2"},
            "spec": {"targets": {"namespaceSelector": {"matchLabels": {"team": "a"}}, "nodeSelector": {"matchLabels": {"zone": "a"}}},
                "destinations": [{"collector": {}}]},
        });
        let tap = Tap::Cluster(Box::new(serde_json::from_value(object).expect("a tap")));
        let around = |team: &str, zone: &str| Surroundings {
            namespaces: Some(metas("shop", json!({"labels": {"team": team}}))),
            nodes: Some(metas("n1", json!({"labels": {"zone": zone}}))),
            ..Surroundings::default()
        };
        let said = |team, zone| said(&verdict(&tap, &pod(&json!({})), &around(team, zone)));
        assert_eq!(said("b", "a"), "namespaceSelector is team=a, and there is team=b");
        assert_eq!(said("a", "b"), "nodeSelector is zone=a, and there is zone=b");
        assert_eq!(said("a", "a"), "pending Pending");
    }
}
