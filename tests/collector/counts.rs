//! Bytes of payload, as both ends counted them.

use std::{fs, net::IpAddr, path::Path as File};

use podtap_tests::pcap;
use serde_json::Value;

use crate::{
    network::{Path, Recording, SERVER_PORT, address, servers},
    read,
};

/// Response sizes: some are one segment, some are GSO packets, one is far beyond a window.
const SIZES: [u32; 8] = [0, 1, 1000, 1460, 1461, 70_000, 1_000_000, 20_000_000];

/// Frames, octets, payload, missing payload of the responses, in the order of their sizes.
fn responses(file: &File) -> Vec<(u64, u64)> {
    let server = IpAddr::from(servers()[0]);
    let number = |flow: &Value, key: &str| flow[key].as_u64().unwrap_or_else(|| panic!("{key} of {flow}"));
    let flows = read::flows(file, None);
    let from_server = flows.iter().filter(|flow| address(&flow["SrcAddr"]) == server && flow["SrcPort"] == SERVER_PORT);
    let mut found: Vec<_> =
        from_server.map(|flow| (number(flow, "PayloadBytes"), number(flow, "MirrorMissingBytes"))).collect();
    found.sort_unstable();
    let is_complete = |flow: &Value| flow["DstPort"] != SERVER_PORT || flow["ConnId"].is_string();
    assert!(flows.iter().all(is_complete), "{flows:?}");
    found
}

#[test]
fn payload_is_counted_to_the_byte_whatever_of_it_is_captured() {
    let path = Path::new();
    path.serve();
    // As a tap with headersOnly: Ethernet, IP and TCP headers with time stamps.
    let recordings = [0, 66].map(|length| Recording::start(&path.client, "counts", length));
    for size in SIZES {
        path.request((servers()[0], SERVER_PORT), size);
    }
    let [whole, truncated] = recordings.map(|recording| recording.end(&path));
    // The server's address comes first.
    let expected: Vec<(u64, u64)> = SIZES.iter().map(|size| (u64::from(*size) + 4, 0)).collect();
    assert_eq!(responses(&whole), expected);
    assert_eq!(responses(&truncated), expected);

    // Without each fifth frame, the bytes are the same, and those of these frames are missing. A FIN that is lost counts as a byte.
    let frames = fs::read(&whole).expect("it was written");
    let lossy = whole.with_extension("lossy.pcap");
    fs::write(&lossy, without_each_fifth(&frames)).expect("it can be written");
    let found = responses(&lossy);
    assert_eq!(found.len(), expected.len());
    for ((bytes, _), (expected, _)) in found.iter().zip(&expected) {
        assert!(bytes.abs_diff(*expected) <= 1, "{found:?}");
    }
    assert!(found.last().is_some_and(|(_, missing)| *missing > 0), "{found:?}");
    for file in [whole, truncated, lossy] {
        fs::remove_file(file).expect("it exists");
    }
}

/// A file with four of five frames of another, and all with SYN.
fn without_each_fifth(file: &[u8]) -> Vec<u8> {
    const HEADER: usize = 24;
    let mut left = file[..HEADER].to_vec();
    let mut at = HEADER;
    for (number, frame) in pcap::frames(file).iter().enumerate() {
        let record = &file[at..at + 16 + frame.bytes.len()];
        let is_syn = frame.bytes.get(23) == Some(&6) && frame.bytes.get(47).is_some_and(|flags| flags & 2 != 0);
        if number % 5 != 4 || is_syn {
            left.extend_from_slice(record);
        }
        at += record.len();
    }
    left
}
