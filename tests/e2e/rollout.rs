//! Upgrades of the helper pods.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podtap_tests::{
    capture::Capture,
    cluster::{Cluster, namespace_of_node},
    wait::until,
};

use crate::{
    controller::{Setting, metric},
    helper_pods::{helper_of, is_ready},
    scene::{Scene, as_on_the_wire, capture, same_traffic},
};

const TIMEOUT: Duration = Duration::from_secs(60);

fn uids() -> [Option<String>; 2] {
    ["n1", "n2"].map(|node| helper_of(node).and_then(|pod| pod.metadata.uid))
}

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).expect("a container has an image")
}

/// The first node whose new pod fails is the last one, and no frame is lost on any.
#[test]
fn an_image_that_does_not_exist_reaches_one_node_only() {
    let _alone = Cluster::alone();
    let scene = Scene::alone("bad-image");
    scene.sandbox.apply(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {name: web}\nspec:\n  targets: {podNames: [web]}\n  \
         destinations: [{node: {name: n2, interfaceName: rol-bad}}]\n",
    );
    scene.sandbox.ready("web");
    for node in ["n1", "n2"] {
        until("the helper pods are Ready", TIMEOUT, || helper_of(node).filter(is_ready).ok_or("not yet"));
    }
    let before = uids();
    let pod_network = scene.sandbox.network(&scene.web);
    as_on_the_wire(&pod_network, "eth0");
    as_on_the_wire(&scene.sandbox.network(&scene.client), "eth0");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "rol-bad");
    let sent = Capture::start(&pod_network, "eth0");

    let good = image(&helper_of("n1").expect("it is Ready"));
    let (repository, _) = good.rsplit_once(':').expect("the image has a tag");
    let setting = Setting::set("HELPER_IMAGE", &format!("{repository}:no-such-tag"));
    assert_eq!(setting.previous(), Some(good.as_str()));
    until("the rollout stops", TIMEOUT, || match metric("podtap_helper_rollout_stopped") {
        Some(1) => Ok(()),
        other => Err(format!("{other:?} {:?}", uids())),
    });
    let stopped = uids();
    let kept: Vec<usize> = (0..2).filter(|index| stopped[*index] == before[*index]).collect();
    assert_eq!(kept.len(), 1, "one node keeps its helper pod: {before:?} {stopped:?}");
    let kept = ["n1", "n2"][kept[0]];
    assert!(is_ready(&helper_of(kept).expect("the node has a helper pod")));
    scene.traffic();

    setting.restore();
    until("both nodes have a helper pod that is Ready", TIMEOUT, || {
        let pods: Vec<Pod> = ["n1", "n2"].into_iter().filter_map(helper_of).collect();
        let works = pods.len() == 2 && pods.iter().all(|pod| is_ready(pod) && image(pod) == good);
        if works { Ok(()) } else { Err(format!("{:?}", uids())) }
    });
    assert_eq!(metric("podtap_helper_rollout_stopped"), Some(0));
    assert_eq!(
        helper_of(kept).and_then(|pod| pod.metadata.uid),
        before[usize::from(kept == "n2")],
        "it was not replaced"
    );
    scene.sandbox.ready("web");
    scene.traffic();
    same_traffic(sent, receiver, |_| true);
}
