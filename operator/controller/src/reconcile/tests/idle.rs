//! When the controller sends requests, and when it reconciles again.

use futures::FutureExt as _;

use super::*;

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
    tap.spec.mirror.options.deduplicate = Some(podtap_model::Deduplicate::default());
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
    cluster.change_tap(|tap| tap["spec"]["direction"] = json!("Egress"));
    while cluster.reconciler.context.caches.changed().now_or_never().is_some() {}
    assert_eq!(cluster.reconcile().await.len(), 2, "the node of the pod, and the status");
    assert!(cluster.reconciler.context.caches.changed().now_or_never().is_none());
}

#[tokio::test]
async fn nothing_is_due_at_once_for_ever() {
    let mut suspended = tap("t", json!([{"node": {"name": "n2"}}]));
    suspended.spec.mirror.suspend = true;
    suspended.spec.mirror.duration = Some(Duration::from_secs(1).into());
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
