//! The sweep of the nodes after an installation.

use super::*;

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
