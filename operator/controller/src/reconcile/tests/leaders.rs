//! Leaders that follow each other, or lead at the same time.

use super::*;

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
    younger.spec.mirror.vxlan = Some(podtap_api::Vxlan { vni: Some(vni) });
    second.api.put(&TAP.replace("podtaps/t", "podtaps/u"), &younger);
    second.reconcile().await;
    assert_eq!((vni_of(&second, "t"), vni_of(&second, "u")), (Some(vni), None));
}

/// A leader that was stopped, replaced and continued sends what it had planned before.
#[tokio::test]
async fn an_old_leader_overwrites_nothing() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    cluster.change_tap(|tap| {
        tap["spec"]["direction"] = json!("Ingress");
        tap["metadata"]["generation"] = json!(2);
    });
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
