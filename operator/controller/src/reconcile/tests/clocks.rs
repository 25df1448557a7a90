//! Clocks, and taps that end at a time.

use super::*;

/// The API server's clock is ahead of that of the controller's node, or behind.
#[tokio::test]
async fn the_clock_of_the_controllers_node_has_no_effect() {
    for off in [-3600, 3600].map(SignedDuration::from_secs) {
        let mut limited = tap("t", json!([{"node": {"name": "n2"}}]));
        limited.spec.mirror.duration = Some(Duration::from_secs(600).into());
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

        let now = json!(cluster.now().to_string());
        cluster.change_tap(|tap| tap["metadata"]["deletionTimestamp"] = now);
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
    limited.spec.mirror.duration = Some(Duration::from_secs(60).into());
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
