//! Statuses and events.

use super::*;

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
async fn an_object_that_cannot_be_decoded_is_reported_once_and_can_be_deleted() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.change_tap(|tap| tap["spec"]["direction"] = json!("Sideways"));
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
