//! One direction of a TCP connection, counted by sequence numbers.
//!
//! Frames cannot be counted for this: a tap truncates them, cuts flows off, or loses some, and segmentation offload joins them. The
//! sequence numbers tell how many bytes the sender sent, whatever of them was mirrored.

use crate::{
    packet::{Flags, Segment},
    record::Missing,
};

/// The longest window of a receiver (RFC 7323).
const WINDOW: u64 = 1 << 30;
/// Ranges of bytes of which no frame was seen, that are remembered. The oldest ones are forgotten, and stay missing.
const GAPS: usize = 4;
/// A segment further away from the last one is not of this stream: a reused port, or a forged one. More than half of the sequence space
/// cannot be told from a retransmission.
const FURTHEST: u64 = SPACE / 2;
/// Size of the sequence space.
const SPACE: u64 = 1 << 32;

/// Bytes of the stream, from its first one on. They do not wrap.
type Offset = u64;

/// What one end of a connection sent.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// The sequence number of offset 0. With a SYN, that is of the first byte of payload.
    start: Option<u32>,
    /// The SYN's sequence number.
    pub initial: Option<u32>,
    /// The end of what was sent, as far as it was seen.
    end: Offset,
    /// Before it, no frame of these ranges was seen. Few streams have any.
    gaps: Option<Box<Gaps>>,
    /// Bytes that were sent again.
    pub retransmitted: u64,
    /// A FIN was seen at the end. It takes a sequence number, too, that is no byte.
    finished: bool,
    /// Who lost what was sent since the last segment, and not seen.
    pub lost_by: LostBy,
}

/// Who lost frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LostBy {
    /// They did not arrive.
    #[default]
    Mirror,
    /// They arrived, and this program did not keep up.
    Collector,
}

#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    from: Offset,
    to: Offset,
    by: LostBy,
}

#[derive(Clone, Copy, Debug, Default)]
struct Gaps {
    ranges: [Gap; GAPS],
    count: u8,
    /// Bytes of ranges that there was no room for.
    forgotten: Missing,
}

impl Stream {
    /// Bytes of payload that were sent.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end
    }

    /// Bytes of payload of which no frame was seen.
    #[must_use]
    pub fn missing(&self) -> Missing {
        self.gaps.as_ref().map_or_else(Missing::default, |gaps| gaps.missing())
    }

    /// Counts a segment of this direction.
    pub fn count(&mut self, segment: &Segment<'_>) {
        let syn = segment.flags.has(Flags::SYN);
        let sequence = if syn {
            self.initial = Some(segment.sequence);
            // A SYN takes a sequence number, and may carry payload (RFC 7413).
            segment.sequence.wrapping_add(1)
        } else {
            segment.sequence
        };
        // What a RST carries is no payload, and its sequence number may be any.
        if segment.flags.has(Flags::RST) {
            return;
        }
        // Without the SYN, counting starts with the first frame.
        let start = *self.start.get_or_insert(sequence);
        let Some(from) = self.offset(start, sequence) else { return };
        let from = if self.finished { from.min(self.end) } else { from };
        self.add(from, u64::from(segment.length));
        if segment.flags.has(Flags::FIN) {
            self.finish(from + u64::from(segment.length));
        }
        self.lost_by = LostBy::Mirror;
    }

    /// The sequence number that it starts with, if that is known.
    #[must_use]
    pub const fn starts(&self) -> Option<u32> {
        self.start
    }

    /// Whether a segment is at the end of what was seen: within a window of it. After this program lost frames, any may be.
    #[must_use]
    pub fn is_near(&self, segment: &Segment<'_>) -> bool {
        self.start.filter(|_| self.lost_by == LostBy::Mirror).is_none_or(|start| {
            let offset = self.offset(start, segment.sequence);
            offset.is_some_and(|offset| offset.abs_diff(self.end) <= WINDOW)
        })
    }

    /// Whether a segment has payload behind what was seen.
    #[must_use]
    pub fn is_ahead(&self, segment: &Segment<'_>) -> bool {
        let sequence =
            segment.sequence.wrapping_add(segment.length).wrapping_add(u32::from(segment.flags.has(Flags::SYN)));
        self.start.and_then(|start| self.offset(start, sequence)).is_some_and(|to| to > self.end && !self.finished)
    }

    /// Counts what the other end acknowledged: its sender must have sent it.
    pub fn acknowledge(&mut self, acknowledgment: u32) {
        let Some(start) = self.start else { return };
        if let Some(to) = self.offset(start, acknowledgment).filter(|to| *to > self.end && !self.finished) {
            self.gap(self.end, to);
            self.end = to;
        }
    }

    /// Whether the sender closed its direction.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished
    }

    fn finish(&mut self, last: Offset) {
        // What comes after a FIN that was not seen has the next sequence number. No FIN comes earlier: it is of another stream, or forged.
        if self.end > last + 1 {
            return;
        }
        self.finished = true;
        if self.end > last {
            self.fill(last, self.end);
            self.end = last;
        }
    }

    /// The offset of a sequence number, relative to the end: within half of the sequence space of it. After this program lost frames, all
    /// but a window of that may have been sent since.
    fn offset(&self, start: u32, sequence: u32) -> Option<Offset> {
        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
        let end = start.wrapping_add(self.end as u32);
        let ahead = u64::from(sequence.wrapping_sub(end));
        let behind = SPACE - ahead;
        match self.lost_by {
            LostBy::Mirror if ahead < FURTHEST => Some(self.end + ahead),
            LostBy::Mirror if behind < FURTHEST => self.end.checked_sub(behind),
            LostBy::Mirror => None,
            LostBy::Collector if behind > WINDOW => Some(self.end + ahead),
            LostBy::Collector => self.end.checked_sub(behind),
        }
    }

    fn add(&mut self, from: Offset, length: u64) {
        let to = if self.finished { self.end.min(from + length) } else { from + length };
        if from >= self.end {
            // Also without payload: what comes before it was sent.
            self.gap(self.end, from);
            self.end = to;
            return;
        }
        // A keep-alive repeats the last byte, often without having sent it (RFC 1122, 4.2.3.6).
        if to <= from || length == 1 && to == self.end {
            return;
        }
        let filled = self.fill(from, to.min(self.end));
        self.retransmitted += to.min(self.end) - from - filled;
        self.end = self.end.max(to);
    }

    fn gap(&mut self, from: Offset, to: Offset) {
        if from < to {
            self.gaps.get_or_insert_default().push(Gap { from, to, by: self.lost_by });
        }
    }

    fn fill(&mut self, from: Offset, to: Offset) -> u64 {
        self.gaps.as_mut().map_or(0, |gaps| gaps.fill(from, to))
    }
}

