//! Finalizers, and the end of a tap.

use futures::FutureExt as _;
use podtap_api::FINALIZER;

use super::*;

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
    cluster.change_tap(|tap| tap["metadata"]["finalizers"] = json!([]));
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
