use std::{cell::Cell, collections::BTreeMap, time::Duration};

use futures::FutureExt as _;
use http::StatusCode;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::watcher::Event,
};
use podtap_api::{FINALIZER, NodeTap, NodeTapSpec, PodTap};
use podtap_model::{Reason, TapReference};
use podtap_runtime::http::Metrics;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::{
    apply::helper_pod::HelperTemplate,
    events::Occurrence,
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

mod failing_writes;
mod faults;

const TAP: &str = "/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps/t";
const NODE_TAP: &str = "/apis/podtap.dev/v1alpha1/nodetaps/";
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
        list(&caches.taps, api.list("/podtaps/"), CachedTap::from as fn(DeserializeGuard<PodTap>) -> CachedTap);
        list(&caches.node_taps, api.list("/nodetaps/"), CachedNodeTap::from as fn(DeserializeGuard<NodeTap>) -> _);
        list(&caches.pods, api.list("/pods/"), |pod: Pod| CachedPod::new(pod, OWN_NAMESPACE));
        list(&caches.nodes, api.list("/nodes/"), |node: Node| CachedNode::from(node));
        list(&caches.namespaces, Vec::new(), |namespace: PartialObjectMeta<Namespace>| {
            CachedNamespace::from(namespace)
        });
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

    fn delete_tap(&self) {
        let mut tap = self.api.get(TAP).expect("a tap");
        tap["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
        self.api.put(TAP, &tap);
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

#[tokio::test]
async fn an_unchanged_cluster_sends_nothing() {
    let mut cluster = Cluster::with_one_tap();
    let first = cluster.reconcile().await;
    let sent: BTreeMap<&str, usize> = first.iter().fold(BTreeMap::new(), |mut sent, request| {
        let kinds = [
            "configmaps",
            "selfsubjectreviews",
            "nodetaps",
            "/pods",
            "/status",
            "podtaps",
            "serviceaccounts",
            "clusterroles",
            "clusterrolebindings",
        ];
        *sent.entry(kinds.into_iter().find(|kind| request.contains(kind)).expect(request)).or_default() += 1;
        sent
    });
    // The record of nodes to sweep is read, the finalizer added, each NodeTap, agent's account and helper pod created, and the status
    // written.
    let account = [("serviceaccounts", 2), ("clusterroles", 2), ("clusterrolebindings", 2)];
    let others =
        [("/pods", 2), ("/status", 1), ("configmaps", 1), ("nodetaps", 2), ("podtaps", 1), ("selfsubjectreviews", 1)];
    assert_eq!(sent, account.into_iter().chain(others).collect());
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Pending".into()));
    assert_eq!(cluster.reconcile().await, none());

    cluster.nodes_apply();
    assert_eq!(cluster.reconcile().await, [format!("PATCH {TAP}/status")]);
    assert_eq!(cluster.condition("Ready"), ("True".into(), "AsExpected".into()));
    assert_eq!(cluster.reconcile().await, none());
}

/// Peers follow from reports, and nothing in a report follows from peers.
#[tokio::test]
async fn deduplication_settles() {
    let mut tap = tap("t", json!([{"node": {"name": "n2"}}]));
    tap.spec.options.deduplicate = Some(podtap_model::Deduplicate {});
    let mut world = World { pods: vec![pod("shop", "a", "n1"), pod("shop", "b", "n2")], ..World::with(tap) };
    for (pod, address) in world.pods.iter_mut().zip(["10.1.0.1", "10.1.0.2"]) {
        pod.status.get_or_insert_default().pod_ip = Some(address.to_owned());
    }
    let mut cluster = Cluster::new(&world);
    cluster.reconcile().await;
    cluster.nodes_apply();
    // The peers are written before the tap is Ready.
    let written = ["n1", "n2"].map(|node| format!("PATCH {NODE_TAP}{node}"));
    let mut sent = cluster.reconcile().await;
    assert_eq!(sent.pop(), Some(format!("PATCH {TAP}/status")));
    sent.sort_unstable();
    assert_eq!(sent, written);
    assert_eq!(cluster.condition("Ready"), ("True".into(), "AsExpected".into()));
    assert_eq!(cluster.node_tap("n1").spec.0.taps[0].peers.len(), 2);
    for _ in 0..2 {
        cluster.nodes_apply();
        assert_eq!(cluster.reconcile().await, none());
    }
    cluster.restart();
    let sent = cluster.reconcile().await;
    assert!(!sent.iter().any(|request| request.contains("nodetaps")), "a new leader changes nothing: {sent:?}");
}

#[tokio::test]
async fn a_new_leader_changes_nothing() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let published = async {
        while cluster.api.list("/events/").is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), published).await.expect("TapEstablished is published");
    cluster.restart();
    assert_eq!(cluster.reconcile().await, [format!("GET {SWEEP}"), format!("POST {WHO_AM_I}")]);
    tokio::task::yield_now().await;
    assert_eq!(cluster.api.list("/events/").len(), 1, "TapEstablished, once");
}

#[tokio::test]
async fn a_new_pod_of_an_established_tap_leaves_the_others_tapped() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.add_pod("new");
    assert_eq!(cluster.reconcile().await, [format!("PATCH {NODE_TAP}n1"), format!("PATCH {TAP}/status")]);
    // The node has not observed the change yet, neither for the next leader.
    for _ in 0..2 {
        let status = cluster.status();
        assert_eq!((status.matched_pods, status.tapped_pods, status.pending_pods), (2, 1, 1));
        assert_eq!(cluster.condition("Ready"), ("True".into(), "AsExpected".into()));
        cluster.restart();
        cluster.reconcile().await;
    }
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!((cluster.status().tapped_pods, cluster.status().pending_pods), (2, 0));
    assert_eq!(cluster.api.list("/events/").len(), 1, "TapEstablished, once");
}

