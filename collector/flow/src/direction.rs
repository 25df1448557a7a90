//! One direction of a flow.

use std::{net::IpAddr, num::NonZeroU32};

use crate::{
    packet::{Datagram, Flags, Packet, Segment, Transport},
    record::{Counts, StreamTotals},
    stream::Stream,
};

/// The last frames of a direction that are remembered.
const REMEMBERED: usize = 4;

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    /// Since the last record, as in [`Counts`].
    pub frames: u64,
    pub octets: u64,
    /// Not of TCP: see `stream`.
    pub payload: u64,
    pub stream: Stream,
    /// Bytes of it in earlier records.
    pub reported: u64,
    /// The latest acknowledgment, relative to the first one.
    acknowledged: Option<u32>,
    /// A hash of the MAC addresses of the frames that are counted: a frame that two tapped pods mirror comes with other ones.
    view: Option<NonZeroU32>,
    /// Of the last frames.
    fingerprints: [u32; REMEMBERED],
    pub ttl: u8,
    /// TCP flags since the last record, and of earlier ones.
    pub flags: u8,
    pub earlier_flags: u8,
    pub has_frames: bool,
}

impl Direction {
    /// Counts since the last record.
    pub fn news(&self) -> Counts {
        let payload = self.payload + self.stream.bytes().saturating_sub(self.reported);
        Counts { frames: self.frames, octets: self.octets, payload, flags: self.flags }
    }

    pub fn totals(&self) -> StreamTotals {
        StreamTotals { missing: self.stream.missing(), retransmitted: self.stream.retransmitted }
    }

    /// Whether the frame is another view of one that was counted.
    pub fn is_duplicate(&mut self, packet: &Packet<'_>) -> bool {
        let view = hash_words(&[
            word(&packet.source_mac[..4]),
            word(&packet.source_mac[4..]),
            word(&packet.destination_mac[..4]),
            word(&packet.destination_mac[4..]),
        ]);
        let fingerprint = fingerprint(packet).get();
        let repeated = self.fingerprints.contains(&fingerprint);
        self.fingerprints.rotate_right(1);
        self.fingerprints[0] = fingerprint;
        let counted = *self.view.get_or_insert(view);
        let is_news = match &packet.transport {
            Transport::Tcp(segment) => self.is_news(segment),
            _ => !repeated,
        };
        if counted != view {
            // The view that is ahead is the one that is counted.
            if is_news {
                self.view = Some(view);
            }
            return !is_news;
        }
        // Two pods of one bridge have the same addresses in their frames. Without an ID, a datagram may be sent twice; TCP has time stamps.
        let identifiable = packet.id != 0 || matches!(packet.transport, Transport::Tcp(_));
        repeated && identifiable
    }

    /// Whether a segment has payload, an acknowledgment or a flag that was not seen yet.
    fn is_news(&mut self, segment: &Segment<'_>) -> bool {
        let acknowledged =
            self.acknowledged.is_none_or(|last| segment.acknowledgment.wrapping_sub(last).cast_signed() > 0);
        if segment.flags.has(Flags::ACK) && acknowledged {
            self.acknowledged = Some(segment.acknowledgment);
        }
        let flags = segment.flags.0 & (Flags::SYN | Flags::FIN | Flags::RST);
        segment.flags.has(Flags::ACK) && acknowledged
            || flags & !(self.flags | self.earlier_flags) != 0
            || self.stream.is_ahead(segment)
    }
}

/// Of what tells packets of a direction apart, and is the same before and after address translation. That changes the checksum of TCP, too,
/// but views of TCP do not depend on fingerprints.
fn fingerprint(packet: &Packet<'_>) -> NonZeroU32 {
    let (a, b) = match &packet.transport {
        Transport::Tcp(segment) => {
            (segment.sequence ^ segment.acknowledgment.rotate_left(16), u32::from(segment.checksum))
        }
        Transport::Udp(datagram) => (datagram.length, payload_sum(packet, datagram).into()),
        Transport::Icmp(icmp) => (u32::from(icmp.kind) << 8 | u32::from(icmp.code), 0),
        Transport::Sctp(..) | Transport::Other => (packet.fragment_offset.into(), 0),
    };
    hash_words(&[packet.id, a, b, u32::try_from(packet.octets).unwrap_or(u32::MAX)])
}

/// The checksum of a datagram without its addresses and ports, in one's complement (RFC 1624). Zero if it has none.
fn payload_sum(packet: &Packet<'_>, datagram: &Datagram<'_>) -> u16 {
    if datagram.checksum == 0 {
        return 0;
    }
    let ports = u32::from(datagram.source_port) + u32::from(datagram.destination_port);
    // The checksum is the complement of a sum: what is added to it is subtracted from that.
    let sum = u32::from(datagram.checksum) + pairs(packet.source) + pairs(packet.destination) + ports;
    let folded = (sum >> 16) + (sum & 0xffff);
    let folded = (folded >> 16) + (folded & 0xffff);
    // Zero has two forms.
    u16::try_from(folded).unwrap_or_default() % 0xffff
}

/// The sum of an address's pairs of bytes.
fn pairs(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => (address.to_bits() >> 16) + (address.to_bits() & 0xffff),
        IpAddr::V6(address) => address.segments().into_iter().map(u32::from).sum(),
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// FNV-1a, by words. Zero is what an unused place has.
fn hash_words(words: &[u32]) -> NonZeroU32 {
    let hash = words.iter().fold(0x811c_9dc5_u32, |hash, word| (hash ^ word).wrapping_mul(0x0100_0193).rotate_left(7));
    NonZeroU32::new(hash).unwrap_or(NonZeroU32::MIN)
}
