//! The headers of an IPv4 frame.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::Range};

use podtap_tests::capture::{Frame, FrameDirection};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// An unfragmented IPv4 packet without options; these tests send no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    pub protocol: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    /// Those of source and destination; zeros for ICMP.
    pub ports: [u16; 2],
}

impl Packet {
    pub fn of(frame: &[u8]) -> Option<Self> {
        let address = |at: usize| Some(Ipv4Addr::from(*frame.get(at..)?.first_chunk::<4>()?));
        let port = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        if frame.get(12..15)? != [8, 0, 0x45] {
            return None;
        }
        let protocol = *frame.get(23)?;
        let ports = if protocol == ICMP { [0, 0] } else { [port(34)?, port(36)?] };
        Some(Self { protocol, source: address(26)?, destination: address(30)?, ports })
    }

    /// Whether one of its ports is in the range.
    pub fn has_port(&self, range: Range<u16>) -> bool {
        self.ports.iter().any(|port| range.contains(port))
    }

    /// Address of the other side, seen from the pod at which the frame was captured.
    pub fn remote(&self, direction: FrameDirection) -> Ipv4Addr {
        if direction == FrameDirection::In { self.source } else { self.destination }
    }
}

/// How many times each number arrived at the start of a datagram to the port.
pub fn numbers(frames: &[Frame], port: u16) -> BTreeMap<u32, usize> {
    let number = |frame: &Frame| {
        let packet = Packet::of(&frame.bytes)?;
        let is_selected = packet.protocol == UDP && packet.ports[1] == port;
        frame.bytes.get(42..)?.first_chunk().filter(|_| is_selected).map(|bytes| u32::from_be_bytes(*bytes))
    };
    frames.iter().filter_map(number).fold(BTreeMap::new(), |mut times, number| {
        *times.entry(number).or_default() += 1;
        times
    })
}