#[tokio::test]
async fn a_status_is_written_once_per_second_and_the_last_one_always() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let status = format!("PATCH {TAP}/status");
    let mut written = 0;
    let mut next = cluster.now();
    for index in 0..8 {
        cluster.add_pod(&format!("new-{index}"));
        cluster.sync();
        next = cluster.reconciler.reconcile(cluster.now()).await;
        written += cluster.api.requests().iter().filter(|request| **request == status).count();
    }
    assert_eq!((written, cluster.status().matched_pods), (1, 2), "within one second");
    assert!(next.duration_since(cluster.now()) <= SignedDuration::from_secs(1), "nothing else would wake the leader");
    cluster.advance(1);
    assert_eq!(cluster.reconcile().await, [status]);
    assert_eq!(cluster.status().matched_pods, 9);
    cluster.advance(1);
    assert_eq!(cluster.reconcile().await, none());
}

#[tokio::test]
async fn a_mistyped_opt_out_is_reported_once() {
    let mut cluster = Cluster::with_one_tap();
    let mut typo = pod("shop", "typo", "n1");
    typo.metadata.labels.get_or_insert_default().insert("podtap.dev/exlude".into(), "true".into());
    cluster.api.put("/api/v1/namespaces/shop/pods/typo", &typo);
    cluster.establish().await;
    cluster.reconcile().await;
    let events = cluster.api.list("/namespaces/shop/events/");
    let warnings: Vec<&Value> =
        events.iter().map(|(_, event)| event).filter(|event| event["reason"] == "UnknownKey").collect();
    assert_eq!(warnings.len(), 1, "{events:?}");
    assert_eq!((&warnings[0]["regarding"]["kind"], &warnings[0]["regarding"]["name"]), (&json!("Pod"), &json!("typo")));
    let note = warnings[0]["note"].as_str().expect("a note");
    assert!(note.contains("label podtap.dev/exlude") && note.contains("podtap.dev/exclude opts out"), "{note}");
}

