//! The commands `tap-helper apply`, `inspect` and `purge`, run by hand on a node.

use podtap_model::Direction;
use podtap_tests::{
    emulated,
    net::{Desired, Helper, Node, Pod},
};
use serde_json::Value;

use crate::scene::{Scene, TAP, VNI, desired, local_endpoint, receiver, sender};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn apply(node: &Node, desired: &Desired) -> (bool, Value) {
    let input = serde_json::to_string(&desired.state()).expect("JSON");
    let (status, output, _) = Helper::once(node, &["apply", "FILE"], &input);
    (status.success(), json(&output))
}

fn inspect(node: &Node) -> Vec<Value> {
    let (status, output, error) = Helper::once(node, &["inspect"], "");
    assert!(status.success(), "{error}");
    json(&output).as_array().expect("a list").clone()
}

#[test]
fn apply_inspect_and_purge() {
    let node = Node::new();
    let (web, client) = (Pod::start(&node), node.client());
    let before = [web.network().snapshot(), node.network().snapshot()];
    assert_eq!(inspect(&node), [Value::Null; 0]);

    let request =
        desired(vec![sender(TAP, &web, Direction::Both, &[local_endpoint(VNI)])], vec![receiver(TAP, VNI, "mirror0")]);
    let (complete, report) = apply(&node, &request);
    assert!(complete, "{report:#}");
    assert_eq!(report["senders"][0]["state"], "Active");
    let applied = web.network().snapshot();
    assert!(apply(&node, &request).0, "applying again succeeds");
    assert_eq!(applied.differences(&web.network().snapshot()), [""; 0], "applying again changes nothing");

    podtap_tests::net::traffic::udp(&client, web.network(), web.addresses[0], &[100; 7]);
    let found = inspect(&node);
    assert_eq!(found.len(), 2, "{found:#?}");
    let devices = |contents: &Value| contents["devices"].as_array().expect("a list").clone();
    let of = |role: &str| {
        let has = |contents: &&Value| devices(contents).iter().any(|device| device["role"] == role);
        found.iter().find(has).expect("the role is listed")
    };
    let (on_node, in_pod) = (of("receiver"), of("sender"));
    let on_node: Vec<(Value, Value)> =
        devices(on_node).iter().map(|device| (device["role"].clone(), device["vni"].clone())).collect();
    let roles = ["receiver-vxlan", "receiver", "receiver-peer"].map(|role| (role.into(), VNI.into()));
    assert!(on_node.len() == 3 && roles.iter().all(|role| on_node.contains(role)), "{on_node:?}");
    assert_eq!(in_pod["devices"][0]["destinations"][0], format!("10.66.0.1 port 14789 vni {VNI}"));
    assert_eq!((&in_pod["devices"][0]["tap"], &in_pod["clsacts"][0]), (&TAP.into(), &"eth0".into()));
    assert_eq!(in_pod["drift"], Value::Array(vec![]));
    // Nothing renews it, so it stops within the default of an hour.
    let left = in_pod["devices"][0]["secondsLeft"].as_u64();
    assert!(left.is_some_and(|seconds| (1800..=3600).contains(&seconds)), "{left:?}");
    // Its counters equal those of `tc`.
    let shown: Vec<u64> = web.network().mirrors("eth0").iter().map(|mirror| mirror.packets).collect();
    let inspected: Vec<u64> =
        in_pod["filters"].as_array().into_iter().flatten().filter_map(|f| f["packets"].as_u64()).collect();
    assert!(shown == inspected && inspected.iter().all(|count| *count >= 7), "{shown:?} {inspected:?}");

    web.network().run(&format!("ip link set {} down", web.network().vxlan_devices()[0]));
    let drifts: Vec<Value> = inspect(&node).iter().map(|contents| contents["drift"][0].clone()).collect();
    assert!(drifts.iter().any(|drift| drift.as_str().is_some_and(|text| text.ends_with("is down"))), "{drifts:?}");

    let (status, output, _) = Helper::once(&node, &["purge"], "");
    let purged = json(&output);
    assert!(status.success() && purged["remaining"] == Value::Array(vec![]), "{purged:#}");
    assert_eq!(purged["removed"].as_array().map(Vec::len), Some(2));
    assert_eq!(before[0].differences(&web.network().snapshot()), [""; 0]);
    assert_eq!(before[1].differences(&node.network().snapshot()), [""; 0]);
    let (status, output, _) = Helper::once(&node, &["purge"], "");
    assert!(status.success() && json(&output)["removed"] == Value::Array(vec![]), "purging a clean node does nothing");
}

