//! Upgrades of the helper pods.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use podtap_tests::{
    capture::Capture,
    cluster::{Cluster, namespace_of_node},
    wait::until,
};

use crate::{
    controller::{Setting, metric},
    helper_pods::{helper_of, is_ready},
    numbered::{PORT, a_while, each_once, under_load},
    scene::{Scene, as_on_the_wire, capture, same_traffic, tap},
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
    tap(&scene.sandbox, "n2", "rol-bad");
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

/// The revision in the checkout `PODTAP_OTHER`, whose image the lab has, and this one, in turn: programs, maps, the protocol between
/// agent and tap-helper, and the API may differ.
#[test]
#[ignore = "needs a checkout of another revision: make upgrade FROM=DIR"]
fn another_revision_is_upgraded_and_comes_back_without_losing_a_frame() {
    let _alone = Cluster::alone();
    let other = PathBuf::from(env::var("PODTAP_OTHER").expect("make upgrade sets it"));
    let scene = Scene::alone("upgrade");
    let lab = scene.sandbox.lab();
    let tags = [&other, lab.top()].map(Cluster::image_tag);
    assert_ne!(tags[0], tags[1], "the revisions differ");
    install(&other);
    tap(&scene.sandbox, "n2", "rol-up");
    let since = |condition| {
        let status = scene.sandbox.tap("web").status.unwrap_or_default();
        let condition = status.conditions.into_iter().find(|found| found.type_ == condition).expect("a condition");
        (condition.status, condition.last_transition_time)
    };
    let receiver = capture(&namespace_of_node(lab, "n2"), "rol-up");
    let sent = under_load(&scene, |sent| {
        a_while(sent);
        let before = since("Delivering");
        for checkout in [lab.top(), &other, lab.top()] {
            install(checkout);
            until("the helper pods are of that revision", Duration::from_secs(120), || {
                let is_there = |node| {
                    helper_of(node)
                        .is_some_and(|pod| is_ready(&pod) && image(&pod).ends_with(&Cluster::image_tag(checkout)))
                };
                let nodes = ["n1", "n2"].map(is_there);
                if nodes == [true, true] { Ok(()) } else { Err(format!("{nodes:?}")) }
            });
            a_while(sent);
        }
        scene.sandbox.ready("web");
        println!("Delivering: {before:?}, now {:?}", since("Delivering"));
    });
    assert_eq!(each_once(&receiver, PORT, sent), 0, "the first datagram arrives, too");
    println!("{sent} datagrams");
}

/// Replaces what is installed by what a checkout contains.
fn install(checkout: &Path) {
    let (chart, value) = (checkout.join("deploy/chart/podtap"), format!("image.tag={}", Cluster::image_tag(checkout)));
    let chart = chart.to_str().expect("UTF-8");
    let values = ["--set", "image.pullPolicy=Never", "--set", &value, "--wait", "--timeout", "120s"];
    Cluster::lab().helm(&[&["upgrade", "podtap", chart][..], &values].concat()).expect("helm works");
}