#[tokio::test]
async fn a_leader_can_be_replaced_between_any_two_requests() {
    // The first leader gets this far, and its successor has to reach the same result.
    for lost_from in ["PATCH", "nodetaps/n2", "/pods", "/status"] {
        let mut cluster = Cluster::with_one_tap();
        cluster.api.refuse(lost_from, StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        cluster.reconcile().await;
        cluster.api.refuse_nothing();
        cluster.restart();
        cluster.establish().await;
        assert_eq!(cluster.node_tap("n1").spec.0.senders.len(), 1, "{lost_from}");
        assert_eq!(cluster.node_tap("n2").spec.0.receivers.len(), 1, "{lost_from}");
    }
}

#[tokio::test]
async fn no_node_learns_of_a_tap_without_finalizer_and_the_status_says_so() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse(&format!("PATCH {TAP}"), StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/"), []);
    cluster.api.refuse_nothing();
    cluster.wait_for_retry().await;
    // Only the finalizer is rejected; the status is another resource.
    cluster.api.interfere(&format!("PATCH {TAP}"), |tap| tap["metadata"]["labels"] = json!({"touched": "true"}));
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/"), []);
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Pending".into()));
    cluster.wait_for_retry().await;
    cluster.wait_for_retry().await;
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/").len(), 2);
}

#[tokio::test]
async fn an_established_tap_keeps_mirroring_without_its_finalizer() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut tap = cluster.api.get(TAP).expect("a tap");
    tap["metadata"]["finalizers"] = json!([]);
    cluster.api.put(TAP, &tap);
    cluster.api.refuse(&format!("PATCH {TAP}"), StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.0.senders.len(), 1);
}

#[tokio::test]
async fn deleting_ends_when_the_nodes_are_clean() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.delete_tap();
    let requests = cluster.reconcile().await;
    assert_eq!(requests, [format!("PATCH {NODE_TAP}n1"), format!("PATCH {NODE_TAP}n2")]);
    assert_eq!(cluster.node_tap("n1").spec, NodeTapSpec::default());
    assert_eq!(cluster.reconcile().await, none(), "the nodes are cleaning up");
    let released = |cluster: &Cluster| cluster.reconciler.state.vnis.released.len();
    assert_eq!(released(&cluster), 1, "mirrored frames may still be in flight");
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(TAP), None);
    cluster.reconcile().await;
    assert_eq!(released(&cluster), 0);
}

#[tokio::test]
async fn finalizers_of_others_stay() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut tap = cluster.api.get(TAP).expect("a tap");
    tap["metadata"]["finalizers"] = json!([FINALIZER, "example.com/hold"]);
    cluster.api.put(TAP, &tap);
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(TAP).expect("held")["metadata"]["finalizers"], json!(["example.com/hold"]));
    assert_eq!(cluster.reconcile().await, none());
}

#[tokio::test]
async fn nodes_are_retired_after_their_last_tap_helper_pod_first() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(cluster.api.list(PODS).len(), 2, "the next tap would use them");
    let long_ago = Timestamp::now() - SignedDuration::from_secs(61);
    cluster.reconciler.state.idle_since = ["n1", "n2"].map(|node| (node.to_owned(), long_ago)).into();
    cluster.reconcile().await;
    assert_eq!((cluster.api.list(PODS).len(), cluster.api.list("/nodetaps/").len()), (0, 2));
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/"), []);
    // Taps that waited for what these nodes had are reconciled again.
    assert!(cluster.reconciler.context.caches.changed().now_or_never().is_some());
}

