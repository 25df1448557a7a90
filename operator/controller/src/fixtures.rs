//! Fixtures of the stages' tests: objects as the API server has them, cached as the controller does.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
    jiff::Timestamp,
};
use kube::{
    api::DynamicObject,
    core::{DeserializeGuard, PartialObjectMetaExt as _},
    runtime::watcher::Event,
};
use podtap_api::{ClusterPodTap, DestinationStatus, NodeTap, NodeTapSpec, PodTap, PodTapPolicy};
use podtap_model::{NodeState, NodeStatus, Reason, ReceiverStatus, SenderStatus, SentVnis, State, Uid, Vni};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    expression::{self, compiled::Expressions},
    plan::{
        build::{Plan, build},
        deduplication::{Waits, deduplication},
        moves::moves,
        reachability::lacks_probes,
        resolve::resolve,
        vni::{self, Vnis},
    },
    store::{
        caches::Caches,
        generations::Generations,
        node::{CachedNamespace, CachedNode},
        node_tap::CachedNodeTap,
        pod::{CachedHelper, CachedPod},
        snapshot::Snapshot,
        tap::{CachedTap, cached_policy},
    },
    validate::tap::{Validated, validate},
};

/// Namespace of the helper pods.
pub const OWN_NAMESPACE: &str = "podtap-system";

/// Whatever `value` describes.
pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("a fixture is an object of its kind")
}

/// A UID.
pub fn uid(text: &str) -> Uid {
    text.parse().expect("a UID")
}

/// A VXLAN network identifier.
pub fn vni(number: u32) -> Vni {
    number.try_into().expect("a VNI")
}

/// The VNI that is derived for a tap by its UID, or for one of its receivers, in the default range.
pub fn derived(tap: &str, key: &str) -> Vni {
    vni::derived(&podtap_api::VniRange::default(), &uid(tap), key, 0)
}

/// The time `seconds` after the beginning of the tests.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
}

/// The same, as objects have it.
#[expect(clippy::unnecessary_wraps, reason = "they are all optional there")]
pub fn time(seconds: i64) -> Option<Time> {
    Some(Time(at(seconds)))
}

/// A pod on `node` that is Ready; not bound where `node` is empty.
pub fn pod(namespace: &str, name: &str, node: &str) -> Pod {
    object(json!({
        "metadata": {
            "namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "resourceVersion": "1",
            "creationTimestamp": at(0).to_string(), "labels": {"app": "web"},
        },
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }))
}

/// A helper pod on `node` that is Ready and of this template, as `change` makes it. Its name is its UID.
pub fn helper(name: &str, node: &str, template: &str, change: impl FnOnce(&mut CachedPod)) -> CachedPod {
    let mut cached = CachedPod::new(pod(OWN_NAMESPACE, name, node), OWN_NAMESPACE);
    cached.uid = uid(name);
    cached.helper = Some(CachedHelper { template: template.into(), ended: None, container_error: None });
    change(&mut cached);
    cached
}

/// The pod with an address.
pub fn started(mut pod: Pod) -> Pod {
    pod.status.get_or_insert_default().pod_ip = Some("10.244.0.9".into());
    pod
}

/// A node that is Ready.
pub fn node(name: &str, addresses: &[&str]) -> Node {
    let addresses: Vec<Value> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    object(json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
    }))
}

/// The node with this memory and as many CPUs.
pub fn sized(mut node: Node, memory: &str, cpus: &str) -> Node {
    let status = node.status.get_or_insert_default();
    status.allocatable = Some([("memory".to_owned(), Quantity(memory.to_owned()))].into());
    status.capacity = Some([("cpu".to_owned(), Quantity(cpus.to_owned()))].into());
    node
}

/// A node that is not Ready.
pub fn lost(mut node: Node) -> Node {
    let conditions = node.status.as_mut().and_then(|status| status.conditions.as_mut());
    conditions.into_iter().flatten().for_each(|condition| condition.status = "Unknown".into());
    node
}

/// A tap in the namespace `shop` with its finalizer, of the pods with `app: web`.
pub fn tap(name: &str, destinations: impl Into<Value>) -> PodTap {
    object(json!({
        "metadata": {
            "namespace": "shop", "name": name, "uid": format!("tap-{name}"), "resourceVersion": "1", "generation": 1,
            "creationTimestamp": at(0).to_string(), "finalizers": [podtap_api::FINALIZER],
        },
        "spec": {"targets": {"podSelector": {"matchLabels": {"app": "web"}}}, "destinations": named(destinations.into())},
    }))
}

