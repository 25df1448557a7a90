//! A frame, parsed as far as flows need it.

mod network;

use std::net::IpAddr;

use self::network::Network;
use crate::record::Endpoint;

pub use self::network::{DESTINATION, FRAGMENT, HOP_BY_HOP, IPV4, IPV6, ROUTING, VLAN};

/// IP protocol numbers (IANA).
pub const ICMP: u8 = 1;
/// Transmission Control Protocol
pub const TCP: u8 = 6;
/// User Datagram Protocol
pub const UDP: u8 = 17;
/// ICMP for IPv6
pub const ICMPV6: u8 = 58;
/// Stream Control Transmission Protocol
pub const SCTP: u8 = 132;

/// A MAC address.
pub type Mac = [u8; 6];

/// A parsed IP packet. The frame may be truncated: lengths are those in its headers.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    /// Source of the Ethernet header.
    pub source_mac: Mac,
    /// Destination of the Ethernet header.
    pub destination_mac: Mac,
    /// Source of the IP header.
    pub source: IpAddr,
    /// Destination of the IP header.
    pub destination: IpAddr,
    /// IP protocol number of what follows the IP header.
    pub protocol: u8,
    /// Octets of the IP packet, with its header.
    pub octets: u64,
    /// TTL, or hop limit.
    pub ttl: u8,
    /// Of the IPv4 header, or of the fragment header of IPv6.
    pub id: u32,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    /// What follows the IP header.
    pub transport: Transport<'a>,
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// A whole packet.
    No,
    /// The one with the transport header.
    First,
    /// One without a transport header.
    Later,
}

/// What follows the IP header.
#[derive(Clone, Debug)]
pub enum Transport<'a> {
    /// TCP.
    Tcp(Segment<'a>),
    /// UDP.
    Udp(Datagram<'a>),
    /// SCTP: source and destination port.
    Sctp(u16, u16),
    /// ICMP, or ICMPv6.
    Icmp(Icmp<'a>),
    /// Another protocol, a later fragment, or a transport header that is cut off.
    Other,
}

/// A TCP segment, or a GSO packet of several.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number of the first byte of payload, or of the SYN.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Flags.
    pub flags: Flags,
    /// Checksum: with the ID, it tells packets apart.
    pub checksum: u16,
    /// Bytes of payload, also of what is truncated.
    pub length: u32,
    /// The payload, as far as it is here.
    pub payload: &'a [u8],
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Checksum: with the ID, it tells packets apart.
    pub checksum: u16,
    /// Bytes of payload, also of later fragments and of what is truncated.
    pub length: u32,
    /// The payload, as far as it is here.
    pub payload: &'a [u8],
}

/// An ICMP message.
#[derive(Clone, Copy, Debug)]
pub struct Icmp<'a> {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// What an error quotes: the start of the packet that it is about.
    pub quoted: &'a [u8],
}

/// TCP flags, as in the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// The sender closes its direction.
    pub const FIN: u8 = 1;
    /// The first segment of each direction.
    pub const SYN: u8 = 2;
    /// The sender ends the connection.
    pub const RST: u8 = 4;
    /// The acknowledgment number is valid.
    pub const ACK: u8 = 16;

    /// Whether one of these flags is set.
    #[must_use]
    pub const fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }
}

/// Parses a frame of `length` bytes on the wire, of which the first are in `frame`. `None`: it carries no IP packet.
#[must_use]
pub fn parse(frame: &[u8], length: u32) -> Option<Packet<'_>> {
    let ethernet = frame.get(..12)?;
    let ip = network::behind_ethernet(frame)?;
    let link = u64::try_from(frame.len() - ip.len()).ok()?;
    let mut packet = packet(Network::parse(ip)?, u64::from(length).saturating_sub(link))?;
    packet.destination_mac.copy_from_slice(&ethernet[..6]);
    packet.source_mac.copy_from_slice(&ethernet[6..]);
    Some(packet)
}

/// The tuple of a packet that an ICMP error quotes: its IP header and at least 8 bytes of its transport header (RFC 792, RFC 4443).
#[must_use]
pub fn parse_quoted(quoted: &[u8]) -> Option<(u8, Endpoint, Endpoint)> {
    let ip = Network::parse(quoted)?;
    // A TCP header may be cut off after the ports.
    let from = Endpoint { address: ip.source, port: word(ip.payload, 0)? };
    Some((ip.protocol, from, Endpoint { address: ip.destination, port: word(ip.payload, 2)? }))
}

