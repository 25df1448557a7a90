//! udpstr: a stream of packets over UDP, in datagrams up to one size, as ExtraHop's rpcapd sends it.
//!
//! A datagram begins with 8 bytes: the version 0, the type 110, the offset of the first packet header (0xffff: there is none), and the
//! datagram's number, from 0. A packet is its header and its frame, which may continue in the next datagrams; a header is never split. With
//! a datagram, only those packets are lost of which it has a part.

use super::rpcap::{HEADER, PACKET_HEADER};

const VERSION: u8 = 0;
const TYPE: u8 = 110;
/// No packet begins in the datagram.
const NO_PACKET: [u8; 2] = [0xff; 2];
/// With less room than this, a datagram is complete. Receivers may count on it.
const LEAST_ROOM: usize = HEADER + PACKET_HEADER;

/// What a datagram has parts of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Whether it begins with more of a packet.
    pub continues: bool,
    /// Packets that end in it.
    pub end: u64,
}

/// Counts packets whose parts were sent.
#[derive(Debug, Default)]
pub struct Tally {
    /// Whether the packet that continues has lost a part.
    is_broken: bool,
}

impl Tally {
    /// How many packets were sent with a datagram, and how many are lost.
    pub const fn count(&mut self, Parts { continues, end }: Parts, is_sent: bool) -> (u64, u64) {
        if !is_sent {
            self.is_broken = true;
            return (0, end);
        }
        let lost = if continues && end > 0 && self.is_broken { 1 } else { 0 };
        self.is_broken = self.is_broken && continues && end == 0;
        (end - lost, lost)
    }
}

/// Puts packets into datagrams.
#[derive(Debug)]
pub struct Packer {
    size: usize,
    number: u32,
    /// The one that is not complete. Empty: none is.
    datagram: Vec<u8>,
    parts: Parts,
}

impl Packer {
    /// Least and most bytes of a datagram.
    pub const LEAST: u16 = 64;
    pub const MOST: u16 = 65_507;

    /// For datagrams of at most so many bytes.
    pub fn new(size: u16) -> Self {
        let size = usize::from(size.max(Self::LEAST));
        Self { size, number: 0, datagram: Vec::with_capacity(size), parts: Parts::default() }
    }

    /// Adds a packet header and its frame, and passes on the datagrams that are complete.
    pub fn add(&mut self, packet: &[u8], mut send: impl FnMut(&[u8], Parts)) {
        let Some((header, mut frame)) = packet.split_at_checked(PACKET_HEADER) else { return };
        self.begin(false);
        if self.datagram[2..4] == NO_PACKET {
            let offset = u16::try_from(self.datagram.len()).unwrap_or(u16::MAX);
            self.datagram[2..4].copy_from_slice(&offset.to_be_bytes());
        }
        self.datagram.extend(header);
        loop {
            let (part, rest) = frame.split_at(frame.len().min(self.size - self.datagram.len()));
            self.datagram.extend(part);
            self.parts.end += u64::from(rest.is_empty());
            if self.size - self.datagram.len() < LEAST_ROOM {
                self.flush(&mut send);
            }
            if rest.is_empty() {
                return;
            }
            frame = rest;
            self.begin(true);
        }
    }

    /// Passes on a datagram that is not complete, if there is one.
    pub fn flush(&mut self, mut send: impl FnMut(&[u8], Parts)) {
        if !self.datagram.is_empty() {
            send(&self.datagram, self.parts);
            self.datagram.clear();
            self.number = self.number.wrapping_add(1);
        }
    }

    fn begin(&mut self, continues: bool) {
        if self.datagram.is_empty() {
            self.datagram.extend([VERSION, TYPE]);
            self.datagram.extend(NO_PACKET);
            self.datagram.extend(self.number.to_be_bytes());
            self.parts = Parts { continues, end: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use podtap_flow::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::sensor::rpcap;

    /// The datagrams of frames. A frame may be followed by a pause, in which all is sent.
    fn datagrams(size: u16, frames: &[(Vec<u8>, bool)]) -> Vec<(Vec<u8>, Parts)> {
        let (mut packer, mut sent) = (Packer::new(size), Vec::new());
        let mut take = |datagram: &[u8], parts| sent.push((datagram.to_vec(), parts));
        for (number, (frame, pause)) in (1..).zip(frames) {
            let mut message = Vec::new();
            rpcap::packet(Timestamp(0), u32::try_from(frame.len()).expect("short"), frame, number, &mut message);
            packer.add(&message[HEADER..], &mut take);
            if *pause {
                packer.flush(&mut take);
            }
        }
        packer.flush(&mut take);
        sent
    }

    /// What a receiver makes of datagrams that arrive in order: the numbers and frames of whole packets.
    fn receive<'a>(datagrams: impl IntoIterator<Item = &'a [u8]>) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8]| u32::from_be_bytes(*bytes.first_chunk().expect("four bytes"));
        let (mut packets, mut stream, mut expected) = (Vec::new(), Vec::new(), 0);
        for datagram in datagrams {
            let (header, bytes) = datagram.split_at(8);
            assert_eq!(header[..2], [0, 110]);
            let first = usize::from(u16::from_be_bytes([header[2], header[3]]));
            assert!(first == 0xffff || first >= 8);
            if word(&header[4..]) != expected {
                stream.clear();
                if first == 0xffff {
                    continue;
                }
                stream.extend(&datagram[first..]);
            } else if stream.is_empty() && first != 8 {
                // The rest of a packet that was lost.
                stream.extend(datagram.get(first..).unwrap_or_default());
            } else {
                stream.extend(bytes);
            }
            expected = word(&header[4..]).wrapping_add(1);
            while stream.len() >= PACKET_HEADER && stream.len() - PACKET_HEADER >= word(&stream[8..]) as usize {
                let rest = stream.split_off(PACKET_HEADER + word(&stream[8..]) as usize);
                packets.push((word(&stream[16..]), stream[PACKET_HEADER..].to_vec()));
                stream = rest;
            }
        }
        packets
    }

