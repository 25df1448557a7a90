use std::{collections::BTreeMap, time::Duration};

use futures::FutureExt as _;
use http::StatusCode;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::watcher::Event,
};
use podtap_api::{FINALIZER, NodeTap, PodTap};
use podtap_runtime::http::Metrics;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::{apply::helper_pod::HelperTemplate, fake_api::FakeApi, fixtures::{carry_out, object, OWN_NAMESPACE, tap, World}, store::{cache::Cache, objects::{CachedNamespace, CachedNode, CachedNodeTap, CachedPod, CachedTap}, watch::Caches}};

const TAP: &str = "/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps/t";
const NODE_TAP: &str = "/apis/podtap.dev/v1alpha1/nodetaps/";
const PODS: &str = "/api/v1/namespaces/podtap-system/pods";
const CLAIMS: &str = "/api/v1/namespaces/podtap-system/configmaps/podtap-vni-claims";

/// A leader and its API server. What the watches would tell is told by [`Cluster::sync`].
struct Cluster {
    api: FakeApi,
    leader: Reconciler,
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
        let cluster = Self { leader: Self::leader(&api), api };
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
            record: Record::new(client.clone(), OWN_NAMESPACE),
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

    /// The next leader, which knows nothing but what is in the API server.
    fn restart(&mut self) {
        self.leader = Self::leader(&self.api);
        self.sync();
    }

    /// Tells the caches all that is there.
    fn sync(&self) {
        fn list<K, T>(cache: &Cache<T>, objects: Vec<(String, Value)>, fact: impl Fn(K) -> T)
        where
            K: DeserializeOwned + ResourceExt,
            T: PartialEq,
        {
            cache.take(Event::<K>::Init, &fact);
            for (_, value) in objects {
                cache.take(Event::InitApply(object::<K>(value)), &fact);
            }
            cache.take(Event::<K>::InitDone, &fact);
        }
        let Self { api, leader } = self;
        let caches = &leader.context.caches;
        list(&caches.taps, api.list("/podtaps/"), CachedTap::from as fn(DeserializeGuard<PodTap>) -> CachedTap);
        list(&caches.node_taps, api.list("/nodetaps/"), CachedNodeTap::from as fn(DeserializeGuard<NodeTap>) -> _);
        list(&caches.pods, api.list("/pods/"), |pod: Pod| CachedPod::new(pod, OWN_NAMESPACE));
        list(&caches.nodes, api.list("/nodes/"), |node: Node| CachedNode::from(node));
        list(&caches.namespaces, Vec::new(), |namespace: PartialObjectMeta<Namespace>| CachedNamespace::from(namespace));
        list(&caches.service_networks, Vec::new(), crate::store::objects::service_networks);
    }

    /// One pass; what it asked for, without events.
    async fn reconcile(&mut self) -> Vec<String> {
        self.api.requests();
        self.sync();
        self.leader.reconcile().await;
        self.api.requests().into_iter().filter(|request| !request.contains("/events")).collect()
    }

    /// Every node carries out what it is told, and its helper pod runs.
    fn nodes_work(&self) {
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
        self.nodes_work();
        self.reconcile().await;
        assert_eq!(self.condition("Ready"), ("True".into(), "Established".into()));
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

    /// Long enough for the first pause after a failure.
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
        let kinds = ["configmaps", "nodetaps", "/pods", "/status", "podtaps"];
        *sent.entry(kinds.into_iter().find(|kind| request.contains(kind)).expect(request)).or_default() += 1;
        sent
    });
    // The record is read and written, the finalizer added, each node told, each helper made, and the user told.
    assert_eq!(sent, [("/pods", 2), ("/status", 1), ("configmaps", 2), ("nodetaps", 2), ("podtaps", 1)].into());
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Waiting".into()));
    assert_eq!(cluster.reconcile().await, none());

    cluster.nodes_work();
    assert_eq!(cluster.reconcile().await, [format!("PATCH {TAP}/status")]);
    assert_eq!(cluster.condition("Ready"), ("True".into(), "Established".into()));
    assert_eq!(cluster.reconcile().await, none());
}

#[tokio::test]
async fn a_new_leader_changes_nothing() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.restart();
    assert_eq!(cluster.reconcile().await, [format!("GET {CLAIMS}")]);
    assert_eq!(cluster.api.list("/events/").len(), 1, "TapEstablished, once");
}