/// `at_most`: octets of the IP packet by the length of the frame, for packets that do not state their length.
fn packet(ip: Network<'_>, at_most: u64) -> Option<Packet<'_>> {
    let octets = ip.octets.unwrap_or(at_most);
    // Of the transport header and what follows.
    let length = u32::try_from(octets.saturating_sub(ip.header)).ok()?;
    let transport = match ip.fragment {
        Fragment::Later => Transport::Other,
        Fragment::No | Fragment::First => transport(ip.protocol, ip.payload, length),
    };
    Some(Packet {
        source_mac: Mac::default(),
        destination_mac: Mac::default(),
        source: ip.source,
        destination: ip.destination,
        protocol: ip.protocol,
        octets,
        ttl: ip.ttl,
        id: ip.id,
        fragment: ip.fragment,
        fragment_offset: ip.fragment_offset,
        transport,
    })
}

/// A transport header and what follows, either of which may be cut off.
fn transport(protocol: u8, bytes: &[u8], length: u32) -> Transport<'_> {
    let parsed = match protocol {
        TCP => tcp(bytes, length).map(Transport::Tcp),
        UDP => udp(bytes, length).map(Transport::Udp),
        SCTP => word(bytes, 0).zip(word(bytes, 2)).map(|(from, to)| Transport::Sctp(from, to)),
        // Destination unreachable, but for packets that are too long.
        ICMP => icmp(bytes, |kind, code| kind == 3 && code != 4).map(Transport::Icmp),
        ICMPV6 => icmp(bytes, |kind, _| kind == 1).map(Transport::Icmp),
        _ => None,
    };
    parsed.unwrap_or(Transport::Other)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// RFC 9293, 3.1. The header may be cut off after the flags.
fn tcp(bytes: &[u8], length: u32) -> Option<Segment<'_>> {
    let number = |at: usize| Some(u32::from(word(bytes, at)?) << 16 | u32::from(word(bytes, at + 2)?));
    let header = u32::from(bytes.get(12)? >> 4) * 4;
    let length = length.saturating_sub(header);
    Some(Segment {
        source_port: word(bytes, 0)?,
        destination_port: word(bytes, 2)?,
        sequence: number(4)?,
        acknowledgment: number(8)?,
        flags: Flags(*bytes.get(13)?),
        checksum: word(bytes, 16).unwrap_or_default(),
        length,
        payload: within(bytes.get(header as usize..).unwrap_or_default(), length),
    })
}

/// RFC 768.
fn udp(bytes: &[u8], length: u32) -> Option<Datagram<'_>> {
    // Zero in jumbograms and in GSO packets; more than `length` in a first fragment.
    let stated = u32::from(word(bytes, 4)?);
    let length = if stated == 0 { length } else { stated }.saturating_sub(8);
    Some(Datagram {
        source_port: word(bytes, 0)?,
        destination_port: word(bytes, 2)?,
        checksum: word(bytes, 6)?,
        length,
        payload: within(&bytes[8..], length),
    })
}

/// RFC 792, RFC 4443.
fn icmp(bytes: &[u8], is_error: impl Fn(u8, u8) -> bool) -> Option<Icmp<'_>> {
    let (kind, code) = (*bytes.first()?, *bytes.get(1)?);
    let quoted = if is_error(kind, code) { bytes.get(8..).unwrap_or_default() } else { &[] };
    Some(Icmp { kind, code, quoted })
}

/// Without the padding of short frames.
fn within(payload: &[u8], length: u32) -> &[u8] {
    payload.get(..length as usize).unwrap_or(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{Tcp, udp};

    proptest! {
        #[test]
        fn any_bytes_are_parsed(bytes in prop::collection::vec(any::<u8>(), 0..200), length: u32) {
            let _ = parse(&bytes, length);
            let _ = parse_quoted(&bytes);
            let _ = crate::dns::parse(&bytes);
        }

        /// Nearly valid frames reach more of the parser.
        #[test]
        fn any_change_to_a_frame_is_parsed(
            is_tcp: bool,
            changes in prop::collection::vec((12_usize..80, any::<u8>()), 1..6),
            cut in 0_usize..120,
            length: u32,
        ) {
            let mut frame = if is_tcp {
                Tcp::new((2, 1), (3, 2), "A").payload(40).frame()
            } else {
                udp((2, 1), (3, 53), &[0; 40])
            };
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            frame.truncate(cut);
            if let Some(Transport::Tcp(segment)) = parse(&frame, length).map(|packet| packet.transport) {
                prop_assert!(segment.payload.len() <= segment.length as usize);
            }
        }
    }

    #[test]
    fn lengths_are_those_of_the_headers() {
        let frame = Tcp::new((2, 1), (3, 2), "A").payload(1000).frame();
        // As a tap with headersOnly leaves it.
        let packet = parse(&frame[..54], 54).expect("an IP packet");
        let Transport::Tcp(segment) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((packet.octets, segment.length, segment.payload.len()), (1040, 1000, 0));
        // BIG TCP: a packet that is too long for the field.
        let mut big = frame;
        big[16..18].copy_from_slice(&[0, 0]);
        let packet = parse(&big, 100_054).expect("an IP packet");
        let Transport::Tcp(segment) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((packet.octets, segment.length), (100_040, 100_000));
    }

    #[test]
    fn a_header_may_be_cut_off_after_its_flags() {
        let frame = Tcp::new((2, 1), (3, 2), "S").at(7, 0).frame();
        let packet = parse(&frame[..48], 54).expect("an IP packet");
        let Transport::Tcp(segment) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((segment.sequence, segment.flags, segment.length), (7, Flags(Flags::SYN), 0));
    }

    #[test]
    fn padding_is_no_payload() {
        let mut frame = Tcp::new((2, 1), (3, 2), "A").frame();
        frame.resize(60, 0);
        let packet = parse(&frame, 60).expect("an IP packet");
        let Transport::Tcp(segment) = packet.transport else { panic!("{packet:?}") };
        assert_eq!((packet.octets, segment.length, segment.payload.len()), (40, 0, 0));
    }
}