impl Gap {
    const fn add_to(&self, missing: &mut Missing) {
        let lost = match self.by {
            LostBy::Mirror => &mut missing.by_mirror,
            LostBy::Collector => &mut missing.by_collector,
        };
        *lost += self.to - self.from;
    }
}

impl Gaps {
    fn known(&self) -> &[Gap] {
        &self.ranges[..usize::from(self.count)]
    }

    fn missing(&self) -> Missing {
        let mut missing = self.forgotten;
        self.known().iter().for_each(|gap| gap.add_to(&mut missing));
        missing
    }

    /// Adds a range behind all others.
    fn push(&mut self, gap: Gap) {
        if usize::from(self.count) == GAPS {
            // The oldest one: what was not sent again until now is lost.
            self.ranges[0].add_to(&mut self.forgotten);
            self.ranges.rotate_left(1);
            self.count -= 1;
        }
        self.ranges[usize::from(self.count)] = gap;
        self.count += 1;
    }

    /// Removes what is now seen. Returns how many bytes of it were missing.
    fn fill(&mut self, from: Offset, to: Offset) -> u64 {
        let mut filled = 0;
        let mut left = Self { forgotten: self.forgotten, ..Self::default() };
        for &gap in self.known() {
            let (low, high) = (gap.from.max(from), gap.to.min(to));
            if low >= high {
                left.push(gap);
                continue;
            }
            filled += high - low;
            for (from, to) in [(gap.from, low), (high, gap.to)] {
                if from < to {
                    left.push(Gap { from, to, ..gap });
                }
            }
        }
        *self = left;
        filled
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(sequence: u32, length: u32, flags: u8) -> Segment<'static> {
        Segment {
            source_port: 1,
            destination_port: 2,
            sequence,
            acknowledgment: 0,
            flags: Flags(flags),
            checksum: 0,
            length,
            payload: &[],
        }
    }

    #[test]
    fn a_connection_is_counted_to_the_byte() {
        let mut stream = Stream::default();
        stream.count(&segment(u32::MAX - 2, 0, Flags::SYN));
        stream.count(&segment(u32::MAX - 1, 10, Flags::ACK));
        stream.count(&segment(8, 0, Flags::FIN));
        assert_eq!(
            (stream.bytes(), stream.missing(), stream.retransmitted, stream.is_finished()),
            (10, Missing::default(), 0, true)
        );
    }

    #[test]
    fn what_was_not_mirrored_is_counted_by_the_fin() {
        let mut stream = Stream::default();
        stream.count(&segment(100, 0, Flags::SYN));
        stream.count(&segment(101, 10, Flags::ACK));
        stream.count(&segment(1_000_101, 0, Flags::FIN | Flags::ACK));
        stream.acknowledge(1_000_102);
        assert_eq!(stream.bytes(), 1_000_000);
        assert_eq!(stream.missing(), Missing { by_mirror: 999_990, by_collector: 0 });
    }

