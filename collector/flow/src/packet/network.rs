//! Ethernet and IP headers, of frames that may be truncated anywhere.
//!
//! Not by a library: etherparse 0.21, the only one that parses truncated packets, reads beyond the end of a frame whose IPv6 extension
//! headers are cut off (`Ipv6ExtensionSliceIter`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Fragment;
use crate::reader::Reader;

/// EtherType of IPv4 (IANA).
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6 (IANA).
pub const IPV6: u16 = 0x86dd;
/// EtherType of each kind of VLAN tag: IEEE 802.1Q, 802.1ad, and what switches used before that.
pub const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// VLAN tags of a frame.
const MOST_TAGS: usize = 4;

/// Next headers that are extension headers (IANA, "IPv6 Extension Header Types"): hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header
pub const ROUTING: u8 = 43;
/// Fragment header
pub const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// Destination options
pub const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;
/// Extension headers of a packet.
const MOST_EXTENSIONS: usize = 16;

/// An IP header with its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Network<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Of what follows.
    pub protocol: u8,
    /// Of the whole packet. `None`: it is longer than the field can say (BIG TCP).
    pub octets: Option<u64>,
    /// Bytes of the header and its extensions.
    pub header: u64,
    pub ttl: u8,
    pub id: u32,
    pub fragment: Fragment,
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    /// What follows, as far as it is here, without padding of the frame.
    pub payload: &'a [u8],
}

/// What follows the Ethernet header and VLAN tags, if that is IP.
pub fn behind_ethernet(frame: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(frame);
    reader.take(12)?;
    for _ in 0..=MOST_TAGS {
        let ether_type = reader.word()?;
        if ether_type == IPV4 || ether_type == IPV6 {
            return Some(reader.0);
        }
        if !VLAN.contains(&ether_type) {
            return None;
        }
        reader.word()?;
    }
    None
}

impl<'a> Network<'a> {
    /// `None`: this is no IP packet, or its header is cut off.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::v4(packet),
            6 => Self::v6(packet),
            _ => None,
        }
    }

    fn v4(packet: &'a [u8]) -> Option<Self> {
        let fixed: &[u8; 20] = packet.first_chunk()?;
        let header = 4 * usize::from(fixed[0] & 0xf);
        let total = usize::from(word(fixed, 2));
        if header < fixed.len() {
            return None;
        }
        let fragment = word(fixed, 6);
        let fragment_offset = fragment & 0x1fff;
        let address = |at: usize| Ipv4Addr::from([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        // Zero in GSO packets that are longer than the field can say.
        let octets = (total >= header).then_some(total as u64);
        let end = if total >= header { total.min(packet.len()) } else { packet.len() };
        Some(Self {
            source: address(12).into(),
            destination: address(16).into(),
            protocol: fixed[9],
            octets,
            header: header as u64,
            ttl: fixed[8],
            id: word(fixed, 4).into(),
            fragment: kind(fragment & 0x2000 != 0, fragment_offset),
            fragment_offset,
            payload: packet.get(header..end).unwrap_or_default(),
        })
    }

    fn v6(packet: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = packet.split_first_chunk::<40>()?;
        let length = usize::from(word(fixed, 4));
        let address = |at: usize| {
            let octets: Option<&[u8; 16]> = fixed[at..].first_chunk();
            octets.map(|octets| Ipv6Addr::from(*octets))
        };
        let payload = if length == 0 { rest } else { rest.get(..length).unwrap_or(rest) };
        let mut network = Self {
            source: address(8)?.into(),
            destination: address(24)?.into(),
            protocol: fixed[6],
            octets: (length > 0).then_some(length as u64 + 40),
            header: 40,
            ttl: fixed[7],
            id: 0,
            fragment: Fragment::No,
            fragment_offset: 0,
            payload,
        };
        for _ in 0..MOST_EXTENSIONS {
            if network.skip_extension().is_none() {
                break;
            }
        }
        Some(network)
    }

    /// `None`: what follows is no extension header, or one that is cut off.
    fn skip_extension(&mut self) -> Option<()> {
        let start = self.payload.first_chunk::<8>().filter(|_| self.fragment != Fragment::Later)?;
        let length = match self.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => 8 * (usize::from(start[1]) + 1),
            AUTHENTICATION => 4 * (usize::from(start[1]) + 2),
            FRAGMENT => 8,
            _ => return None,
        };
        let payload = self.payload.get(length..)?;
        if self.protocol == FRAGMENT {
            let fragment = word(start, 2);
            self.fragment_offset = fragment >> 3;
            self.fragment = kind(fragment & 1 != 0, self.fragment_offset);
            self.id = u32::from_be_bytes([start[4], start[5], start[6], start[7]]);
        }
        self.protocol = start[0];
        self.header += length as u64;
        self.payload = payload;
        Some(())
    }
}