#[tokio::test]
async fn foreign_changes_of_a_node_tap_are_undone() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let before = cluster.node_tap("n1").spec;
    let mut edited = cluster.node_tap("n1");
    edited.spec.0.senders.clear();
    cluster.api.put(&format!("{NODE_TAP}n1"), &edited);
    // The pod does not count as tapped before the node has observed the repair.
    assert_eq!(cluster.reconcile().await, [format!("PATCH {NODE_TAP}n1"), format!("PATCH {TAP}/status")]);
    assert_eq!(cluster.node_tap("n1").spec, before);
    assert_eq!((cluster.status().tapped_pods, cluster.status().pending_pods), (0, 1));

    cluster.nodes_apply();
    cluster.reconcile().await;
    cluster.api.remove(&format!("{NODE_TAP}n1"));
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec, before);
}

#[tokio::test]
async fn a_node_tap_that_cannot_be_decoded_is_written_again() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut odd = cluster.api.get(&format!("{NODE_TAP}n1")).expect("a NodeTap");
    odd["spec"]["taps"][0]["direction"] = json!("Sideways");
    cluster.api.put(&format!("{NODE_TAP}n1"), &odd);
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.0.senders.len(), 1);
}

#[tokio::test]
async fn a_rejected_helper_pod_is_reported_and_blocks_nothing_else() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse(&format!("POST {PODS}"), StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/").len(), 2);
    assert_eq!(cluster.condition("Tapped"), ("False".into(), "HelperPodRejected".into()));
    assert_eq!(cluster.reconcile().await, none(), "not before a pause is over");
    cluster.api.refuse_nothing();
    cluster.wait_for_retry().await;
    cluster.establish().await;
}

#[tokio::test]
async fn helper_pods_are_replaced_one_after_the_other_and_none_after_one_that_fails() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let deleted = |requests: Vec<String>| requests.iter().filter(|request| request.starts_with("DELETE")).count();
    cluster.reconciler.context.template.image = "podtap:2".into();
    assert_eq!(deleted(cluster.reconcile().await), 1);
    assert_eq!(cluster.reconcile().await, none(), "the first new pod is not Ready yet");
    let outdated = |cluster: &Cluster| {
        let pods = cluster.api.list(PODS).into_iter();
        pods.filter(|(_, pod)| pod["spec"]["containers"][0]["image"] == "podtap:1").count()
    };
    assert_eq!((cluster.api.list(PODS).len(), outdated(&cluster)), (2, 1));
    for (path, mut pod) in cluster.api.list(PODS) {
        if pod["spec"]["containers"][0]["image"] == "podtap:2" {
            let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
            let status = json!({"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": waiting});
            pod["status"] = json!({"phase": "Pending", "containerStatuses": [status]});
            cluster.api.put(&path, &pod);
        }
    }
    assert_eq!(deleted(cluster.reconcile().await), 0, "the other node keeps what works");
    assert!(cluster.reconciler.state.rollout_stopped.is_some());
    assert_eq!(cluster.condition("Tapped"), ("False".into(), "HelperPodFailed".into()));

    cluster.reconciler.context.template.image = "podtap:3".into();
    assert_eq!(deleted(cluster.reconcile().await), 1, "the pod that fails");
    cluster.nodes_apply();
    assert_eq!(deleted(cluster.reconcile().await), 1, "the next");
    cluster.nodes_apply();
    cluster.reconcile().await;
    let images = cluster.api.list(PODS).into_iter().map(|(_, pod)| pod["spec"]["containers"][0]["image"].clone());
    assert_eq!(images.collect::<Vec<_>>(), ["podtap:3", "podtap:3"]);
    assert_eq!(cluster.condition("Ready"), ("True".into(), "AsExpected".into()));
}

