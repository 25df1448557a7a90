//! Frames that no program has sent.

use std::net::Ipv4Addr;

/// An address and a port.
pub type End = (Ipv4Addr, u16);

/// TCP flags.
pub const SYN: u8 = 2;
/// See [`SYN`].
pub const ACK: u8 = 16;
/// See [`SYN`].
pub const FIN: u8 = 1;

/// Ethernet and IPv4 headers, and what follows. The MAC addresses are made of the IP addresses.
pub fn ip(from: Ipv4Addr, to: Ipv4Addr, ttl: u8, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(34 + rest.len());
    for address in [to, from] {
        frame.extend([2, 0]);
        frame.extend(address.octets());
    }
    let length = u16::try_from(20 + rest.len()).expect("it fits");
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0, 0, 0, ttl, protocol, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(rest);
    frame
}

/// A TCP segment.
pub fn tcp(from: End, to: End, flags: u8, (sequence, acknowledgment): (u32, u32), payload: &[u8]) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20 + payload.len());
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgment.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    ip(from.0, to.0, 64, 6, &segment)
}

/// A UDP datagram.
pub fn udp(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("it fits");
    let header = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
    ip(from.0, to.0, 64, 17, &[&header, payload].concat())
}

/// A connection with a request and a response, and its initial sequence numbers made of its ends.
pub fn connection(client: End, server: End) -> Vec<Vec<u8>> {
    let (mine, theirs) = (client.0.to_bits() ^ u32::from(client.1) << 8, server.0.to_bits() ^ u32::from(client.1) << 9);
    vec![
        tcp(client, server, SYN, (mine, 0), b""),
        tcp(server, client, SYN | ACK, (theirs, mine.wrapping_add(1)), b""),
        tcp(client, server, ACK, (mine.wrapping_add(1), theirs.wrapping_add(1)), b"request"),
        tcp(server, client, ACK, (theirs.wrapping_add(1), mine.wrapping_add(8)), b"response"),
        tcp(client, server, FIN | ACK, (mine.wrapping_add(8), theirs.wrapping_add(9)), b""),
        tcp(server, client, FIN | ACK, (theirs.wrapping_add(9), mine.wrapping_add(9)), b""),
        tcp(client, server, ACK, (mine.wrapping_add(9), theirs.wrapping_add(10)), b""),
    ]
}