#[test]
fn apply_reports_incomplete_senders() {
    let node = Node::new();
    let pod = Pod::prepared(&node);
    let (complete, report) =
        apply(&node, &desired(vec![sender(TAP, &pod, Direction::Both, &[local_endpoint(1)])], vec![]));
    assert!(!complete);
    assert_eq!(report["senders"][0]["reason"], "PodNotRunning");
    let (status, _, error) = Helper::once(&node, &["apply", "FILE"], "{");
    assert!(!status.success() && error.contains("EOF"), "{error}");
    let (status, _, error) = Helper::once(&node, &["apply", "/nowhere"], "");
    assert!(!status.success() && error.contains("cannot read /nowhere"), "{error}");
}

#[test]
fn inspect_shows_what_serve_created() {
    let mut scene = Scene::new();
    let _captures = scene.tap_to_remote(Direction::Egress);
    let found = inspect(&scene.node);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["filters"].as_array().map(Vec::len), Some(1));
    assert_eq!(found[0]["filters"][0]["direction"], "Egress");
    assert_eq!(found[0]["drift"], Value::Array(vec![]));
}

/// Kills a command after some numbers of requests to the kernel, each time from the state that `start` sets up. The next command
/// completes the request, or removes all of it.
///
/// All numbers would take minutes. A run tries every third one, or every ninth if it is emulated, and each run starts at one of the first,
/// by its process ID: a few runs cover all of them.
fn assert_survives_kills(command: &[&str], start: impl Fn(&Node, &Desired)) {
    let node = Node::new();
    let web = Pod::start(&node);
    let request = desired(
        vec![
            sender(TAP, &web, Direction::Both, &[local_endpoint(VNI), local_endpoint(VNI + 1)]),
            sender("tap-b", &web, Direction::Egress, &[local_endpoint(VNI + 2)]),
        ],
        vec![receiver(TAP, VNI, "mirror0")],
    );
    let input = serde_json::to_string(&request.state()).expect("JSON");
    let before = [web.network().snapshot(), node.network().snapshot()];
    assert!(apply(&node, &request).0);
    let lines = web.network().snapshot().lines.len();
    let step = if emulated() { 9 } else { 3 };
    let first = std::process::id() % step;
    println!("{command:?} is killed after {first} requests, and after every {step} more");
    for requests in (first..).step_by(step as usize) {
        start(&node, &request);
        if !Helper::killed_after(&node, requests, command, &input) {
            assert!(requests > 30, "only {requests} requests");
            return;
        }
        if requests % 2 == 0 {
            let (complete, report) = apply(&node, &request);
            assert!(complete, "after {requests} requests: {report:#}");
            assert_eq!(web.network().snapshot().lines.len(), lines, "after {requests} requests");
        } else {
            let (status, output, error) = Helper::once(&node, &["purge"], "");
            assert!(status.success(), "after {requests} requests: {output} {error}");
            assert_eq!(before[0].differences(&web.network().snapshot()), [""; 0], "after {requests} requests");
            assert_eq!(before[1].differences(&node.network().snapshot()), [""; 0], "after {requests} requests");
        }
    }
}

#[test]
fn apply_can_be_killed_at_any_request() {
    assert_survives_kills(&["apply", "FILE"], |node, _| assert!(Helper::once(node, &["purge"], "").0.success()));
}

#[test]
fn purge_can_be_killed_at_any_request() {
    assert_survives_kills(&["purge"], |node, request| assert!(apply(node, request).0));
}
