//! Helper pods, and their rollout.

use podtap_model::{Reason, TapReference};

use super::*;
use crate::events::Occurrence;

#[tokio::test]
async fn a_rejected_helper_pod_is_reported_and_blocks_nothing_else() {
    let mut cluster = Cluster::with_one_tap();
    cluster.api.refuse(&format!("POST {PODS}"), StatusCode::FORBIDDEN, "Forbidden");
    cluster.reconcile().await;
    assert_eq!(cluster.api.list("/nodetaps/").len(), 2);
    assert_eq!(cluster.condition("Tapped"), ("False".into(), "HelperPodRejected".into()));
    assert_eq!(cluster.reconcile().await, none(), "not before a pause is over");
    cluster.api.refuse_nothing();
    cluster.wait_for_retry().await;
    cluster.establish().await;
}

/// An admission webhook takes ten seconds for each helper pod; the API server has more to create than it takes at once.
#[tokio::test(start_paused = true)]
async fn slow_admission_of_helper_pods_delays_nothing_else() {
    let mut world = World::with(tap("t", json!([{"node": {"name": "n2"}}])));
    for number in 3..40 {
        let name = format!("n{number}");
        world.nodes.push(node(&name, &[&format!("10.66.1.{number}")]));
        world.pods.push(pod("shop", &format!("web-{number}"), &name));
    }
    let mut cluster = Cluster::new(&world);
    cluster.api.delay(&format!("POST {PODS}"), Duration::from_secs(10));
    let began = tokio::time::Instant::now();
    let requests = cluster.reconcile().await;
    assert!(requests.contains(&format!("PATCH {TAP}/status")), "{requests:?}");
    cluster.delete_tap();
    cluster.reconcile().await;
    cluster.nodes_apply();
    cluster.reconcile().await;
    assert_eq!(cluster.api.get(TAP), None, "deleted while helper pods are being created");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(cluster.api.list(PODS), []);
    // The requests in flight are neither lost nor repeated.
    cluster.reconciler.state.helper_requests.answer().await;
    assert!(!cluster.api.list(PODS).is_empty());
}

#[tokio::test]
async fn helper_pods_are_replaced_one_after_the_other_and_none_after_one_that_fails() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let deleted = |requests: Vec<String>| requests.iter().filter(|request| request.starts_with("DELETE")).count();
    cluster.reconciler.context.template.image = "podtap:2".into();
    assert_eq!(deleted(cluster.reconcile().await), 1);
    assert_eq!(cluster.reconcile().await, none(), "the first new pod is not Ready yet");
    let outdated = |cluster: &Cluster| {
        let pods = cluster.api.list(PODS).into_iter();
        pods.filter(|(_, pod)| pod["spec"]["containers"][0]["image"] == "podtap:1").count()
    };
    assert_eq!((cluster.api.list(PODS).len(), outdated(&cluster)), (2, 1));
    for (path, mut pod) in cluster.api.list(PODS) {
        if pod["spec"]["containers"][0]["image"] == "podtap:2" {
            let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
            let status = json!({"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": waiting});
            pod["status"] = json!({"phase": "Pending", "containerStatuses": [status]});
            cluster.api.put(&path, &pod);
        }
    }
    assert_eq!(deleted(cluster.reconcile().await), 0, "the other node keeps what works");
    assert!(cluster.reconciler.state.rollout_stopped.is_some());
    assert_eq!(cluster.condition("Tapped"), ("False".into(), "HelperPodFailed".into()));

    cluster.reconciler.context.template.image = "podtap:3".into();
    assert_eq!(deleted(cluster.reconcile().await), 1, "the pod that fails");
    cluster.nodes_apply();
    assert_eq!(deleted(cluster.reconcile().await), 1, "the next");
    cluster.nodes_apply();
    cluster.reconcile().await;
    let images = cluster.api.list(PODS).into_iter().map(|(_, pod)| pod["spec"]["containers"][0]["image"].clone());
    assert_eq!(images.collect::<Vec<_>>(), ["podtap:3", "podtap:3"]);
    assert_eq!(cluster.condition("Ready"), ("True".into(), "AsExpected".into()));
}

/// Sets the status of the helper pods of an image.
fn set_container(cluster: &Cluster, image: &str, state: &Value) {
    for (path, mut pod) in cluster.api.list(PODS) {
        if pod["spec"]["containers"][0]["image"] == image {
            let status = json!({"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "state": state});
            pod["status"] = json!({"phase": "Running", "containerStatuses": [status]});
            cluster.api.put(&path, &pod);
        }
    }
}

/// The requests for events about objects of the cluster, such as `NodeTap`s, that one reconcile causes. They are sent in order.
async fn cluster_events(cluster: &mut Cluster) -> usize {
    cluster.api.requests();
    cluster.sync();
    cluster.reconciler.reconcile(cluster.now()).await;
    let last = TapReference { namespace: "last".into(), name: "last".into(), uid: crate::fixtures::uid("last") };
    let occurrence = Occurrence { is_warning: false, reason: Reason::Pending, note: String::new() };
    cluster.reconciler.publisher.publish(&last, [occurrence]);
    let mut requests: Vec<String> = Vec::new();
    let sent = async {
        while !requests.iter().any(|request| request.contains("/namespaces/last/events")) {
            requests.extend(cluster.api.requests());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), sent).await.expect("the events are sent");
    requests.iter().filter(|request| request.contains("/namespaces/default/events")).count()
}

#[tokio::test]
async fn a_rollout_that_stops_is_reported_once() {
    let mut cluster = Cluster::with_one_tap();
    cluster.establish().await;
    let crashed = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
    let running = json!({"running": {}});
    cluster.reconciler.context.template.image = "podtap:2".into();
    assert_eq!(cluster_events(&mut cluster).await, 0, "the first new pod is created");
    set_container(&cluster, "podtap:2", &crashed);
    assert_eq!(cluster_events(&mut cluster).await, 1);
    let events = cluster.api.list("/namespaces/default/events/");
    let [(_, event)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&event["reason"], &event["type"]), (&json!("HelperRolloutStopped"), &json!("Warning")));
    let node_tap = &event["regarding"];
    assert_eq!(node_tap["kind"], "NodeTap");
    let name = node_tap["name"].as_str().expect("a name");
    assert_eq!(node_tap["uid"], json!(cluster.node_tap(name).metadata.uid));
    let note = event["note"].as_str().expect("a note");
    let expected = format!(
        "the new helper pod of the node {name} fails; 1 node keeps its previous helper pod until the new one is Ready here:"
    );
    assert!(note.starts_with(&expected), "{note}");
    // It starts again, and crashes again.
    for state in [&running, &crashed, &running, &crashed] {
        set_container(&cluster, "podtap:2", state);
        assert_eq!(cluster_events(&mut cluster).await, 0, "{state}");
    }
    // The next image fails, too.
    cluster.reconciler.context.template.image = "podtap:3".into();
    assert_eq!(cluster_events(&mut cluster).await, 0);
    set_container(&cluster, "podtap:3", &crashed);
    assert_eq!(cluster_events(&mut cluster).await, 1);
    assert_eq!(cluster_events(&mut cluster).await, 0);
}