/// Sets the status of the helper pods of an image.
fn set_container(cluster: &Cluster, image: &str, state: &Value) {
    for (path, mut pod) in cluster.api.list(PODS) {
        if pod["spec"]["containers"][0]["image"] == image {
            let status = json!({"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "state": state});
            pod["status"] = json!({"phase": "Running", "containerStatuses": [status]});
            cluster.api.put(&path, &pod);
        }
    }
}

/// The requests for events about objects of the cluster, such as `NodeTap`s, that one reconcile causes. They are sent in order.
async fn cluster_events(cluster: &mut Cluster) -> usize {
    cluster.api.requests();
    cluster.sync();
    cluster.reconciler.reconcile(cluster.now()).await;
    let last = TapReference { namespace: "last".into(), name: "last".into(), uid: crate::fixtures::uid("last") };
    let occurrence = Occurrence { is_warning: false, reason: Reason::Pending, note: String::new() };
    cluster.reconciler.publisher.publish(&last, [occurrence]);
    let mut requests: Vec<String> = Vec::new();
    let sent = async {
        while !requests.iter().any(|request| request.contains("/namespaces/last/events")) {
            requests.extend(cluster.api.requests());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), sent).await.expect("the events are sent");
    requests.iter().filter(|request| request.contains("/namespaces/default/events")).count()
}

#[tokio::test]
async fn a_rollout_that_stops_is_reported_once() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let crashed = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
    let running = json!({"running": {}});
    cluster.reconciler.context.template.image = "podtap:2".into();
    assert_eq!(cluster_events(&mut cluster).await, 0, "the first new pod is created");
    set_container(&cluster, "podtap:2", &crashed);
    assert_eq!(cluster_events(&mut cluster).await, 1);
    let events = cluster.api.list("/namespaces/default/events/");
    let [(_, event)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&event["reason"], &event["type"]), (&json!("HelperRolloutStopped"), &json!("Warning")));
    let node_tap = &event["regarding"];
    assert_eq!(node_tap["kind"], "NodeTap");
    let name = node_tap["name"].as_str().expect("a name");
    assert_eq!(node_tap["uid"], json!(cluster.node_tap(name).metadata.uid));
    let note = event["note"].as_str().expect("a note");
    let expected =
        format!("the new helper pod of the node {name} fails; 1 node keeps its previous one until it is Ready:");
    assert!(note.starts_with(&expected), "{note}");
    // It starts again, and crashes again.
    for state in [&running, &crashed, &running, &crashed] {
        set_container(&cluster, "podtap:2", state);
        assert_eq!(cluster_events(&mut cluster).await, 0, "{state}");
    }
    // The next image fails, too.
    cluster.reconciler.context.template.image = "podtap:3".into();
    assert_eq!(cluster_events(&mut cluster).await, 0);
    set_container(&cluster, "podtap:3", &crashed);
    assert_eq!(cluster_events(&mut cluster).await, 1);
    assert_eq!(cluster_events(&mut cluster).await, 0);
}

#[tokio::test]
async fn a_node_that_cannot_be_written_to_stops_no_other() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse("nodetaps/n1", StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n2").spec.0.receivers.len(), 1);
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Pending".into()));
}

/// One does not know the other's writes, nor of a younger tap that requests a VNI.
#[tokio::test]
async fn two_controllers_assign_the_same_vnis() {
    let vni_of = |cluster: &Cluster, tap: &str| {
        let NodeTapSpec(spec) = cluster.node_tap("n1").spec;
        spec.taps.iter().find(|found| found.name == tap).map(|found| found.destinations[0].vni)
    };
    let mut first = Cluster::with_one_tap();
    first.reconcile().await;
    let vni = vni_of(&first, "t").expect("a VNI");
    let mut second = Cluster::with_one_tap();
    let mut younger = tap("u", json!([{"node": {"name": "n2"}}]));
    younger.metadata.creation_timestamp = crate::fixtures::time(1);
    younger.spec.vxlan = Some(podtap_api::Vxlan { vni: Some(vni) });
    second.api.put(&TAP.replace("podtaps/t", "podtaps/u"), &younger);
    second.reconcile().await;
    assert_eq!((vni_of(&second, "t"), vni_of(&second, "u")), (Some(vni), None));
}

