//! The receiver gets what the pod sent and received: no frame is lost, duplicate, changed or foreign.

use std::{collections::BTreeSet, time::Duration};

use podtap_model::Direction;
use podtap_tests::{
    capture::{Frame, FrameDirection},
    net::traffic,
    streams::{Content, carries_data},
    wait::until,
};

use crate::scene::{Scene, same_streams};

/// The Ethernet types of the frames, with the IP protocols.
fn kinds(frames: &[Frame]) -> BTreeSet<(u16, u8)> {
    let kind = |frame: &Frame| {
        let ether_type = u16::from_be_bytes([frame.bytes[12], frame.bytes[13]]);
        let protocol = match ether_type {
            0x0800 => frame.bytes[23],
            0x86dd => frame.bytes[20],
            _ => 0,
        };
        (ether_type, protocol)
    };
    frames.iter().map(kind).collect()
}

#[test]
fn every_kind_of_frame_is_mirrored_in_both_directions() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    scene.traffic();
    let frames = captures.same(&scene, |_| true);
    let expected = [(0x0800, 1), (0x0800, 6), (0x0800, 17), (0x0806, 0), (0x86dd, 6), (0x86dd, 17), (0x86dd, 58)];
    let found = kinds(&frames);
    assert!(found.is_superset(&BTreeSet::from(expected)), "{found:?}");
    let sizes: BTreeSet<usize> = frames.iter().map(|frame| frame.bytes.len()).collect();
    assert!(sizes.contains(&42) && sizes.contains(&1514), "{sizes:?}");
}

#[test]
fn ingress_mirrors_only_received_frames() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Ingress);
    scene.traffic();
    captures.same(&scene, |frame| frame.direction == FrameDirection::In);
}

#[test]
fn egress_mirrors_only_sent_frames() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Egress);
    scene.traffic();
    captures.same(&scene, |frame| frame.direction == FrameDirection::Out);
}

/// With the VXLAN headers, full-size frames exceed the MTU. TCP segments are segmented again; other frames are sent as two fragments, which
/// the receiver's kernel reassembles.
#[test]
fn nothing_is_lost_on_an_underlay_with_the_pods_mtu() {
    let mut scene = Scene::with_underlay(1500);
    let captures = scene.tap_to_remote(Direction::Both);
    scene.traffic();
    until("every byte of TCP and every other frame arrives", Duration::from_secs(10), || {
        let received = captures.receiver.so_far();
        let (sent, received) = (Content::of(&captures.pod.so_far()), Content::of(&received));
        if sent.streams.len() != 8 {
            return Err(format!("not eight streams:\n{sent}"));
        }
        sent.difference(&received).map_or(Ok(()), Err)
    });
    let long = captures.receiver.count(|frame| frame.bytes.len() > 1464 && carries_data(&frame.bytes));
    assert_eq!(long, 0, "no segment exceeds the MTU of the underlay");
}

/// With offloads, GSO packets are segmented on the way: frames differ, but the bytes of each stream must not.
///
/// The underlay carries full-size frames. Otherwise each would be fragmented, and under such a load the receiving kernel drops some
/// datagrams whose fragments are more than `ipfrag_max_dist` apart (`ip_frag_too_far`).
#[test]
fn gso_packets_arrive_with_the_same_bytes() {
    let mut scene = Scene::new().with_offloads();
    let captures = scene.tap_to_remote(Direction::Both);
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 4 << 20);
    same_streams(&captures.pod, &captures.receiver, 2);
    assert!(captures.pod.count(|frame| frame.bytes.len() > 1514) > 0, "the pod has GSO packets");
}

#[test]
fn no_frame_is_lost_under_load() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_remote(Direction::Both);
    let (client, web) = (&scene.client, scene.web.network());
    std::thread::scope(|threads| {
        for address in &scene.web.addresses {
            threads.spawn(|| traffic::tcp(client, web, *address, 8 << 20));
            threads.spawn(|| traffic::udp(client, web, *address, &vec![64; 10_000]));
        }
        threads.spawn(|| traffic::udp(client, web, scene.web.addresses[0], &vec![1472; 5_000]));
    });
    let frames = captures.same(&scene, |_| true);
    assert!(frames.len() > 70_000, "{} frames", frames.len());
}
