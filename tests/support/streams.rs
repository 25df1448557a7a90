//! The content of frames, independent of the size of TCP segments: mirrored frames that would exceed the MTU are segmented again, and
//! carry the same bytes in segments of another size.

use std::{collections::BTreeMap, fmt};

use crate::capture::{Difference, Frame};

/// Addresses and ports of one direction of a TCP connection, as on the wire.
type Flow = Vec<u8>;

/// TCP data by connection, and all other frames unchanged.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// By addresses and ports.
    pub streams: BTreeMap<Flow, Stream>,
    /// Frames without TCP data: acknowledgements, datagrams, ARP.
    pub others: Vec<Frame>,
}

/// The captured data of one direction of a TCP connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Sequence number of the first byte.
    pub first: u32,
    /// Offsets at which the number of times that a byte was captured changes, and the new number. The last number is 0.
    times: Vec<(usize, i32)>,
    /// The bytes; 0 for those that were not captured.
    pub bytes: Vec<u8>,
}

impl Content {
    /// # Panics
    /// When one byte of a stream was captured with two values.
    #[must_use]
    pub fn of(frames: &[Frame]) -> Self {
        let mut content = Self::default();
        let mut parts: BTreeMap<Flow, Vec<(u32, &[u8])>> = BTreeMap::new();
        for frame in frames {
            match segment(&frame.bytes) {
                Some((flow, sequence, data)) if !data.is_empty() => {
                    parts.entry(flow).or_default().push((sequence, data));
                }
                _ => content.others.push(frame.clone()),
            }
        }
        content.streams = parts.into_iter().map(|(flow, parts)| (flow, Stream::of(&parts))).collect();
        content
    }

    /// The difference to what was received, if there is one. Equal are the same bytes of the same streams, each as often, and the same
    /// other frames.
    #[must_use]
    pub fn difference(&self, received: &Self) -> Option<String> {
        let others = Difference::between(&self.others, &received.others);
        if others.is_none() && self.streams == received.streams {
            return None;
        }
        Some(format!("{others}sent:\n{self}received:\n{received}"))
    }
}

impl Stream {
    fn of(parts: &[(u32, &[u8])]) -> Self {
        // Sequence numbers wrap, but no test sends as much as half of their range.
        let offset = |sequence: u32| i64::from(sequence.wrapping_sub(parts[0].0).cast_signed());
        let lowest = parts.iter().map(|(sequence, _)| offset(*sequence)).min().expect("a stream has a part");
        let mut changes: BTreeMap<usize, i32> = BTreeMap::new();
        let mut bytes: Vec<u8> = Vec::new();
        let mut ordered: Vec<(usize, &[u8])> = parts
            .iter()
            .map(|(sequence, data)| (usize::try_from(offset(*sequence) - lowest).expect("not negative"), *data))
            .collect();
        ordered.sort_unstable();
        for (at, data) in ordered {
            let end = at + data.len();
            *changes.entry(at).or_default() += 1;
            *changes.entry(end).or_default() -= 1;
            let overlap = bytes.len().saturating_sub(at).min(data.len());
            assert!(bytes.len() < at || bytes[at..at + overlap] == data[..overlap], "a byte near {at} has two values");
            bytes.resize(bytes.len().max(at), 0);
            bytes.extend_from_slice(&data[overlap..]);
        }
        let mut count = 0;
        let mut times = Vec::new();
        for (at, change) in changes.into_iter().filter(|(_, change)| *change != 0) {
            count += change;
            times.push((at, count));
        }
        let lowest = u32::try_from(lowest.rem_euclid(1 << 32)).expect("less than 2^32");
        Self { first: parts[0].0.wrapping_add(lowest), times, bytes }
    }

    /// Whether every byte between the first and the last was captured.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.times.iter().filter(|(_, times)| *times == 0).count() == 1
    }
}

/// Whether a frame carries TCP data.
#[must_use]
pub fn carries_data(frame: &[u8]) -> bool {
    segment(frame).is_some_and(|(_, _, data)| !data.is_empty())
}