/// A tap of every pod of the cluster with its finalizer.
pub fn cluster_tap(name: &str, destinations: impl Into<Value>) -> ClusterPodTap {
    object(json!({
        "metadata": {
            "name": name, "uid": format!("tap-{name}"), "resourceVersion": "1", "generation": 1,
            "creationTimestamp": at(0).to_string(), "finalizers": [podtap_api::FINALIZER],
        },
        "spec": {"targets": {"namespaceSelector": {}}, "destinations": named(destinations.into())},
    }))
}

/// A namespace with the label that every one has.
pub fn namespace(name: &str) -> Namespace {
    let labels = json!({"kubernetes.io/metadata.name": name});
    object(json!({"metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": labels}}))
}

/// The object as a watch reports it.
pub fn dynamic(object: &impl serde::Serialize) -> DynamicObject {
    serde_json::from_value(serde_json::to_value(object).expect("an object is JSON")).expect("an object")
}

/// The destinations with the names `main`, `second`, `third` and so on, unless they have one.
fn named(mut destinations: Value) -> Value {
    const NAMES: [&str; 4] = ["main", "second", "third", "fourth"];
    for (destination, name) in destinations.as_array_mut().into_iter().flatten().zip(NAMES) {
        if destination.get("name").is_none() {
            destination["name"] = json!(name);
        }
    }
    destinations
}

/// A policy with this spec.
pub fn policy(spec: impl Into<Value>) -> PodTapPolicy {
    object(json!({"metadata": {"name": "default", "resourceVersion": "1"}, "spec": spec.into()}))
}

/// A cluster.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub seconds: i64,
    pub policy: Option<PodTapPolicy>,
    pub pods: Vec<Pod>,
    pub nodes: Vec<Node>,
    pub node_taps: Vec<NodeTap>,
    pub namespaces: Vec<Namespace>,
    pub taps: Vec<PodTap>,
    pub cluster_taps: Vec<ClusterPodTap>,
}

impl World {
    /// Two nodes and a pod on the first one.
    pub fn small() -> Self {
        Self {
            nodes: vec![node("n1", &["10.0.0.1"]), node("n2", &["10.0.0.2"])],
            pods: vec![pod("shop", "web", "n1")],
            ..Self::default()
        }
    }

    /// The same with one tap.
    pub fn with(tap: PodTap) -> Self {
        Self { taps: vec![tap], ..Self::small() }
    }

    /// What the watches make of it.
    pub fn caches(&self) -> Caches {
        let caches = Caches::new();
        if let Some(object) = self.policy.clone() {
            caches.policies.apply(Event::Apply(object), |policy| cached_policy(DeserializeGuard(Ok(policy))));
        }
        for object in self.pods.clone() {
            caches.pods.apply(Event::Apply(object), |pod| CachedPod::new(pod, OWN_NAMESPACE));
        }
        for object in self.nodes.clone() {
            caches.nodes.apply(Event::Apply(object), CachedNode::from);
        }
        for object in self.namespaces.clone() {
            let object = object.metadata.into_response_partial::<Namespace>();
            caches.namespaces.apply(Event::Apply(object), |namespace| CachedNamespace::new(namespace, OWN_NAMESPACE));
        }
        for object in self.node_taps.clone() {
            caches.node_taps.apply(Event::Apply(object), |tap| CachedNodeTap::from(DeserializeGuard(Ok(tap))));
        }
        for tap in &self.taps {
            caches.taps.apply(Event::Apply(dynamic(tap)), CachedTap::from);
        }
        for tap in &self.cluster_taps {
            caches.cluster_taps.apply(Event::Apply(dynamic(tap)), CachedTap::from);
        }
        caches
    }

    pub fn snapshot(&self) -> Snapshot {
        let caches = self.caches();
        let now = at(self.seconds);
        let texts = validate(&Snapshot::take(&caches, &Expressions::new(), now)).expressions;
        let compiled = |text: String| (text.clone(), expression::compile(&text).into());
        Snapshot::take(&caches, &texts.into_values().flatten().map(compiled).collect(), now)
    }

