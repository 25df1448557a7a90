//! `NodeTap`s that others change, or that cannot be written.

use super::*;

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
async fn a_node_that_cannot_be_written_to_stops_no_other() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse("nodetaps/n1", StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n2").spec.0.receivers.len(), 1);
    assert_eq!(cluster.condition("Ready"), ("False".into(), "Pending".into()));
}
