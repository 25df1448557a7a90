use std::{cell::Cell, collections::BTreeMap, time::Duration};

use http::StatusCode;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    ResourceExt,
    api::DynamicObject,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::watcher::Event,
};
use podtap_api::{NodeTap, NodeTapSpec, PodTap};
use podtap_runtime::http::Metrics;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::{
    apply::helper_pod::HelperTemplate,
    fake_api::FakeApi,
    fixtures::{OWN_NAMESPACE, World, carry_out, node, object, pod, receive_probes, started, tap},
    plan::rollout::MaxUnavailable,
    store::{
        cache::Cache,
        caches::Caches,
        node::{CachedNamespace, CachedNode},
        node_tap::CachedNodeTap,
        pod::CachedPod,
        tap::CachedTap,
    },
};

mod clocks;
mod cluster_taps;
mod failing_writes;
mod faults;
mod finalizers;
mod helper_pods;
mod idle;
mod leaders;
mod node_taps;
mod statuses;
mod sweep;

const TAP: &str = "/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps/t";
const NODE_TAP: &str = "/apis/podtap.dev/v1alpha1/nodetaps/";
/// Where the tests keep namespaces; no request reads them.
const NAMESPACES: &str = "/namespaces/";
const PODS: &str = "/api/v1/namespaces/podtap-system/pods";
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/podtap-controller";
const SWEEP: &str = "/api/v1/namespaces/podtap-system/configmaps/podtap-sweep";
const WHO_AM_I: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// A leader and its API server. [`Cluster::sync`] replaces the watches.
struct Cluster {
    api: FakeApi,
    reconciler: Reconciler,
    /// How far the reconciles' clock is ahead.
    ahead: Cell<SignedDuration>,
}

impl Cluster {
    fn new(world: &World) -> Self {
        let api = FakeApi::default();
        for pod in &world.pods {
            api.put(&format!("/api/v1/namespaces/shop/pods/{}", pod.name_any()), pod);
        }
        for node in &world.nodes {
            api.put(&format!("/api/v1/nodes/{}", node.name_any()), node);
        }
        for tap in &world.taps {
            api.put(&format!("/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps/{}", tap.name_any()), tap);
        }
        api.put(ROLE, &json!({"metadata": {"name": "podtap-controller"}}));
        // A new installation would sweep all nodes first.
        api.put(SWEEP, &json!({"metadata": {}, "data": {"installation": "installation-1", "nodes": ""}}));
        let cluster = Self { reconciler: Self::leader(&api), api, ahead: Cell::default() };
        cluster.sync();
        cluster
    }

    /// One tap without a finalizer, from a pod on n1 to n2.
    fn with_one_tap() -> Self {
        let mut tap = tap("t", json!([{"node": {"name": "n2"}}]));
        tap.metadata.finalizers = None;
        Self::new(&World::with(tap))
    }

    fn leader(api: &FakeApi) -> Reconciler {
        let client = api.client();
        Reconciler {
            publisher: Publisher::new(client.clone(), "test"),
            compiler: Compiler::shell("exit 1"),
            sweep_record: SweepRecord::new(client.clone(), OWN_NAMESPACE),
            uninstall_guard: UninstallGuard::new(client.clone(), OWN_NAMESPACE),
            context: Context {
                client,
                caches: Caches::new(),
                template: HelperTemplate {
                    namespace: OWN_NAMESPACE.into(),
                    image: "podtap:1".into(),
                    pull_policy: "Never".into(),
                    pull_secrets: Vec::new(),
                    priority_class: None,
                    log_json: false,
                    metrics_port: 14790,
                },
                max_unavailable: MaxUnavailable::Nodes(1),
            },
            state: ControllerState::default(),
            metrics: ControllerMetrics::new(&Metrics::new()),
        }
    }

    /// The next leader, which knows only what the API server has.
    fn restart(&mut self) {
        self.reconciler = Self::leader(&self.api);
        self.sync();
    }