    /// Calls `check` with the plan of the cluster and its VNIs. `previous` are those of the last reconcile.
    pub fn plan<T>(&self, previous: &Vnis, check: impl FnOnce(&Snapshot, &Vnis, Plan<'_>) -> T) -> T {
        let snapshot = self.snapshot();
        let validated: Validated = validate(&snapshot);
        let (taps, vnis) = resolve(&snapshot, &validated, previous);
        let deduplication = deduplication(&taps, &snapshot, &Generations::default(), &Waits::default());
        let without_probes = self.taps.iter().filter(|tap| tap.status.as_ref().is_some_and(lacks_probes));
        let without_probes = without_probes.map(|tap| crate::names::uid(&tap.metadata)).collect();
        let moves = moves(&taps, &snapshot, &BTreeMap::new());
        let plan = build(&snapshot, taps, &[].into(), &without_probes, &validated.policy, &deduplication, &moves);
        check(&snapshot, &vnis, plan)
    }

    /// The same cluster after every node has carried out what is planned, and every tap's status shows its VNIs.
    pub fn settled(&self, previous: &Vnis) -> (Self, Vnis) {
        self.plan(previous, |_, vnis, plan| {
            let mut world = self.clone();
            world.node_taps = plan
                .nodes
                .iter()
                .map(|(node, spec)| {
                    let mut node_tap = NodeTap::new(node, NodeTapSpec(spec.clone()));
                    node_tap.metadata.uid = Some(format!("nodetap-{node}"));
                    node_tap.metadata.resource_version = Some("1".into());
                    node_tap.metadata.generation = Some(1);
                    carry_out(node_tap)
                })
                .collect();
            receive_probes(&mut world.node_taps);
            for plan in &plan.taps {
                let uid = plan.tap.reference.uid.to_string();
                let tap = world.taps.iter_mut().find(|tap| tap.metadata.uid.as_ref() == Some(&uid));
                let status = tap.expect("a plan is about a tap").status.get_or_insert_default();
                status.vni = plan.vni;
                let destination = |d: &crate::plan::tap_plan::PlannedDestination| DestinationStatus {
                    name: d.name.clone(),
                    vni: d.vni,
                    ..DestinationStatus::default()
                };
                status.destinations = plan.destinations.iter().map(destination).collect();
            }
            (world, vnis.clone())
        })
    }
}

/// A `NodeTap` with this spec, of generation 1.
pub fn node_tap(name: &str, spec: NodeState) -> NodeTap {
    let mut node_tap = NodeTap::new(name, NodeTapSpec(spec));
    node_tap.metadata.generation = Some(1);
    node_tap.metadata.resource_version = Some("1".into());
    node_tap
}

/// After the probes of all senders have arrived.
pub fn receive_probes(node_taps: &mut [NodeTap]) {
    let senders = |node_tap: &NodeTap| node_tap.spec.0.senders.clone();
    let senders: Vec<_> = node_taps.iter().flat_map(senders).collect();
    for receiver in node_taps.iter_mut().filter_map(|node_tap| node_tap.status.as_mut()).flat_map(|s| &mut s.receivers)
    {
        let own = senders.iter().filter(|sender| *sender.tap == *receiver.tap_uid);
        receiver.pods_with_probes = own.map(|sender| sender.pod.uid.to_string()).collect();
        receiver.pods_with_probes.sort_unstable();
    }
}

/// The object after its node has applied everything.
pub fn carry_out(mut node_tap: NodeTap) -> NodeTap {
    let NodeState { taps, senders, receivers, .. } = &node_tap.spec.0;
    let sent = |tap: &podtap_model::Tap| SentVnis {
        tap_uid: tap.uid.to_string(),
        vnis: tap.destinations.iter().map(|endpoint| endpoint.vni).collect(),
    };
    let sent_vnis = taps.iter().map(sent).collect();
    let (state, reason) = (State::Active, Reason::AsExpected);
    let senders = senders.iter().map(|sender| SenderStatus {
        tap_uid: sender.tap.to_string(),
        pod_uid: sender.pod.uid.to_string(),
        interface: None,
        addresses: sender.pod.addresses.clone(),
        state,
        reason,
        message: String::new(),
        degraded: Vec::new(),
    });
    let receivers = receivers.iter().map(|receiver| ReceiverStatus {
        tap_uid: receiver.tap.uid.to_string(),
        vni: receiver.vni.get(),
        state,
        reason,
        message: String::new(),
        pods_with_probes: Vec::new(),
        pods_without_full_size_probes: Vec::new(),
    });
    node_tap.status = Some(NodeStatus {
        observed_generation: node_tap.metadata.generation,
        senders: senders.collect(),
        receivers: receivers.collect(),
        sent_vnis,
        ..NodeStatus::default()
    });
    node_tap
}
