//! `kubectl podtap top`: counters of the nodes, through the API server.

use std::{sync::mpsc, thread};

use podtap_tests::{
    cluster::{Cluster, PODTAP_NAMESPACE},
    net::Network,
    wait::{PATIENCE, until},
};
use serde_json::Value;

use crate::{
    cli::{done, podtap},
    scene::{Scene, address, tap},
};

/// The documents that `top` prints of something.
fn documents(scene: &Scene, words: &[&str]) -> Vec<Value> {
    let lines = done(&scene.sandbox, &[&["top", "--once", "-o", "json"], words].concat());
    lines.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// The frames that the filters of the tapped pod have mirrored, as tc(8) shows them.
fn counted_by_tc(scene: &Scene) -> u64 {
    let network = Network::open(&scene.sandbox.network(&scene.web));
    network.mirrors("eth0").iter().map(|mirror| mirror.packets).sum()
}

#[test]
fn what_is_mirrored_is_shown_with_its_rate() {
    let scene = Scene::new("top");
    tap(&scene.sandbox, "n2", "top-frames");
    // A tap may be Ready before the kubelet has reported that its helper pods are.
    until("the helper pods are Ready", PATIENCE, || match podtap(&scene.sandbox, &["top", "--once"]) {
        (0, ..) => Ok(()),
        (_, _, errors) => Err(errors),
    });
    let (stop, stopped) = mpsc::channel::<()>();
    let (taps, parts) = thread::scope(|scope| {
        let scene = &scene;
        // A failure ends them, too: it drops the sender.
        let pings = scope.spawn(move || {
            let script = format!("ping -q -c 50 -i 0.02 {}", address(&scene.web));
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                scene.sandbox.in_pod("client", &script).expect("the web server answers");
            }
        });
        let shown = until("frames flow", PATIENCE, || match counted_by_tc(scene) {
            0 => Err("nothing is mirrored"),
            before => Ok((before, documents(scene, &[]), documents(scene, &["web"]))),
        });
        let after = counted_by_tc(scene);
        drop(stop);
        pings.join().expect("no panic");
        let (before, taps, parts) = shown;
        for document in [&taps[0], &parts[0]] {
            let number = |field: &str| document[field].as_u64().unwrap_or_else(|| panic!("{field}: {document}"));
            // No GSO packet is among them, which tc would count as one.
            assert!((before..=after).contains(&number("frames")), "{before}, then {after}: {document}");
            for rate in ["ingressBitsPerSecond", "egressBitsPerSecond", "framesPerSecond"] {
                assert!(number(rate) > 0, "{rate}: {document}");
            }
        }
        (taps, parts)
    });
    assert_eq!((taps.len(), &taps[0]["name"], &taps[0]["tappedPods"]), (1, &Value::from("web"), &Value::from(1)));
    assert_eq!((&parts[0]["pod"], &parts[0]["node"]), (&Value::from("web"), &Value::from("n1")));
    assert_eq!(parts[1]["address"], "node/n2:top-frames");

    until("every frame is received", PATIENCE, || {
        let parts = documents(&scene, &["web"]);
        let (frames, received, lost) = (&parts[0]["frames"], &parts[1]["received"], &parts[1]["lost"]);
        if frames == received && lost == 0 { Ok(()) } else { Err(format!("{frames}, {received}, {lost}")) }
    });
    let table = done(&scene.sandbox, &["top", "-A"]);
    let name = format!("{}/web", scene.sandbox.namespace());
    let row = table.lines().find(|row| row.starts_with(&name)).unwrap_or_else(|| panic!("{table}"));
    assert!(row.ends_with("node/n2:top-frames"), "{table}");
}

/// A role binding of this name in PodTap's namespace, until it is dropped.
struct Bound<'a>(&'a str);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        let _ = Cluster::lab().kubectl(&["delete", "rolebinding", "-n", PODTAP_NAMESPACE, self.0], "");
    }
}

#[test]
fn rights_that_are_missing_to_read_counters_are_named() {
    let scene = Scene::new("top-rights");
    tap(&scene.sandbox, "n2", "top-rights");
    let user = format!("{}-reader", scene.sandbox.namespace());
    let bind = |words: &[&str]| {
        let subject = format!("--user={user}");
        let words = [&["create", "rolebinding"], words, &[&subject]].concat();
        scene.sandbox.lab().kubectl(&words, "").expect("an administrator can grant permissions");
    };
    let namespace = scene.sandbox.namespace();
    bind(&["view", "-n", namespace, "--clusterrole=podtap-view"]);
    until("the missing right is named", PATIENCE, || {
        let (code, output, errors) = podtap(&scene.sandbox, &["top", "--as", &user]);
        let is_named = errors.contains("cannot list resource \"pods\"") && errors.contains("\"podtap-system\"");
        if (code, output.as_str()) == (5, "") && is_named { Ok(()) } else { Err(format!("{code}: {output}{errors}")) }
    });
    let _bound = Bound(namespace);
    bind(&[namespace, "-n", PODTAP_NAMESPACE, "--role=podtap-top"]);
    until("the role suffices", PATIENCE, || match podtap(&scene.sandbox, &["top", "web", "--as", &user]) {
        (0, output, _) => Ok(output),
        (_, _, errors) => Err(errors),
    });
}
