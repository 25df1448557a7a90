//! What a tap sends besides mirrored frames: which pod they are of, and how the node translates its connections.
//!
//! It travels the path of mirrored frames, in frames of the EtherType of probes, so that a receiver outside of the cluster has it as well.
//! After the Ethernet header comes a header as probes have it (`tap-helper/bpf/probe.h`), and after that one JSON object.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{PodDetails, Uid};

/// Bytes of an Ethernet header without a VLAN tag.
const ETHERNET_HEADER: usize = 14;
/// Bytes of the UID of a tap or pod, as text and padded with zeroes.
const UID: usize = crate::bounds::MAX_UID;
/// Bytes of the header of probes: version, kind, length, four numbers, and two UIDs.
const HEADER: usize = 40 + 2 * UID;
/// Version of that header. The one of probes is 1: receivers that know nothing else drop these frames without a look at the rest.
const VERSION: u8 = 2;
/// Kind of the frames with metadata.
const METADATA: u8 = 2;
/// Longest frame with metadata.
pub const MAX_METADATA_FRAME: usize = 1200;
/// Destination of probes and of frames with metadata. Nearest bridge group address (IEEE 802.1Q, table 8-1): no bridge behind the receiver
/// forwards it.
pub const NEAREST_BRIDGE: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e];

/// One piece of metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Metadata {
    /// The node translates addresses of a connection of the pod.
    Translation(Translation),
    /// The pod whose frames are mirrored.
    Pod(PodMetadata),
}

/// A connection whose addresses or ports the node translates (`struct nf_conn`, `include/net/netfilter/nf_conntrack.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Translation {
    /// IP protocol number: TCP, UDP or SCTP.
    pub protocol: u8,
    /// The packets of the client, before anything is translated.
    pub original: Tuple,
    /// The packets of the server, before anything is translated.
    pub reply: Tuple,
    /// The conntrack zone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub zone: u16,
}

/// Addresses and ports of packets in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
}

/// Who a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodMetadata {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The MAC address of the tapped interface, as six pairs of hexadecimal digits with colons.
    pub mac: String,
    /// The tap that mirrors the pod, for example `PodTap shop/web` or `ClusterPodTap all`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tap: String,
    /// What else is known of it.
    #[serde(flatten)]
    pub details: PodDetails,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(zone: &u16) -> bool {
    *zone == 0
}

/// A frame with metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataFrame {
    /// UID of the tap.
    pub tap: Uid,
    /// UID of the pod.
    pub pod: Uid,
    /// What it tells.
    pub metadata: Metadata,
}

impl MetadataFrame {
    /// The frame, from the MAC address of the pod's interface. None if it would be too long, as with the longest names.
    #[must_use]
    pub fn encode(&self, source: [u8; 6], ether_type: u16) -> Option<Vec<u8>> {
        let json = serde_json::to_vec(&self.metadata).ok()?;
        let length = ETHERNET_HEADER + HEADER + json.len();
        if length > MAX_METADATA_FRAME {
            return None;
        }
        let mut frame = Vec::with_capacity(length);
        frame.extend(NEAREST_BRIDGE);
        frame.extend(source);
        frame.extend(ether_type.to_be_bytes());
        frame.extend([VERSION, METADATA]);
        frame.extend(u16::try_from(length).ok()?.to_be_bytes());
        // Sequence number, time and counters are those of probes.
        frame.resize(ETHERNET_HEADER + 40, 0);
        for uid in [&self.tap, &self.pod] {
            let end = frame.len() + UID;
            frame.extend(uid.as_bytes());
            frame.resize(end, 0);
        }
        frame.extend(json);
        Some(frame)
    }

