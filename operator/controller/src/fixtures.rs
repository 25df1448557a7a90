//! What the tests of the stages are made from: objects as the API server has them, taken in as the controller does.

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod},
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    core::{DeserializeGuard, PartialObjectMetaExt as _},
    runtime::watcher::Event,
};
use podtap_api::{ItemState, NodeTap, NodeTapReceiverStatus, NodeTapSenderStatus, NodeTapStatus, PodTap, PodTapPolicy};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{expression::compiled, plan::{build::{self, Plan}, vni::Claims}, reconcile::allocate, store::{objects::{CachedNamespace, CachedNode, CachedNodeTap, CachedPod, cached_policy, service_networks, CachedTap}, snapshot::{take_snapshot, Snapshot}, watch::Caches}, validate::tap::{validate, Validated}};

/// Namespace of the helper pods.
pub const OWN_NAMESPACE: &str = "podtap-system";

/// Whatever `value` describes.
pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("a fixture is an object of its kind")
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

/// A node that is Ready.
pub fn node(name: &str, addresses: &[&str]) -> Node {
    let addresses: Vec<Value> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    object(json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
    }))
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
        "spec": {"targets": {"podSelector": {"matchLabels": {"app": "web"}}}, "destinations": destinations.into()},
    }))
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
    pub service_cidrs: Vec<ServiceCIDR>,
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
            caches.policies.take(Event::Apply(object), |policy| cached_policy(DeserializeGuard(Ok(policy))));
        }
        for object in self.pods.clone() {
            caches.pods.take(Event::Apply(object), |pod| CachedPod::new(pod, OWN_NAMESPACE));
        }
        for object in self.nodes.clone() {
            caches.nodes.take(Event::Apply(object), CachedNode::from);
        }
        for object in self.namespaces.clone() {
            let object = object.metadata.into_response_partial::<Namespace>();
            caches.namespaces.take(Event::Apply(object), CachedNamespace::from);
        }
        for object in self.node_taps.clone() {
            caches.node_taps.take(Event::Apply(object), |tap| CachedNodeTap::from(DeserializeGuard(Ok(tap))));
        }
        for object in self.service_cidrs.clone() {
            caches.service_networks.take(Event::Apply(object), service_networks);
        }
        for object in self.taps.clone() {
            caches.taps.take(Event::Apply(object), |tap| CachedTap::from(DeserializeGuard(Ok(tap))));
        }
        caches
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = take_snapshot(&self.caches(), at(self.seconds));
        let compiled = |text: &str| (text.to_owned(), crate::expression::compile(text).into());
        snapshot.expressions = expressions::wanted(&snapshot).into_iter().map(compiled).collect();
        snapshot
    }

    /// Runs `look` on what the pure stages make of it, with every claim recorded.
    pub fn plan<T>(&self, recorded: &Claims, look: impl FnOnce(&Snapshot, &Claims, Plan<'_>) -> T) -> T {
        let snapshot = self.snapshot();
        let validated: Validated = validate(&snapshot);
        let allocation = allocate(&snapshot, &validated, recorded);
        let plan = build::build(&snapshot, &validated, &allocation, &allocation.claims);
        look(&snapshot, &allocation.claims, plan)
    }

    /// The same cluster after every node has carried out what is planned, and every tap's status shows its VNIs.
    pub fn settled(&self, recorded: &Claims) -> (Self, Claims) {
        self.plan(recorded, |_, claims, plan| {
            let mut world = self.clone();
            world.node_taps = plan
                .nodes
                .iter()
                .map(|(node, spec)| {
                    let mut node_tap = NodeTap::new(node, spec.clone());
                    node_tap.metadata.uid = Some(format!("nodetap-{node}"));
                    node_tap.metadata.resource_version = Some("1".into());
                    node_tap.metadata.generation = Some(1);
                    carry_out(node_tap)
                })
                .collect();
            for tap in &plan.taps_ {
                let tap =
                    world.taps.iter_mut().find(|tap| tap.metadata.uid.as_ref() == Some(&tap.tap.reference.uid));
                let status = tap.expect("an outcome is about a tap").status.get_or_insert_default();
                status.vni = tap.vni;
                status.destinations = tap
                    .destinations
                    .iter()
                    .map(|d| podtap_api::DestinationStatus { vni: d.vni, ..podtap_api::DestinationStatus::default() })
                    .collect();
            }
            (world, claims.clone())
        })
    }
}

/// The object after its node has carried out everything.
pub fn carry_out(mut node_tap: NodeTap) -> NodeTap {
    let (state, reason) = (ItemState::Active, "Established".to_owned());
    let senders = node_tap.spec.senders.iter().map(|sender| NodeTapSenderStatus {
        tap_uid: sender.tap.uid.clone(),
        pod_uid: sender.pod.uid.clone(),
        state,
        reason: reason.clone(),
        ..NodeTapSenderStatus::default()
    });
    let receivers = node_tap.spec.receivers.iter().map(|receiver| NodeTapReceiverStatus {
        tap_uid: receiver.tap.uid.clone(),
        vni: receiver.vni,
        state,
        reason: reason.clone(),
        ..NodeTapReceiverStatus::default()
    });
    node_tap.status = Some(NodeTapStatus {
        observed_generation: node_tap.metadata.generation,
        senders: senders.collect(),
        receivers: receivers.collect(),
        ..NodeTapStatus::default()
    });
    node_tap
}