    fn frame(length: usize) -> (Vec<u8>, bool) {
        (vec![0xab; length], false)
    }

    fn parts(continues: bool, end: u64) -> Parts {
        Parts { continues, end }
    }

    #[test]
    fn a_datagram_is_as_defined_to_the_byte() {
        let sent = datagrams(1472, &[(vec![1, 2, 3], false), (vec![4], true), (vec![], false)]);
        let first = [
            &[0, 110, 0, 8, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 1, 1, 2, 3],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 4],
        ];
        let second = [&[0, 110, 0, 8, 0, 0, 0, 1][..], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]];
        assert_eq!(sent, [(first.concat(), parts(false, 2)), (second.concat(), parts(false, 1))]);
    }

    #[test]
    fn a_frame_continues_and_the_next_header_is_pointed_to() {
        // 100 - 8 - 20 = 72, 92, 92, and 44 left.
        let sent = datagrams(100, &[frame(300), frame(4)]);
        let lengths: Vec<usize> = sent.iter().map(|(datagram, _)| datagram.len()).collect();
        assert_eq!(lengths, [100, 100, 100, 8 + 44 + 20 + 4]);
        let offsets: Vec<&[u8]> = sent.iter().map(|(datagram, _)| &datagram[2..4]).collect();
        assert_eq!(offsets, [[0, 8], [0xff, 0xff], [0xff, 0xff], [0, 52]]);
        let all: Vec<Parts> = sent.iter().map(|(_, parts)| *parts).collect();
        assert_eq!(all, [parts(false, 0), parts(true, 0), parts(true, 0), parts(true, 2)]);
    }

    #[test]
    fn a_datagram_with_less_room_than_28_bytes_is_complete() {
        // 8 + 20 + 44 = 72 of 100.
        let sent = datagrams(100, &[frame(44), frame(1)]);
        assert_eq!(sent.iter().map(|(datagram, _)| datagram.len()).collect::<Vec<_>>(), [93]);
        let sent = datagrams(100, &[frame(45), frame(1)]);
        assert_eq!(sent.iter().map(|(datagram, _)| datagram.len()).collect::<Vec<_>>(), [73, 29]);
        // The frame ends with the datagram.
        let sent = datagrams(100, &[frame(72), frame(1)]);
        assert_eq!(sent[1].0[..8], [0, 110, 0, 8, 0, 0, 0, 1]);
    }

    #[test]
    fn a_frame_may_be_longer_than_any_datagram() {
        let sent = datagrams(1472, &[frame(70_000)]);
        assert_eq!(receive(sent.iter().map(|(datagram, _)| &datagram[..])), [(1, vec![0xab; 70_000])]);
    }

    proptest! {
        #[test]
        fn a_lost_datagram_costs_the_packets_that_it_has_parts_of(
            size in Packer::LEAST..1600,
            frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..400), any::<bool>()), 1..40),
            lost in any::<prop::sample::Index>(),
        ) {
            let sent = datagrams(size, &frames);
            let all: Vec<(u32, Vec<u8>)> = (1..).zip(frames.into_iter().map(|(frame, _)| frame)).collect();
            prop_assert_eq!(&receive(sent.iter().map(|(datagram, _)| &datagram[..])), &all);
            let lost = lost.index(sent.len());
            let before: u64 = sent[..lost].iter().map(|(_, parts)| parts.end).sum();
            let is_continued = sent.get(lost + 1).is_some_and(|(_, parts)| parts.continues);
            let touched = before + 1..=before + sent[lost].1.end + u64::from(is_continued);
            let arrived = sent.iter().enumerate().filter(|(number, _)| *number != lost);
            let expected: Vec<_> =
                all.into_iter().filter(|(number, _)| !touched.contains(&u64::from(*number))).collect();
            let received = receive(arrived.map(|(_, (datagram, _))| &datagram[..]));
            prop_assert_eq!(&received, &expected);
            let (mut tally, mut counted) = (Tally::default(), (0, 0));
            for (number, (_, parts)) in sent.iter().enumerate() {
                let (sent, failed) = tally.count(*parts, number != lost);
                counted = (counted.0 + sent, counted.1 + failed);
            }
            prop_assert_eq!(counted, (received.len() as u64, touched.count() as u64));
        }
    }
}
