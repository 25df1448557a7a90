//! What arrives is what the pod sent and received, under load and with the offloads that pods have by default.

use std::{collections::BTreeMap, time::Duration};

use podtap_tests::{
    capture::{Capture, Frame},
    cluster::{in_network, namespace_of_node},
    streams::Content,
    wait::until,
};

use crate::scene::{Scene, address, as_on_the_wire, capture, same_traffic};

fn tap_to_n2(scene: &Scene, interface: &str) -> Capture {
    scene.sandbox.apply(&format!(
        "apiVersion: podtap.dev/v1alpha1\nkind: PodTap\nmetadata: {{name: web}}\nspec:\n  \
         targets: {{podNames: [web]}}\n  destinations: [{{node: {{name: n2, interfaceName: {interface}}}}}]\n"
    ));
    scene.sandbox.ready("web");
    capture(&namespace_of_node(scene.sandbox.lab(), "n2"), interface)
}

/// IPv6 works between pods of one node with link-local addresses, whatever the CNI assigns.
#[test]
fn ipv6_and_arp() {
    let scene = Scene::new("ipv6");
    let neighbour = scene.sandbox.pod("neighbour", "n1", "neighbour");
    let (web, other) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&neighbour));
    as_on_the_wire(&web, "eth0");
    as_on_the_wire(&other, "eth0");
    let receiver = tap_to_n2(&scene, "fid-six");
    let link_local = in_network(&web, &["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link"]);
    let link_local =
        link_local.split_whitespace().nth(3).and_then(|a| a.split('/').next()).expect("eth0 has one").to_owned();
    let pod = Capture::start(&web, "eth0");
    in_network(&other, &["ip", "neigh", "flush", "dev", "eth0"]);
    in_network(&other, &["ping", "-6", "-q", "-c", "3", "-i", "0.2", "-s", "1400", &format!("{link_local}%eth0")]);
    in_network(&other, &["ping", "-q", "-c", "3", "-i", "0.2", &address(&scene.web)]);
    let frames = same_traffic(pod, receiver, |_| true);
    let types: BTreeMap<_, usize> = frames.iter().fold(BTreeMap::new(), |mut types, frame| {
        *types.entry(frame.bytes[12..14].to_vec()).or_default() += 1;
        types
    });
    for (name, ether_type) in [("IPv4", [8, 0]), ("ARP", [8, 6]), ("IPv6", [0x86, 0xdd])] {
        assert!(types.contains_key(ether_type.as_slice()), "no {name} frame among {types:?}");
    }
}

#[test]
fn small_frames_under_load() {
    let scene = Scene::new("load");
    let (web, client) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client));
    as_on_the_wire(&web, "eth0");
    as_on_the_wire(&client, "eth0");
    let receiver = tap_to_n2(&scene, "fid-load");
    let pod = Capture::start(&web, "eth0");
    // 20,000 requests and as many answers, as fast as the client can.
    in_network(&client, &["ping", "-q", "-l", "50", "-i", "0", "-c", "20000", "-s", "100", &address(&scene.web)]);
    let frames = same_traffic(pod, receiver, |_| true);
    assert!(frames.len() >= 40_000, "{} frames", frames.len());
}

/// With offloads the kernel mirrors GSO packets, which are segmented later: frames differ, but bytes must not.
#[test]
fn a_download_with_offloads_is_complete() {
    let scene = Scene::new("offloads");
    let receiver = tap_to_n2(&scene, "fid-off");
    let pod = Capture::start(&scene.sandbox.network(&scene.web), "eth0");
    scene
        .sandbox
        .in_pod(
            "client",
            &format!("for i in 1 2 3 4 5; do wget -q -O /dev/null http://{}/f; done", address(&scene.web)),
        )
        .expect("the download works");
    until("every byte of every TCP stream arrives", Duration::from_secs(15), || {
        let (sent, received) = (Content::of(&pod.so_far()), Content::of(&receiver.so_far()));
        let same = sent.streams == received.streams && sent.streams.len() >= 10;
        if same { Ok(()) } else { Err(format!("sent:\n{sent}received:\n{received}")) }
    });
}

/// The pod's own traffic is unchanged: the other end of its connection has the same frames.
#[test]
fn the_pods_own_frames_are_unchanged() {
    let scene = Scene::new("unchanged");
    let (web, client) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client));
    as_on_the_wire(&web, "eth0");
    as_on_the_wire(&client, "eth0");
    let receiver = tap_to_n2(&scene, "fid-own");
    let (sent, received) = (Capture::start(&web, "eth0"), Capture::start(&client, "eth0"));
    scene.traffic();
    // Addresses and the TTL change between nodes; the payload of the IP packet does not.
    let payloads = |frames: &[Frame]| {
        let mut all: Vec<_> =
            frames.iter().filter(|f| f.bytes[12..14] == [8, 0]).map(|f| f.bytes[34..].to_vec()).collect();
        all.sort();
        all
    };
    until("the client has what the server has", Duration::from_secs(10), || {
        let (a, b) = (payloads(&sent.so_far()), payloads(&received.so_far()));
        if a == b { Ok(()) } else { Err(format!("{} and {} payloads", a.len(), b.len())) }
    });
    drop(receiver);
}