/// Addresses and ports, sequence number and data of a TCP segment directly after an IP header, if the frame is one.
#[must_use]
pub fn segment(frame: &[u8]) -> Option<(Vec<u8>, u32, &[u8])> {
    let word = |at: usize| Some(usize::from(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?])));
    let (addresses, tcp, end) = match frame.get(12..14)? {
        // The low 13 bits are the fragment offset: this excludes later fragments.
        [8, 0] if *frame.get(23)? == 6 && word(20)? % 0x2000 == 0 => {
            let total = word(16)?;
            // A GSO packet may have the length 0 if it exceeds 16 bits.
            (26..34, 14 + usize::from(frame[14] & 15) * 4, if total == 0 { frame.len() } else { 14 + total })
        }
        [0x86, 0xdd] if *frame.get(20)? == 6 => {
            let length = word(18)?;
            (22..54, 54, if length == 0 { frame.len() } else { 54 + length })
        }
        _ => return None,
    };
    let data = tcp + usize::from(*frame.get(tcp + 12)? >> 4) * 4;
    let sequence = u32::from_be_bytes(*frame.get(tcp + 4..)?.first_chunk()?);
    let flow = [frame.get(addresses)?, frame.get(tcp..tcp + 4)?].concat();
    Some((flow, sequence, frame.get(data..end)?))
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flow, stream) in &self.streams {
            let (addresses, ports) = flow.split_at(flow.len() - 4);
            let times = &stream.times[..stream.times.len().min(6)];
            writeln!(f, "  {addresses:?} {ports:?}: from {}, (byte, times) {times:?}", stream.first)?;
        }
        writeln!(f, "  and {} other frames", self.others.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::capture::FrameDirection;

    /// A segment of 10.0.0.1:1 to 10.0.0.2:2.
    fn frame(sequence: u32, data: &[u8]) -> Frame {
        let mut bytes = vec![0; 54];
        bytes[12] = 8;
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&u16::try_from(40 + data.len()).expect("short").to_be_bytes());
        bytes[23] = 6;
        bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        bytes[34..38].copy_from_slice(&[0, 1, 0, 2]);
        bytes[38..42].copy_from_slice(&sequence.to_be_bytes());
        bytes[46] = 5 << 4;
        bytes.extend_from_slice(data);
        Frame { direction: FrameDirection::In, bytes, at: Instant::now() }
    }

    #[test]
    fn segments_of_another_size_are_the_same_stream() {
        let whole = Content::of(&[frame(u32::MAX - 1, b"abcdef"), frame(4, b"gh")]);
        let parts = Content::of(&[frame(2, b"efg"), frame(5, b"h"), frame(u32::MAX - 1, b"abcd")]);
        assert_eq!(whole.difference(&parts), None);
        assert!(whole.streams.values().all(|stream| stream.is_whole() && stream.bytes == b"abcdefgh"));
    }

    #[test]
    fn lost_duplicate_and_changed_data_is_a_difference() {
        let sent = Content::of(&[frame(10, b"abc"), frame(13, b"def")]);
        for received in [
            vec![frame(10, b"abc")],
            vec![frame(10, b"abc"), frame(14, b"ef")],
            vec![frame(10, b"abc"), frame(13, b"def"), frame(13, b"d")],
            vec![frame(10, b"abc"), frame(13, b"dxf")],
            vec![frame(10, b"abc"), frame(13, b"def"), frame(16, b"")],
        ] {
            assert!(sent.difference(&Content::of(&received)).is_some(), "{received:?}");
        }
        assert!(!Content::of(&[frame(10, b"abc"), frame(14, b"ef")]).streams.values().all(Stream::is_whole));
    }

    #[test]
    #[should_panic(expected = "two values")]
    fn a_byte_with_two_values_panics() {
        let _ = Content::of(&[frame(10, b"abc"), frame(11, b"xx")]);
    }
}