#[tokio::test]
async fn a_leader_can_be_replaced_between_any_two_requests() {
    // The first leader gets so far, and its successor has to come to the same end.
    for lost_from in ["POST /api/v1/namespaces/podtap-system/configmaps", "PATCH", "nodetaps/n2", "/pods", "/status"] {
        let mut cluster = Cluster::with_one_tap();
        cluster.api.refuse(lost_from, StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        cluster.reconcile().await;
        cluster.api.refuse_nothing();
        cluster.restart();
        cluster.establish().await;
        assert_eq!(cluster.node_tap("n1").spec.senders.len(), 1, "{lost_from}");
        assert_eq!(cluster.node_tap("n2").spec.receivers.len(), 1, "{lost_from}");
    }
}

#[tokio::test]
async fn no_node_learns_of_a_tap_without_finalizer_and_the_user_is_told() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse(&format!("PATCH {TAP}"), StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/"), []);
    cluster.api.refuse_nothing();
    cluster.wait_for_retry().await;
    // Only the finalizer is refused; the status is another resource.
    cluster.api.interfere(&format!("PATCH {TAP}"), |tap| tap["metadata"]["labels"] = json!({"touched": "true"}));
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/"), []);
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Waiting".into()));
    cluster.wait_for_retry().await;
    cluster.wait_for_retry().await;
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/").len(), 2);
}

#[tokio::test]
async fn a_tap_at_work_goes_on_without_its_finalizer() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut tap = cluster.api.get(TAP).expect("a tap");
    tap["metadata"]["finalizers"] = json!([]);
    cluster.api.put(TAP, &tap);
    cluster.api.refuse(&format!("PATCH {TAP}"), StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.senders.len(), 1);
}

#[tokio::test]
async fn deleting_ends_when_the_nodes_are_clean() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.delete_tap();
    let told = cluster.reconcile().await;
    assert_eq!(told, [format!("PATCH {NODE_TAP}n1"), format!("PATCH {NODE_TAP}n2")]);
    assert_eq!(cluster.node_tap("n1").spec, podtap_api::NodeTapSpec::default());
    assert_eq!(cluster.reconcile().await, none(), "the nodes are at work");
    let recorded = |cluster: &Cluster| cluster.api.get(CLAIMS).expect("a record")["data"].clone();
    assert_eq!(recorded(&cluster), json!({"100": "tap-t/0"}), "copies may still be under way");
    cluster.nodes_work();
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(TAP), None);
    assert_eq!(recorded(&cluster), json!({}));
}

#[tokio::test]
async fn somebody_elses_finalizer_stays() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut tap = cluster.api.get(TAP).expect("a tap");
    tap["metadata"]["finalizers"] = json!([FINALIZER, "example.com/hold"]);
    cluster.api.put(TAP, &tap);
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.nodes_work();
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(TAP).expect("held")["metadata"]["finalizers"], json!(["example.com/hold"]));
    assert_eq!(cluster.reconcile().await, none());
}

#[tokio::test]
async fn nodes_are_given_up_after_their_last_tap_helper_first() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.nodes_work();
    cluster.reconcile().await;
    assert_eq!(cluster.api.list(PODS).len(), 2, "the next tap would find them");
    let long_ago = Timestamp::now() - SignedDuration::from_secs(61);
    cluster.leader.state.idle_since = ["n1", "n2"].map(|node| (node.to_owned(), long_ago)).into();
    cluster.reconcile().await;
    assert_eq!((cluster.api.list(PODS).len(), cluster.api.list("/nodetaps/").len()), (0, 2));
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/"), []);
    // Whoever waited for what these nodes held is looked at again.
    assert!(cluster.leader.context.caches.changed().now_or_never().is_some());
}

#[tokio::test]
async fn what_somebody_does_to_a_node_tap_is_undone() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let before = cluster.node_tap("n1").spec;
    let mut edited = cluster.node_tap("n1");
    edited.spec.senders.clear();
    cluster.api.put(&format!("{NODE_TAP}n1"), &edited);
    // And the tap does not count as being in place before the node has seen the repair.
    assert_eq!(cluster.reconcile().await, [format!("PATCH {NODE_TAP}n1"), format!("PATCH {TAP}/status")]);
    assert_eq!(cluster.node_tap("n1").spec, before);
    assert_eq!(cluster.condition("Tapped"), ("False".into(), "Waiting".into()));

    cluster.nodes_work();
    cluster.reconcile().await;
    cluster.api.remove(&format!("{NODE_TAP}n1"));
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec, before);
}

#[tokio::test]
async fn a_node_tap_that_cannot_be_read_is_written_anew() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut odd = cluster.api.get(&format!("{NODE_TAP}n1")).expect("a NodeTap");
    odd["spec"]["senders"][0]["direction"] = json!("Sideways");
    cluster.api.put(&format!("{NODE_TAP}n1"), &odd);
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.senders.len(), 1);
}

#[tokio::test]
async fn a_helper_that_is_refused_is_told_and_holds_nobody_else_up() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse(&format!("POST {PODS}"), StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/").len(), 2);
    assert_eq!(cluster.condition("Tapped"), ("False".into(), "HelperRejected".into()));
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
    assert_eq!(cluster.node_tap("n2").spec.receivers.len(), 1);
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Waiting".into()));
}