#[tokio::test]
async fn an_object_that_cannot_be_decoded_is_reported_once_and_can_be_deleted() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut odd = cluster.api.get(TAP).expect("a tap");
    odd["spec"]["direction"] = json!("Sideways");
    cluster.api.put(TAP, &odd);
    cluster.reconcile().await;
    let status = cluster.api.get(TAP).expect("a tap")["status"].clone();
    assert_eq!(status["conditions"][0]["reason"], "InvalidSpec");
    assert_eq!(cluster.node_tap("n1").spec.0.senders, [], "nothing is mirrored by a guess");
    assert_eq!(cluster.reconcile().await, none());
    cluster.nodes_apply();
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(TAP), None);
}

#[tokio::test]
async fn a_deletion_that_only_a_response_shows_is_noticed() {
    let mut cluster = Cluster::with_one_tap();
    cluster.reconcile().await;
    cluster.nodes_apply();
    while cluster.reconciler.context.caches.changed().now_or_never().is_some() {}
    // The user deletes the tap while its status is written.
    cluster.api.interfere(&format!("PATCH {TAP}/status"), |tap| {
        tap["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
    });
    cluster.reconcile().await;
    assert!(cluster.reconciler.context.caches.changed().now_or_never().is_some(), "no event would wake the leader");
}

#[tokio::test]
async fn an_own_write_does_not_wake_the_leader() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut tap = cluster.api.get(TAP).expect("a tap");
    tap["spec"]["direction"] = json!("Egress");
    cluster.api.put(TAP, &tap);
    while cluster.reconciler.context.caches.changed().now_or_never().is_some() {}
    assert_eq!(cluster.reconcile().await.len(), 2, "the node of the pod, and the status");
    assert!(cluster.reconciler.context.caches.changed().now_or_never().is_none());
}

#[tokio::test]
async fn nothing_is_due_at_once_for_ever() {
    let mut suspended = tap("t", json!([{"node": {"name": "n2"}}]));
    suspended.spec.suspend = true;
    suspended.spec.duration = Some(Duration::from_secs(1).into());
    suspended.status =
        Some(PodTapStatus { start_time: crate::fixtures::time(-1_000_000_000), ..PodTapStatus::default() });
    let mut cluster = Cluster::new(&World::with(suspended));
    for _ in 0..2 {
        cluster.sync();
        let next = cluster.reconciler.reconcile(Timestamp::now()).await;
        assert!(next.duration_since(Timestamp::now()) > SignedDuration::from_secs(60), "{next}");
    }
    let past = Timestamp::now() - SignedDuration::from_secs(5);
    assert!(cluster.reconciler.next(Timestamp::now(), [Some(past)]) > Timestamp::now());
}

/// The API server's clock is ahead of that of the controller's node, or behind.
#[tokio::test]
async fn the_clock_of_the_controllers_node_has_no_effect() {
    for off in [-3600, 3600].map(SignedDuration::from_secs) {
        let mut limited = tap("t", json!([{"node": {"name": "n2"}}]));
        limited.spec.duration = Some(Duration::from_secs(600).into());
        let mut cluster = Cluster::new(&World::with(limited));
        cluster.ahead.set(off);
        cluster.establish().await;
        let tap: PodTap = object(cluster.api.get(TAP).expect("a tap"));
        let started = tap.status.and_then(|status| status.start_time).expect("it has started").0;
        assert!(started.duration_since(cluster.now()).abs() < SignedDuration::from_secs(60), "{started}");

        // Another replica, on a node with another time, takes over.
        cluster.nodes_apply();
        cluster.restart();
        cluster.reconcile().await;
        assert_eq!(cluster.condition("Ready"), ("True".into(), "AsExpected".into()), "not expired, {off}");

        let mut deleted = cluster.api.get(TAP).expect("a tap");
        deleted["metadata"]["deletionTimestamp"] = json!(cluster.now().to_string());
        cluster.api.put(TAP, &deleted);
        cluster.reconcile().await;
        cluster.reconcile().await;
        assert!(cluster.api.get(TAP).is_some(), "the nodes have not had their time");
        cluster.nodes_apply();
        cluster.reconcile().await;
        assert_eq!(cluster.api.get(TAP), None);
    }
}

