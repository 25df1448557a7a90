//! `kubectl podtap top`: counters of the nodes, through the API server.

use std::{sync::mpsc, thread};

use podtap_tests::{
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
    let (stop, stopped) = mpsc::channel::<()>();
    let (taps, parts) = thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let script = format!("ping -q -c 50 -i 0.02 {}", address(&scene.web));
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                scene.sandbox.in_pod("client", &script).expect("the web server answers");
            }
        });
        let shown = until("frames flow", PATIENCE, || match counted_by_tc(&scene) {
            0 => Err("nothing is mirrored"),
            before => Ok((before, documents(&scene, &[]), documents(&scene, &["web"]))),
        });
        let after = counted_by_tc(&scene);
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

#[test]
fn rights_that_are_missing_to_read_counters_are_named() {
    let scene = Scene::new("top-rights");
    tap(&scene.sandbox, "n2", "top-rights");
    let user = format!("{}-reader", scene.sandbox.namespace());
    scene
        .sandbox
        .kubectl(&["create", "rolebinding", "view", "--clusterrole=podtap-view", &format!("--user={user}")], "")
        .expect("an administrator can grant permissions");
    until("the missing right is named", PATIENCE, || {
        let (code, output, errors) = podtap(&scene.sandbox, &["top", "--as", &user]);
        let is_named = errors.contains("cannot list resource \"pods\"") && errors.contains("\"podtap-system\"");
        if (code, output.as_str()) == (5, "") && is_named { Ok(()) } else { Err(format!("{code}: {output}{errors}")) }
    });
}