#[tokio::test]
async fn of_two_controllers_one_records_a_vni() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    // Another controller is faster, and gives the next VNI away.
    let theirs = json!({"100": "tap-t/0", "101": "tap-t/1"});
    let mut newer = cluster.api.get(CLAIMS).expect("a record");
    newer["data"] = theirs.clone();
    cluster.api.put(CLAIMS, &newer);
    cluster.api.put(&TAP.replace("podtaps/t", "podtaps/u"), &tap("u", json!([{"node": {"name": "n2"}}])));
    cluster.reconcile().await;
    let data = || cluster.api.get(CLAIMS).expect("a record")["data"].clone();
    assert_eq!(data(), theirs, "what is there by now is not overwritten");
    assert!(
        cluster.node_tap("n1").spec.senders.iter().all(|sender| sender.tap.name == "t"),
        "not before it is recorded"
    );
    cluster.wait_for_retry().await;
    cluster.reconcile().await;
    let senders = cluster.node_tap("n1").spec.senders;
    let vnis: BTreeMap<_, _> = senders.iter().map(|s| (s.tap.name.as_str(), s.destinations[0].vni)).collect();
    assert_eq!((vnis.len(), vnis["t"]), (2, 100));
    assert_ne!(vnis["u"], 100);
}

#[tokio::test]
async fn a_record_that_is_deleted_comes_back() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.api.remove(CLAIMS);
    cluster.restart();
    let before = cluster.node_tap("n1").spec;
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(CLAIMS).expect("a record")["data"], json!({"100": "tap-t/0"}));
    assert_eq!(cluster.node_tap("n1").spec, before);
}

#[tokio::test]
async fn nothing_is_taken_down_while_the_record_cannot_be_read() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.restart();
    cluster.api.refuse("configmaps", StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    cluster.reconcile().await;
    assert_eq!(cluster.reconcile().await, none(), "not before a pause is over");
    assert_eq!(cluster.node_tap("n1").spec.senders.len(), 1);
}

#[tokio::test]
async fn an_object_that_is_not_understood_is_told_once_and_can_be_deleted() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut odd = cluster.api.get(TAP).expect("a tap");
    odd["spec"]["direction"] = json!("Sideways");
    cluster.api.put(TAP, &odd);
    cluster.reconcile().await;
    let status = cluster.api.get(TAP).expect("a tap")["status"].clone();
    assert_eq!(status["conditions"][0]["reason"], "InvalidSpec");
    assert_eq!(cluster.node_tap("n1").spec.senders, [], "nothing is copied by a guess");
    assert_eq!(cluster.reconcile().await, none());
    cluster.nodes_work();
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(TAP), None);
}

#[tokio::test]
async fn a_deletion_that_only_an_answer_shows_is_heard() {
    let mut cluster = Cluster::with_one_tap();
    cluster.reconcile().await;
    cluster.nodes_work();
    while cluster.leader.context.caches.changed().now_or_never().is_some() {}
    // The user deletes the tap in the moment in which its status is written.
    cluster.api.interfere(&format!("PATCH {TAP}/status"), |tap| {
        tap["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
    });
    cluster.reconcile().await;
    assert!(cluster.leader.context.caches.changed().now_or_never().is_some(), "nobody would look again");
}

#[tokio::test]
async fn an_own_write_alone_wakes_nobody() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let mut tap = cluster.api.get(TAP).expect("a tap");
    tap["spec"]["direction"] = json!("Egress");
    cluster.api.put(TAP, &tap);
    while cluster.leader.context.caches.changed().now_or_never().is_some() {}
    assert_eq!(cluster.reconcile().await.len(), 2, "the node of the pod, and the status");
    assert!(cluster.leader.context.caches.changed().now_or_never().is_none());
}

#[tokio::test]
async fn nothing_is_due_at_once_for_ever() {
    let mut suspended = tap("t", json!([{"node": {"name": "n2"}}]));
    suspended.spec.suspend = true;
    suspended.spec.duration_seconds = Some(1);
    suspended.status =
        Some(PodTapStatus { start_time: crate::fixtures::time(-1_000_000_000), ..PodTapStatus::default() });
    let mut cluster = Cluster::new(&World::with(suspended));
    for _ in 0..2 {
        cluster.sync();
        let next = cluster.leader.reconcile().await;
        assert!(next.duration_since(Timestamp::now()) > SignedDuration::from_secs(60), "{next}");
    }
    let past = Timestamp::now() - SignedDuration::from_secs(5);
    assert!(cluster.leader.next(Timestamp::now(), [Some(past)]) > Timestamp::now());
}