#[tokio::test]
async fn nodes_learn_when_a_tap_ends_before_its_status_says_so() {
    let mut limited = tap("t", json!([{"node": {"name": "n2"}}]));
    limited.spec.duration = Some(Duration::from_secs(60).into());
    let mut cluster = Cluster::new(&World::with(limited));
    cluster.reconcile().await;
    cluster.nodes_apply();
    assert_eq!(cluster.reconcile().await, [format!("PATCH {NODE_TAP}n1"), format!("PATCH {TAP}/status")]);
    assert_eq!(cluster.condition("Ready"), ("True".into(), "AsExpected".into()), "although n1 has not observed it");
    let tap: PodTap = object(cluster.api.get(TAP).expect("a tap"));
    let expiration = tap.status.and_then(|status| status.expiration_time).expect("it has started").0;
    let on_node = cluster.node_tap("n1").spec.0.taps[0].expiration_time.expect("it has a duration");
    assert_eq!(on_node.to_string(), expiration.to_string());
    assert_eq!(cluster.reconcile().await, none());
}

#[tokio::test]
async fn a_new_installation_sweeps_every_node_once() {
    let mut cluster = Cluster::new(&World::small());
    cluster.api.remove(SWEEP);
    cluster.reconcile().await;
    let unswept = |cluster: &Cluster| cluster.api.get(SWEEP).expect("a record")["data"]["nodes"].clone();
    assert_eq!(unswept(&cluster), json!("n1 n2"));
    assert_eq!((cluster.api.list("/nodetaps/").len(), cluster.api.list(PODS).len()), (2, 2));
    assert_eq!(cluster.node_tap("n1").spec, NodeTapSpec::default());
    assert_eq!(cluster.reconcile().await, none(), "the helper pods are starting");

    cluster.restart();
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(unswept(&cluster), json!(""));
    for minute in 0..3 {
        cluster.ahead.set(SignedDuration::from_secs(61 * minute));
        cluster.reconcile().await;
    }
    assert_eq!((cluster.api.list("/nodetaps/").len(), cluster.api.list(PODS).len()), (0, 0));

    cluster.api.put("/api/v1/nodes/n3", &crate::fixtures::node("n3", &["10.0.0.3"]));
    cluster.restart();
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/"), [], "no earlier installation has mirrored there");
}

/// It was uninstalled without its hook, and the definitions were kept.
#[tokio::test]
async fn a_new_installation_believes_nothing_that_an_earlier_one_has_observed() {
    let mut cluster = Cluster::new(&World::small());
    cluster.api.remove(SWEEP);
    let stale = |name: &str| {
        let mut node_tap = carry_out(crate::fixtures::node_tap(name, podtap_model::NodeState::default()));
        node_tap.metadata.uid = Some(format!("stale-{name}"));
        node_tap
    };
    for name in ["n1", "n2"] {
        cluster.api.put(&format!("{NODE_TAP}{name}"), &stale(name));
    }
    let unswept = |cluster: &Cluster| cluster.api.get(SWEEP).expect("a record")["data"]["nodes"].clone();
    for _ in 0..3 {
        cluster.reconcile().await;
        assert_eq!(unswept(&cluster), json!("n1 n2"), "no helper pod has run yet");
    }
    assert_ne!(cluster.node_tap("n1").metadata.uid.as_deref(), Some("stale-n1"));
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(unswept(&cluster), json!(""));
}