    #[test]
    fn missing_bytes_are_told_apart_by_who_lost_them() {
        let mut stream = Stream::default();
        stream.count(&segment(0, 0, Flags::SYN));
        stream.count(&segment(11, 10, Flags::ACK));
        stream.lost_by = LostBy::Collector;
        stream.acknowledge(1121);
        stream.count(&segment(1121, 10, Flags::ACK));
        assert_eq!(stream.missing(), Missing { by_mirror: 10, by_collector: 1100 });
        // Sent again, or only mirrored later.
        stream.count(&segment(21, 40, Flags::ACK));
        assert_eq!(stream.missing(), Missing { by_mirror: 10, by_collector: 1060 });
        // More gaps than are remembered.
        for sequence in (2000..2100).step_by(20) {
            stream.count(&segment(sequence, 10, Flags::ACK));
        }
        assert_eq!(stream.missing(), Missing { by_mirror: 10 + 869 + 4 * 10, by_collector: 1060 });
    }

    #[test]
    fn what_this_program_lost_may_be_more_than_half_of_the_sequence_space() {
        for lost_by in [LostBy::Mirror, LostBy::Collector] {
            let mut stream = Stream::default();
            stream.count(&segment(0, 0, Flags::SYN));
            stream.count(&segment(1, 10, Flags::ACK));
            stream.lost_by = lost_by;
            let end = 3_000_000_001;
            assert_eq!(stream.is_near(&segment(end, 0, Flags::RST)), lost_by == LostBy::Collector);
            stream.count(&segment(end, 0, Flags::FIN | Flags::ACK));
            let (bytes, lost) = (stream.bytes(), stream.missing().by_collector);
            match lost_by {
                LostBy::Mirror => assert!(!stream.is_finished() && bytes == 10, "{bytes}"),
                LostBy::Collector => {
                    assert!(stream.is_finished());
                    assert_eq!((bytes, lost), (3_000_000_000, 2_999_999_990));
                }
            }
        }
    }

    #[test]
    fn a_fin_is_no_payload() {
        for lost in [false, true] {
            let mut stream = Stream::default();
            stream.count(&segment(0, 0, Flags::SYN));
            stream.count(&segment(1, 82, Flags::ACK));
            if !lost {
                stream.count(&segment(83, 0, Flags::FIN | Flags::ACK));
            }
            // The last acknowledgment of the other end's FIN.
            stream.count(&segment(84, 0, Flags::ACK));
            // The retransmitted FIN.
            stream.count(&segment(83, 0, Flags::FIN | Flags::ACK));
            stream.acknowledge(84);
            assert_eq!((stream.bytes(), stream.missing()), (82, Missing::default()), "{lost}");
        }
    }

    #[test]
    fn a_keep_alive_is_no_payload() {
        let mut stream = Stream::default();
        stream.count(&segment(0, 0, Flags::SYN));
        stream.count(&segment(1, 5, Flags::ACK));
        stream.count(&segment(5, 1, Flags::ACK));
        assert_eq!((stream.bytes(), stream.retransmitted), (5, 0));
    }

    #[test]
    fn a_reset_says_nothing_about_bytes() {
        let mut stream = Stream::default();
        stream.count(&segment(0, 0, Flags::SYN));
        stream.count(&segment(77_777, 9, Flags::RST));
        assert_eq!(stream.bytes(), 0);
    }

    proptest! {
        /// Whatever is lost, repeated or late: the bytes are exact once the end was seen, and every byte is missing or was seen.
        #[test]
        fn bytes_are_those_that_were_sent(
            start: u32,
            // A single byte could be a keep-alive.
            lengths in prop::collection::vec(2_u32..5000, 1..40),
            plan in prop::collection::vec((0_u8..10, 0_usize..40), 0..40),
        ) {
            let mut sequence = start.wrapping_add(1);
            let mut sent = Vec::new();
            for length in &lengths {
                sent.push(segment(sequence, *length, Flags::ACK));
                sequence = sequence.wrapping_add(*length);
            }
            let total: u64 = lengths.iter().copied().map(u64::from).sum();
            let mut seen = vec![false; sent.len()];
            let mut order: Vec<usize> = (0..sent.len()).collect();
            for (what, index) in plan {
                let index = index % order.len();
                match what {
                    0..4 if order.len() > 1 => { order.remove(index); }
                    4..7 => order.push(order[index]),
                    _ => { let last = order.len() - 1; order.swap(index, last); }
                }
            }
            let mut stream = Stream::default();
            stream.count(&segment(start, 0, Flags::SYN));
            let mut frames = 0;
            for index in order {
                stream.count(&sent[index]);
                frames += u64::from(sent[index].length);
                seen[index] = true;
            }
            stream.count(&segment(sequence, 0, Flags::FIN | Flags::ACK));
            prop_assert_eq!(stream.bytes(), total);
            let missing: u64 = sent.iter().zip(&seen).filter(|(_, seen)| !**seen).map(|(s, _)| u64::from(s.length)).sum();
            // With more gaps than are remembered, late frames of forgotten ones count as retransmitted.
            prop_assert!(stream.missing().by_mirror >= missing, "{:?} {}", stream.missing(), missing);
            prop_assert_eq!(stream.bytes() - stream.missing().by_mirror + stream.retransmitted, frames);
        }
    }
}