    /// Fills the caches from the API server.
    fn sync(&self) {
        fn list<K, T>(cache: &Cache<T>, objects: Vec<(String, Value)>, project: impl Fn(K) -> T)
        where
            K: DeserializeOwned + ResourceExt,
            T: PartialEq,
        {
            cache.apply(Event::<K>::Init, &project);
            for (_, value) in objects {
                cache.apply(Event::InitApply(object::<K>(value)), &project);
            }
            cache.apply(Event::<K>::InitDone, &project);
        }
        let Self { api, reconciler, .. } = self;
        let caches = &reconciler.context.caches;
        list(&caches.taps, api.list("/podtaps/"), CachedTap::from as fn(DynamicObject) -> CachedTap);
        list(&caches.cluster_taps, api.list("/clusterpodtaps/"), CachedTap::from as fn(DynamicObject) -> CachedTap);
        list(&caches.node_taps, api.list("/nodetaps/"), CachedNodeTap::from as fn(DeserializeGuard<NodeTap>) -> _);
        list(&caches.pods, api.list("/pods/"), |pod: Pod| CachedPod::new(pod, OWN_NAMESPACE));
        list(&caches.nodes, api.list("/nodes/"), |node: Node| CachedNode::from(node));
        list(
            &caches.namespaces,
            api.list(NAMESPACES).into_iter().filter(|(path, _)| path.starts_with(NAMESPACES)).collect(),
            |namespace: PartialObjectMeta<Namespace>| CachedNamespace::new(namespace, OWN_NAMESPACE),
        );
    }

    /// One reconcile; the requests that it sent, without events and what every leader sends once.
    async fn reconcile(&mut self) -> Vec<String> {
        self.api.requests();
        self.sync();
        self.reconciler.reconcile(self.now()).await;
        self.api.requests().into_iter().filter(|request| !is_of_every_leader(request)).collect()
    }

    fn now(&self) -> Timestamp {
        Timestamp::now() + self.ahead.get()
    }

    fn advance(&self, seconds: i64) {
        self.ahead.set(self.ahead.get() + SignedDuration::from_secs(seconds));
    }

    /// Every node applies its spec, and its helper pod runs. That takes a second.
    fn nodes_apply(&self) {
        self.advance(1);
        let node_taps = self.api.list("/nodetaps/").into_iter();
        let (paths, mut objects): (Vec<String>, Vec<NodeTap>) =
            node_taps.map(|(path, node_tap)| (path, carry_out(object(node_tap)))).unzip();
        receive_probes(&mut objects);
        for (path, node_tap) in paths.iter().zip(&objects) {
            self.api.put(path, node_tap);
        }
        for (path, mut pod) in self.api.list(PODS) {
            pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
            self.api.put(&path, &pod);
        }
    }

    async fn establish(&mut self) {
        self.reconcile().await;
        self.nodes_apply();
        self.reconcile().await;
        assert_eq!(self.condition("Ready"), ("True".into(), "AsExpected".into()));
        self.advance(1);
        self.api.requests();
    }

    /// Creates a pod that has started on n1.
    fn add_pod(&self, name: &str) {
        self.api.put(&format!("/api/v1/namespaces/shop/pods/{name}"), &started(pod("shop", name, "n1")));
    }

    fn status(&self) -> PodTapStatus {
        object::<PodTap>(self.api.get(TAP).expect("a tap")).status.expect("a status")
    }

    /// As a user does.
    fn change_tap(&self, change: impl FnOnce(&mut Value)) {
        let mut tap = self.api.get(TAP).expect("a tap");
        change(&mut tap);
        self.api.put(TAP, &tap);
    }

    fn delete_tap(&self) {
        self.change_tap(|tap| tap["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string()));
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let conditions = self.status().conditions;
        let condition = conditions.into_iter().find(|c| c.type_ == kind).expect("all are there");
        (condition.status, condition.reason)
    }

    fn node_tap(&self, node: &str) -> NodeTap {
        object(self.api.get(&format!("{NODE_TAP}{node}")).expect("a NodeTap"))
    }

    /// Longer than the first pause after a failure.
    async fn wait_for_retry(&self) {
        tokio::time::sleep(Duration::from_millis(320)).await;
    }
}

fn is_of_every_leader(request: &str) -> bool {
    ["/events", ROLE, "/podtap-uninstall"].into_iter().any(|part| request.contains(part))
}

fn none() -> Vec<String> {
    Vec::new()
}
