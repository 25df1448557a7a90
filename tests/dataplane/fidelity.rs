//! What arrives is what the pod sent and received: nothing lost, duplicated, changed or foreign.

use std::{collections::BTreeSet, time::Duration};

use podtap_model::Direction;
use podtap_tests::{
    capture::{Frame, FrameDirection},
    net::traffic,
    streams::{Content, carries_data},
    wait::until,
};

use crate::scene::{Scene, same_streams};

/// Ethertypes and, for IP, protocols.
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
fn every_kind_of_frame_in_both_directions() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Both);
    scene.traffic();
    let frames = captures.same(&scene, |_| true);
    let expected = [(0x0800, 1), (0x0800, 6), (0x0800, 17), (0x0806, 0), (0x86dd, 6), (0x86dd, 17), (0x86dd, 58)];
    let found = kinds(&frames);
    assert!(found.is_superset(&BTreeSet::from(expected)), "{found:?}");
    let sizes: BTreeSet<usize> = frames.iter().map(|frame| frame.bytes.len()).collect();
    assert!(sizes.contains(&42) && sizes.contains(&1514), "{sizes:?}");
}

#[test]
fn only_ingress() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Ingress);
    scene.traffic();
    captures.same(&scene, |frame| frame.direction == FrameDirection::In);
}

#[test]
fn only_egress() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Egress);
    scene.traffic();
    captures.same(&scene, |frame| frame.direction == FrameDirection::Out);
}

/// Full-size frames do not fit the path with their VXLAN header. TCP segments are segmented again, and the kernel fragments each of
/// the others, which the receiver's kernel reassembles.
#[test]
fn an_underlay_of_the_pods_own_mtu() {
    let mut scene = Scene::with_underlay(1500);
    let captures = scene.tap_to_far(Direction::Both);
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
    assert_eq!(long, 0, "segments that do not fit the underlay");
}

/// With offloads, the sender's and the receiver's devices segment GSO packets: frames differ, but the bytes of each stream must not.
///
/// On an underlay without room for the VXLAN header each of those frames would be fragmented as well, and under this load the
/// receiving kernel sometimes drops a datagram whose fragments are more than `ipfrag_max_dist` apart (`ip_frag_too_far`).
#[test]
fn gso_packets() {
    let mut scene = Scene::new().with_offloads();
    let captures = scene.tap_to_far(Direction::Both);
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 4 << 20);
    assert!(captures.pod.count(|frame| frame.bytes.len() > 1514) > 0, "there are GSO packets");
    same_streams(&captures.pod, &captures.receiver, 2);
}

#[test]
fn under_load() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Both);
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
