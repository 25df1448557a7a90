use std::{collections::BTreeMap, time::Duration};

use futures::FutureExt as _;
use http::StatusCode;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::watcher::Event,
};
use podtap_api::{FINALIZER, NodeTap, NodeTapSpec, PodTap};
use podtap_runtime::http::Metrics;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::{
    apply::helper_pod::HelperTemplate,
    fake_api::FakeApi,
    fixtures::{OWN_NAMESPACE, World, carry_out, object, tap},
    store::{
        cache::Cache,
        caches::Caches,
        node::{CachedNamespace, CachedNode, service_networks},
        node_tap::CachedNodeTap,
        pod::CachedPod,
        tap::CachedTap,
    },
};

const TAP: &str = "/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps/t";
const NODE_TAP: &str = "/apis/podtap.dev/v1alpha1/nodetaps/";
const PODS: &str = "/api/v1/namespaces/podtap-system/pods";

/// A leader and its API server. [`Cluster::sync`] replaces the watches.
struct Cluster {
    api: FakeApi,
    reconciler: Reconciler,
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
        let cluster = Self { reconciler: Self::leader(&api), api };
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
            context: Context {
                client,
                caches: Caches::new(),
                template: HelperTemplate {
                    namespace: OWN_NAMESPACE.into(),
                    image: "podtap:1".into(),
                    pull_policy: "Never".into(),
                    pull_secrets: Vec::new(),
                    service_account: "podtap-agent".into(),
                    priority_class: None,
                    log_json: false,
                    metrics_port: 14790,
                },
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
        let Self { api, reconciler } = self;
        let caches = &reconciler.context.caches;
        list(&caches.taps, api.list("/podtaps/"), CachedTap::from as fn(DeserializeGuard<PodTap>) -> CachedTap);
        list(&caches.node_taps, api.list("/nodetaps/"), CachedNodeTap::from as fn(DeserializeGuard<NodeTap>) -> _);
        list(&caches.pods, api.list("/pods/"), |pod: Pod| CachedPod::new(pod, OWN_NAMESPACE));
        list(&caches.nodes, api.list("/nodes/"), |node: Node| CachedNode::from(node));
        list(&caches.namespaces, Vec::new(), |namespace: PartialObjectMeta<Namespace>| {
            CachedNamespace::from(namespace)
        });
        list(&caches.service_networks, Vec::new(), service_networks);
    }

    /// One reconcile; the requests that it sent, without events.
    async fn reconcile(&mut self) -> Vec<String> {
        self.api.requests();
        self.sync();
        self.reconciler.reconcile().await;
        self.api.requests().into_iter().filter(|request| !request.contains("/events")).collect()
    }

    /// Every node applies its spec, and its helper pod runs.
    fn nodes_apply(&self) {
        for (path, node_tap) in self.api.list("/nodetaps/") {
            self.api.put(&path, &carry_out(object::<NodeTap>(node_tap)));
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
        self.api.requests();
    }

    fn delete_tap(&self) {
        let mut tap = self.api.get(TAP).expect("a tap");
        tap["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
        self.api.put(TAP, &tap);
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let tap: PodTap = object(self.api.get(TAP).expect("a tap"));
        let conditions = tap.status.expect("a status").conditions;
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

fn none() -> Vec<String> {
    Vec::new()
}

#[tokio::test]
async fn an_unchanged_cluster_sends_nothing() {
    let mut cluster = Cluster::with_one_tap();
    let first = cluster.reconcile().await;
    let sent: BTreeMap<&str, usize> = first.iter().fold(BTreeMap::new(), |mut sent, request| {
        let kinds = ["nodetaps", "/pods", "/status", "podtaps"];
        *sent.entry(kinds.into_iter().find(|kind| request.contains(kind)).expect(request)).or_default() += 1;
        sent
    });
    // The finalizer is added, each NodeTap and helper pod created, and the status written.
    assert_eq!(sent, [("/pods", 2), ("/status", 1), ("nodetaps", 2), ("podtaps", 1)].into());
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Pending".into()));
    assert_eq!(cluster.reconcile().await, none());

    cluster.nodes_apply();
    assert_eq!(cluster.reconcile().await, [format!("PATCH {TAP}/status")]);
    assert_eq!(cluster.condition("Ready"), ("True".into(), "AsExpected".into()));
    assert_eq!(cluster.reconcile().await, none());
}

#[tokio::test]
async fn a_new_leader_changes_nothing() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.restart();
    assert_eq!(cluster.reconcile().await, none());
    assert_eq!(cluster.api.list("/events/").len(), 1, "TapEstablished, once");
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
    // The tap does not count as tapped before the node has observed the repair.
    assert_eq!(cluster.reconcile().await, [format!("PATCH {NODE_TAP}n1"), format!("PATCH {TAP}/status")]);
    assert_eq!(cluster.node_tap("n1").spec, before);
    assert_eq!(cluster.condition("Tapped"), ("False".into(), "Pending".into()));

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
async fn a_node_that_cannot_be_written_to_stops_no_other() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse("nodetaps/n1", StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n2").spec.0.receivers.len(), 1);
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Pending".into()));
}

/// One has not heard of the other's writes, nor of a younger tap that requests a VNI.
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
        let next = cluster.reconciler.reconcile().await;
        assert!(next.duration_since(Timestamp::now()) > SignedDuration::from_secs(60), "{next}");
    }
    let past = Timestamp::now() - SignedDuration::from_secs(5);
    assert!(cluster.reconciler.next(Timestamp::now(), [Some(past)]) > Timestamp::now());
}
