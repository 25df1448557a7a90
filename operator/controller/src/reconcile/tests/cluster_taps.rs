//! Taps of the cluster: from the finalizer to the end, as those of a namespace.

use podtap_api::{ClusterPodTap, FINALIZER};

use super::*;
use crate::fixtures::{cluster_tap, namespace};

const ALL: &str = "/apis/podtap.dev/v1alpha1/clusterpodtaps/all";

fn status(cluster: &Cluster) -> PodTapStatus {
    object(cluster.api.get(ALL).expect("a tap")["status"].clone())
}

fn ready(cluster: &Cluster) -> String {
    let condition = status(cluster).conditions.into_iter().find(|condition| condition.type_ == "Ready");
    condition.expect("it has a status").reason
}

#[tokio::test]
async fn a_tap_of_the_cluster_is_established_and_ends() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.remove(TAP);
    let mut tap = cluster_tap("all", json!([{"node": {"name": "n2"}}]));
    tap.metadata.finalizers = None;
    cluster.api.put(ALL, &tap);
    for name in ["shop", "bank", OWN_NAMESPACE] {
        cluster.api.put(&format!("{NAMESPACES}{name}"), &namespace(name));
    }
    for name in ["bank", OWN_NAMESPACE] {
        let other = started(pod(name, &format!("{name}-web"), "n1"));
        cluster.api.put(&format!("/api/v1/namespaces/{name}/pods/{name}-web"), &other);
    }
    let requests = cluster.reconcile().await;
    assert!(requests.contains(&format!("PATCH {ALL}")), "the finalizer: {requests:?}");
    assert!(requests.contains(&format!("PATCH {ALL}/status")), "{requests:?}");
    assert_eq!(
        object::<ClusterPodTap>(cluster.api.get(ALL).expect("a tap")).metadata.finalizers,
        Some(vec![FINALIZER.into()])
    );
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(ready(&cluster), "AsExpected");
    assert_eq!((status(&cluster).matched_pods, status(&cluster).tapped_pods), (2, 2), "of shop and bank");
    let n1 = cluster.node_tap("n1").spec.0;
    let pods: Vec<_> = n1.senders.iter().map(|sender| sender.pod.namespace.as_str()).collect();
    assert_eq!(pods, ["bank", "shop"]);
    assert_eq!((n1.taps[0].namespace.as_str(), n1.taps[0].name.as_str()), ("", "all"));
    cluster.advance(1);
    assert_eq!(cluster.reconcile().await, none(), "nothing has changed");

    let mut tap = cluster.api.get(ALL).expect("a tap");
    tap["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
    cluster.api.put(ALL, &tap);
    cluster.reconcile().await;
    assert_eq!(cluster.node_tap("n1").spec, NodeTapSpec::default());
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(ALL), None);
}

#[tokio::test]
async fn one_that_cannot_be_decoded_is_told_so() {
    let mut cluster = Cluster::with_one_tap();
    let mut tap = serde_json::to_value(cluster_tap("all", json!([{"node": {"name": "n2"}}]))).expect("JSON");
    tap["spec"]["direction"] = json!("Sideways");
    cluster.api.put(ALL, &tap);
    cluster.reconcile().await;
    assert_eq!(ready(&cluster), "InvalidSpec");
}