/// Two bytes of a header, in network byte order.
fn word<const LENGTH: usize>(header: &[u8; LENGTH], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

/// By the flag "more fragments" and the offset.
fn kind(has_more: bool, offset: u16) -> Fragment {
    match (has_more, offset) {
        (false, 0) => Fragment::No,
        (true, 0) => Fragment::First,
        (_, _) => Fragment::Later,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{IpSlice, SlicedPacket};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// An IPv6 packet with these extension headers, and what follows.
    fn with_extensions(extensions: &[(u8, Vec<u8>)], payload: &[u8]) -> Vec<u8> {
        let length: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() + payload.len();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(length).expect("short").to_be_bytes());
        packet.extend([extensions.first().map_or(17, |(kind, _)| *kind), 64]);
        packet.extend([[1; 16], [2; 16]].concat());
        let next = extensions.iter().skip(1).map(|(kind, _)| *kind).chain([17]);
        for ((_, bytes), next) in extensions.iter().zip(next) {
            packet.push(next);
            packet.extend(&bytes[1..]);
        }
        packet.extend(payload);
        packet
    }

    fn extension() -> impl Strategy<Value = (u8, Vec<u8>)> {
        let options = (prop_oneof![Just(DESTINATION), Just(ROUTING)], 0..4_u8, any::<u8>());
        let options = options.prop_map(|(kind, units, byte)| {
            let mut bytes = vec![byte; 8 * (usize::from(units) + 1)];
            bytes[1] = units;
            (kind, bytes)
        });
        let authentication = (1..5_u8).prop_map(|words| {
            let mut bytes = vec![7; 4 * (usize::from(words) + 2)];
            bytes[1] = words;
            (AUTHENTICATION, bytes)
        });
        let fragment = (any::<u16>(), any::<u32>()).prop_map(|(flags, id)| {
            let mut bytes = vec![0, 0];
            bytes.extend(flags.to_be_bytes());
            bytes.extend(id.to_be_bytes());
            (FRAGMENT, bytes)
        });
        prop_oneof![3 => options, 1 => authentication, 1 => fragment]
    }

    proptest! {
        /// etherparse is right about whole packets.
        #[test]
        fn ipv6_is_parsed_as_by_etherparse(extensions in vec(extension(), 0..4), payload in vec(any::<u8>(), 8..40)) {
            let packet = with_extensions(&extensions, &payload);
            // The others may not be repeated, for etherparse.
            let Ok(expected) = IpSlice::from_slice(&packet) else { return Ok(()) };
            let found = Network::parse(&packet).expect("an IP packet");
            prop_assert_eq!(found.source, expected.source_addr());
            // What follows the header of a later fragment is payload (RFC 8200), also if it looks like an extension header.
            if found.fragment != Fragment::Later {
                prop_assert_eq!(found.payload, expected.payload().payload);
                prop_assert_eq!(found.protocol, expected.payload_ip_number().0);
            }
            prop_assert_eq!(found.fragment != Fragment::No, expected.is_fragmenting_payload());
            prop_assert_eq!(found.header, (packet.len() - found.payload.len()) as u64);
            // Cut off anywhere, it is never more than it was.
            for length in 0..packet.len() {
                if let Some(part) = Network::parse(&packet[..length]) {
                    prop_assert!(part.payload.len() <= length - 40 && part.header <= found.header);
                }
            }
        }

        #[test]
        fn ipv4_is_parsed_as_by_etherparse(
            tags in 0..3_usize, words in 5..16_u8, flags in any::<u16>(), payload in vec(any::<u8>(), 0..40), padding in 0..20_usize
        ) {
            let header = 4 * usize::from(words);
            let mut packet = vec![0x40 | words, 0];
            packet.extend(u16::try_from(header + payload.len()).expect("short").to_be_bytes());
            packet.extend([1, 2]);
            packet.extend(flags.to_be_bytes());
            packet.extend([64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            packet.resize(header, 1);
            packet.extend(&payload);
            let mut frame = vec![2; 12];
            for _ in 0..tags {
                frame.extend([0x81, 0, 0, 5]);
            }
            frame.extend([8, 0]);
            frame.extend(&packet);
            frame.resize(frame.len() + padding, 0);
            let expected = SlicedPacket::from_ethernet(&frame).expect("a whole frame");
            let expected = expected.ip_payload().expect("an IP packet");
            let found = Network::parse(behind_ethernet(&frame).expect("IP")).expect("an IPv4 packet");
            prop_assert_eq!(found.payload, expected.payload);
            prop_assert_eq!(found.fragment != Fragment::No, expected.fragmented);
            prop_assert_eq!((found.header, found.octets), (header as u64, Some(packet.len() as u64)));
        }
    }
}
