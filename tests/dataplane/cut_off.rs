//! What arrives of a connection that is cut off.

use std::{collections::BTreeMap, time::Duration};

use podtap_model::Direction;
use podtap_tests::{capture::Frame, net::traffic, streams::Content, wait::until};
use serde_json::json;

use crate::scene::{Captures, Scene, TAP, VNI, desired, options, receiver, remote_endpoint, sender};

const LIMIT: usize = 64 << 10;
/// The longest GSO packet, which may cross the limit.
const GSO: usize = 64 << 10;
const SIZE: usize = 20_000_000;

/// The flow of a TCP frame, and the sequence number behind its payload, if it ends the flow.
fn end(frame: &Frame) -> Option<(Vec<u8>, u32)> {
    let bytes = &frame.bytes;
    let (addresses, tcp, end) = match bytes.get(12..14)? {
        [8, 0] => (26..34, 34, 14 + usize::from(u16::from_be_bytes([bytes[16], bytes[17]]))),
        _ => (22..54, 54, 54 + usize::from(u16::from_be_bytes([bytes[18], bytes[19]]))),
    };
    let header = bytes.get(tcp..tcp + 20)?;
    let length = end - tcp - usize::from(header[12] >> 4) * 4;
    let sequence = u32::from_be_bytes(*header[4..].first_chunk()?);
    let behind = sequence.wrapping_add(u32::try_from(length).ok()?);
    (header[13] & 1 != 0).then(|| ([&bytes[addresses], &header[..4]].concat(), behind))
}

/// Its beginning in both directions, its end, and from the sequence numbers, how long it was. The rest is counted.
#[test]
fn the_beginning_the_end_and_the_length_of_a_connection_arrive() {
    let mut scene = Scene::new().with_offloads();
    scene.remote_agent.establish(&desired(vec![], vec![receiver(TAP, VNI, "mirror0")]));
    let mut sender = sender(TAP, &scene.web, Direction::Both, &[remote_endpoint(VNI)]);
    sender.tap.options = options(json!({"limit": {"bytesPerFlow": "64Ki"}}));
    scene.agent.establish(&desired(vec![sender], vec![]));
    for (number, address) in (1..).zip(scene.web.addresses.clone()) {
        let captures = Captures::start(&scene.web, scene.remote.network(), "mirror0");
        traffic::tcp(&scene.client, scene.web.network(), address, SIZE);
        let ends = until("both directions end", Duration::from_secs(10), || {
            let ends: BTreeMap<Vec<u8>, u32> = captures.receiver.so_far().iter().filter_map(end).collect();
            if ends.len() == 2 { Ok(ends) } else { Err(format!("{ends:?}")) }
        });
        let (sent, received) = (Content::of(&captures.pod.stop()), captures.receiver.stop());
        let headers = received.iter().filter(|frame| frame.bytes.len() < 100).count();
        let arrived: usize = received.iter().map(|frame| frame.bytes.len()).sum();
        // Each segment of a GSO packet has headers.
        assert!(arrived < 2 * (LIMIT + GSO) * 11 / 10 + 100 * headers, "{arrived} bytes, {headers} headers");
        let received = Content::of(&received);
        assert_eq!((sent.streams.len(), received.streams.len()), (2, 2));
        for (flow, stream) in &received.streams {
            let all = &sent.streams[flow];
            assert_eq!((all.bytes.len(), stream.first), (SIZE, all.first));
            let length = stream.bytes.len();
            assert!(stream.is_whole() && (LIMIT..=LIMIT + GSO).contains(&length), "{length} bytes");
            assert!(stream.bytes == all.bytes[..length], "its first bytes");
            assert_eq!(ends[flow].wrapping_sub(stream.first) as usize, SIZE, "by the sequence numbers");
        }
        println!("{headers} frames without payload");
        let mut response = scene.agent.counters(number);
        let counted = response.senders.remove(0);
        for direction in [counted.ingress, counted.egress].map(|direction| direction.expect("both are mirrored")) {
            // A GSO packet of which only the header arrives counts whole.
            let rest = SIZE - LIMIT - GSO - headers * GSO;
            assert!(direction.cut_off.bytes > rest as u64 * number, "{direction:?}");
        }
    }
}