#[tokio::test]
async fn uninstalling_ends_the_sweep_and_retires_every_clean_node() {
    let mut cluster = Cluster::new(&World::small());
    cluster.api.remove(SWEEP);
    cluster.reconcile().await;
    assert_eq!((cluster.api.list("/nodetaps/").len(), cluster.api.list(PODS).len()), (2, 2));
    let job = "/api/v1/namespaces/podtap-system/pods/podtap-uninstall-x";
    cluster.api.put(
        job,
        &json!({
            "metadata": {"name": "podtap-uninstall-x", "namespace": OWN_NAMESPACE, "labels": {
                "app.kubernetes.io/name": "podtap", "app.kubernetes.io/component": "uninstall",
            }},
            "spec": {"containers": []},
        }),
    );
    for _ in 0..3 {
        cluster.reconcile().await;
    }
    assert_eq!(cluster.api.list("/nodetaps/"), []);
    // Between the job and the deletion of the controller.
    cluster.api.remove(job);
    cluster.reconcile().await;
    assert_eq!((cluster.api.list("/nodetaps/"), cluster.api.list(PODS)), (vec![], vec![]));
}

#[tokio::test]
async fn taps_do_not_wait_for_the_record_of_nodes_to_sweep() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse("podtap-sweep", StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    cluster.establish().await;
    cluster.api.refuse_nothing();
    cluster.wait_for_retry().await;
    assert_eq!(cluster.reconcile().await, [format!("GET {SWEEP}"), format!("POST {WHO_AM_I}")]);
}

/// An admission webhook takes ten seconds for each helper pod; the API server has more to create than it takes at once.
#[tokio::test(start_paused = true)]
async fn slow_admission_of_helper_pods_delays_nothing_else() {
    let mut world = World::with(tap("t", json!([{"node": {"name": "n2"}}])));
    for number in 3..40 {
        let name = format!("n{number}");
        world.nodes.push(node(&name, &[&format!("10.66.1.{number}")]));
        world.pods.push(pod("shop", &format!("web-{number}"), &name));
    }
    let mut cluster = Cluster::new(&world);
    cluster.api.delay(&format!("POST {PODS}"), Duration::from_secs(10));
    let began = tokio::time::Instant::now();
    let requests = cluster.reconcile().await;
    assert!(requests.contains(&format!("PATCH {TAP}/status")), "{requests:?}");
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(TAP), None, "deleted while helper pods are being created");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(cluster.api.list(PODS), []);
    // The requests in flight are neither lost nor repeated.
    cluster.reconciler.state.helper_requests.answer().await;
    assert!(!cluster.api.list(PODS).is_empty());
}

/// A leader that was stopped, replaced and continued sends what it had planned before.
#[tokio::test]
async fn an_old_leader_overwrites_nothing() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut tap = cluster.api.get(TAP).expect("a tap");
    tap["spec"]["direction"] = json!("Ingress");
    tap["metadata"]["generation"] = json!(2);
    cluster.api.put(TAP, &tap);
    // The new leader has removed the sender between the old leader's snapshot and its request.
    cluster.api.interfere(&format!("PATCH {NODE_TAP}n1"), |node_tap| node_tap["spec"] = json!({}));
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec, NodeTapSpec::default());
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.0.senders.len(), 1, "with the new state, it is written at once");
}

#[tokio::test]
async fn an_old_leader_creates_nothing_over_what_the_new_one_has_created() {
    let mut cluster = Cluster::with_one_tap();
    // Between the old leader's snapshot and its request.
    cluster.api.interfere("nodetaps/n1", |node_tap| {
        *node_tap = json!({"metadata": {"name": "n1"}, "spec": NodeTapSpec::default()});
    });
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec, NodeTapSpec::default());
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.0.senders.len(), 1, "with the new state, it is written at once");
}

#[tokio::test]
async fn an_old_leader_does_not_bring_back_what_the_new_one_has_deleted() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.add_pod("new");
    cluster.sync();
    let node_tap = format!("{NODE_TAP}n1");
    cluster.api.remove(&node_tap);
    cluster.reconciler.reconcile(cluster.now()).await;
    assert_eq!(cluster.api.get(&node_tap), None);
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.0.senders.len(), 2, "once it knows, it is written at once");
}