    /// The metadata of a frame; none if it has another EtherType, or is a probe or malformed. Never panics.
    #[must_use]
    pub fn decode(frame: &[u8], ether_type: u16) -> Option<Self> {
        let (ethernet, rest) = frame.split_at_checked(ETHERNET_HEADER)?;
        if ethernet[..6] != NEAREST_BRIDGE || ethernet[12..14] != ether_type.to_be_bytes() {
            return None;
        }
        let (header, rest) = rest.split_at_checked(HEADER)?;
        if header[..2] != [VERSION, METADATA] {
            return None;
        }
        // A receiver may see a longer one: short frames are padded.
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if length > MAX_METADATA_FRAME {
            return None;
        }
        let json = rest.get(..length.checked_sub(ETHERNET_HEADER + HEADER)?)?;
        let uid = |from: usize| {
            let text = header[from..from + UID].split(|byte| *byte == 0).next()?;
            std::str::from_utf8(text).ok()?.parse().ok()
        };
        Some(Self { tap: uid(40)?, pod: uid(40 + UID)?, metadata: serde_json::from_slice(json).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workload;

    const ETHER_TYPE: u16 = 0x88b5;

    fn translation() -> MetadataFrame {
        let address = |text: &str| text.parse().expect("an address");
        let tuple = |source, source_port, destination, destination_port| Tuple {
            source: address(source),
            source_port,
            destination: address(destination),
            destination_port,
        };
        MetadataFrame {
            tap: "5f0d6c1e-0000-4000-8000-000000000001".parse().expect("a UID"),
            pod: "5f0d6c1e-0000-4000-8000-000000000002".parse().expect("a UID"),
            metadata: Metadata::Translation(Translation {
                protocol: 17,
                original: tuple("fd00:aaaa:bbbb:cccc:dddd:eeee:1111:2222", 54321, "fd00:aaaa:bbbb:cccc::a", 53),
                reply: tuple("fd00:aaaa:bbbb:cccc::1", 5353, "fd00:aaaa:bbbb:cccc:dddd:eeee:1111:2222", 54321),
                zone: 7,
            }),
        }
    }

    #[test]
    fn a_frame_has_what_it_was_made_from() {
        let pod = MetadataFrame {
            metadata: Metadata::Pod(PodMetadata {
                namespace: "n".repeat(63),
                name: "p".repeat(253),
                addresses: ["10.0.0.1", "fd00::1"].map(|text| text.parse().expect("an address")).into(),
                mac: "02:00:00:00:00:01".into(),
                tap: "PodTap shop/web".into(),
                details: PodDetails {
                    node: Some("n1".into()),
                    workload: Some(Workload {
                        kind: "Deployment".into(),
                        name: "web".into(),
                        api_version: "apps/v1".into(),
                    }),
                    labels: [("app".to_owned(), "web".to_owned())].into(),
                },
            }),
            ..translation()
        };
        for sent in [translation(), pod] {
            let mut frame = sent.encode([2, 0, 0, 0, 0, 1], ETHER_TYPE).expect("it is not too long");
            assert_eq!((&frame[6..12], &frame[12..16]), (&[2, 0, 0, 0, 0, 1][..], &[0x88, 0xb5, 2, 2][..]));
            assert_eq!(MetadataFrame::decode(&frame, ETHER_TYPE).as_ref(), Some(&sent));
            assert_eq!(MetadataFrame::decode(&frame, 0x88b6), None);
            let mut longer = frame.clone();
            longer.resize(MAX_METADATA_FRAME + 1, b' ');
            longer[16..18].copy_from_slice(&u16::try_from(MAX_METADATA_FRAME + 1).expect("16 bits").to_be_bytes());
            assert_eq!(MetadataFrame::decode(&longer, ETHER_TYPE), None, "no tap sends one that is so long");
            frame.resize(1500, 0);
            assert_eq!(MetadataFrame::decode(&frame, ETHER_TYPE), Some(sent), "it was padded");
        }
        let long = MetadataFrame {
            metadata: Metadata::Pod(PodMetadata { namespace: "n".repeat(2000), ..PodMetadata::default() }),
            ..translation()
        };
        assert_eq!(long.encode([0; 6], ETHER_TYPE), None);
    }

    #[test]
    fn damaged_frames_are_none() {
        let frame = translation().encode([2, 0, 0, 0, 0, 1], ETHER_TYPE).expect("it is not too long");
        for length in 0..frame.len() {
            assert_eq!(MetadataFrame::decode(&frame[..length], ETHER_TYPE), None);
        }
        for index in 0..frame.len() {
            for bit in 0..8 {
                let mut damaged = frame.clone();
                damaged[index] ^= 1 << bit;
                // It may be valid still, as with another digit of a port.
                let _ = MetadataFrame::decode(&damaged, ETHER_TYPE);
            }
        }
    }
}
