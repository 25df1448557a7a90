//! What arrives is what the pod sent and received: nothing lost, doubled, changed or foreign.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use podtap_tests::{
    capture::{Difference, Frame, Way},
    net::traffic,
    wait::until,
};
use tap_wire::Direction;

use crate::scene::Scene;

/// The frames' type and, of IP, the protocol.
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
fn only_what_enters() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Ingress);
    scene.traffic();
    captures.same(&scene, |frame| frame.way == Way::In);
}

#[test]
fn only_what_leaves() {
    let mut scene = Scene::new();
    let captures = scene.tap_to_far(Direction::Egress);
    scene.traffic();
    captures.same(&scene, |frame| frame.way == Way::Out);
}

/// Full-size frames do not fit into the tunnel: those of TCP become two, and the kernel sends each of the others as two fragments,
/// which the receiver's joins.
#[test]
fn an_underlay_of_the_pods_own_mtu() {
    let mut scene = Scene::with_underlay(1500);
    let captures = scene.tap_to_far(Direction::Both);
    scene.traffic();
    let is_tcp = |frame: &Frame| match frame.bytes[12..14] {
        [8, 0] => frame.bytes[23] == 6,
        [0x86, 0xdd] => frame.bytes[20] == 6,
        _ => false,
    };
    until("every byte of TCP and every other frame arrives", Duration::from_secs(10), || {
        let (sent, received) = (captures.pod.so_far(), captures.receiver.so_far());
        let long = received.iter().filter(|frame| is_tcp(frame) && frame.bytes.len() > 1464).count();
        let others = |frames: &[Frame]| frames.iter().filter(|frame| !is_tcp(frame)).cloned().collect::<Vec<_>>();
        let difference = Difference::between(&others(&sent), &others(&received));
        let (sent, received) = (streams(&sent), streams(&received));
        if long == 0 && difference.is_none() && sent == received && sent.len() == 4 {
            return Ok(());
        }
        Err(format!("{long} that are too long\n{difference}\n{sent:?}\n{received:?}"))
    });
}

/// With offloads, the tunnel and the receiver cut the superframes: frames differ, the bytes of each stream must not.
///
/// Without room for the tunnel's headers each of the cut frames is fragmented, too, and under such a load the receiving kernel now
/// and then gives up a datagram of which the parts are more than `ipfrag_max_dist` apart (`ip_frag_too_far`).
#[test]
fn superframes() {
    let mut scene = Scene::new().with_offloads();
    let captures = scene.tap_to_far(Direction::Both);
    traffic::tcp(&scene.client, scene.web.network(), scene.web.addresses[0], 4 << 20);
    assert!(captures.pod.count(|frame| frame.bytes.len() > 1514) > 0, "there are superframes");
    until("every byte of both streams arrives", Duration::from_secs(10), || {
        let (sent, received) = (streams(&captures.pod.so_far()), streams(&captures.receiver.so_far()));
        if sent == received && sent.len() == 2 { Ok(()) } else { Err(format!("{sent:?}\n{received:?}")) }
    });
}

/// For each direction of TCP over IPv4, by its ports, the ranges of sequence numbers that carry data, joined.
pub fn streams(frames: &[Frame]) -> BTreeMap<Vec<u8>, Vec<(u32, u32)>> {
    let mut found: BTreeMap<Vec<u8>, Vec<(u32, u32)>> = BTreeMap::new();
    for bytes in frames.iter().map(|frame| &frame.bytes).filter(|bytes| bytes[12..14] == [8, 0] && bytes[23] == 6) {
        let header = 34 + usize::from(bytes[46] >> 4) * 4;
        // Small frames are padded; large ones may say 0 for their length.
        let total = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        let end = if total == 0 { bytes.len() } else { 14 + total };
        let first = u32::from_be_bytes([bytes[38], bytes[39], bytes[40], bytes[41]]);
        let data = u32::try_from(end - header).expect("a frame is short");
        if data > 0 {
            found.entry(bytes[34..38].to_vec()).or_default().push((first, first.wrapping_add(data)));
        }
    }
    for ranges in found.values_mut() {
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (start, end) in ranges.drain(..) {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        *ranges = joined;
    }
    found
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
