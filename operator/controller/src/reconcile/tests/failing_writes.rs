//! Writes that the API server refuses, for long.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;

/// A tap of ten minutes that mirrors, and whose status cannot be written.
async fn without_status() -> Cluster {
    let mut limited = tap("t", json!([{"node": {"name": "n2"}}]));
    limited.spec.mirror.duration = Some(Duration::from_secs(600).into());
    limited.metadata.creation_timestamp = Some(Time(Timestamp::now() - SignedDuration::from_secs(60)));
    let mut cluster = Cluster::new(&World::with(limited));
    cluster.api.refuse("/status", StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    cluster.nodes_apply();
    cluster.reconcile().await;
    cluster.nodes_apply();
    cluster
}

#[tokio::test]
async fn a_start_that_no_status_has_stays() {
    let mut cluster = without_status().await;
    let end = |cluster: &Cluster| cluster.node_tap("n1").spec.0.taps[0].expiration_time;
    let first = end(&cluster);
    for restart in [false, true] {
        cluster.advance(30);
        if restart {
            cluster.restart();
        }
        let requests = cluster.reconcile().await;
        assert!(!requests.iter().any(|request| request.contains("nodetaps")), "{restart}: {requests:?}");
        assert_eq!(end(&cluster), first);
    }
    cluster.advance(600);
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.0.senders, [], "it has expired");
    cluster.nodes_apply();
    cluster.advance(60);
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec.0.senders, [], "and does not start again");
}

#[tokio::test]
async fn many_objects_that_cannot_be_decoded_hold_up_nothing() {
    let mut cluster = Cluster::with_one_tap();
    let mut odd = cluster.api.get(TAP).expect("a tap");
    odd["spec"]["direction"] = json!("Sideways");
    for number in 0..200 {
        odd["metadata"]["name"] = json!(format!("odd-{number}"));
        odd["metadata"]["uid"] = json!(format!("odd-{number}"));
        cluster.api.put(&format!("/apis/podtap.dev/v1alpha1/namespaces/shop/podtaps/odd-{number}"), &odd);
    }
    let reports = |requests: &[String]| {
        requests.iter().filter(|request| request.contains("PATCH") && request.contains("odd-")).count()
    };
    let first = reports(&cluster.reconcile().await);
    assert!((1..=64).contains(&first), "{first}");
    let mut all = first;
    for _ in 0..3 {
        cluster.sync();
        let now = cluster.now();
        let next = cluster.reconciler.reconcile(now).await;
        assert!(next.duration_since(now) <= SignedDuration::from_secs(1), "the rest is due");
        all += reports(&cluster.api.requests());
    }
    assert_eq!(all, 200);
    assert_eq!(reports(&cluster.reconcile().await), 0, "each is reported once");
}

#[tokio::test]
async fn a_deletion_that_is_refused_is_retried_after_a_pause() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.nodes_apply();
    cluster.api.refuse(&format!("DELETE {PODS}"), StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    cluster.advance(3600);
    let deletions = |requests: Vec<String>| requests.iter().filter(|request| request.contains("DELETE")).count();
    assert!(deletions(cluster.reconcile().await) > 0, "idle helper pods are deleted");
    assert_eq!(deletions(cluster.reconcile().await), 0, "not yet again");
    cluster.advance(120);
    assert!(deletions(cluster.reconcile().await) > 0);
}
