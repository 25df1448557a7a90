//! The stream, block by block: what is written is never half a block, and what it counts is read from it.
//!
//! pcapng is a sequence of blocks (draft-ietf-opsawg-pcapng), pcap a header and records (draft-ietf-opsawg-pcap). Both are little-endian here.

use std::collections::BTreeMap;

use clap::ValueEnum;

/// Form of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// With names, directions and statistics
    Pcapng,
    /// For tools that cannot read pcapng
    Pcap,
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const NAMES: u32 = 4;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
/// `if_name` of an interface, and `isb_ifdrop` and `isb_osdrop` of its statistics.
const NAME: u16 = 2;
const DROPS: [u16; 2] = [5, 7];
/// The shortest block.
const MIN_BLOCK: usize = 12;
/// The longest that is taken for one: frames have up to 256 KiB.
const MAX_BLOCK: usize = 1 << 20;
/// What pcap with nanoseconds begins with.
const PCAP: u32 = 0xa1b2_3c4d;
const PCAP_HEADER: usize = 24;
const PCAP_RECORD: usize = 16;

/// What the stream has told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames.
    pub packets: u64,
    /// Bytes, of whole blocks.
    pub bytes: u64,
    /// Names of the interfaces, in their order: namespace and pod.
    pub interfaces: Vec<String>,
    /// The last number of dropped frames of each interface.
    dropped: BTreeMap<u32, u64>,
}

impl Counts {
    /// Frames that were dropped before they got here.
    pub fn dropped(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// Puts blocks together.
#[derive(Debug)]
pub struct Blocks {
    format: Format,
    /// Bytes of which no whole block is known.
    rest: Vec<u8>,
    has_header: bool,
    /// What was counted.
    pub counts: Counts,
}

/// The stream is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl Blocks {
    /// None yet.
    pub fn new(format: Format) -> Self {
        Self { format, rest: Vec::new(), has_header: false, counts: Counts::default() }
    }

    /// Takes bytes of the stream. Returns the blocks that are whole now.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        self.rest.extend(bytes);
        let mut end = 0;
        while let Some(length) = self.length(&self.rest[end..])? {
            if self.rest.len() - end < length {
                break;
            }
            match self.format {
                Format::Pcapng => count(&self.rest[end..end + length], &mut self.counts),
                Format::Pcap => self.counts.packets += u64::from(self.has_header),
            }
            self.has_header = true;
            end += length;
        }
        self.counts.bytes += end as u64;
        let rest = self.rest.split_off(end);
        Ok(std::mem::replace(&mut self.rest, rest))
    }

    /// Whether nothing waits for the rest of its block.
    pub fn is_at_an_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes of the block that begins here, if that is known.
    fn length(&self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let first = match self.format {
            Format::Pcapng => SECTION,
            Format::Pcap => PCAP,
        };
        if !self.has_header && number(bytes, 0).is_some_and(|number| number != first) {
            return Err(Malformed);
        }
        let length = match self.format {
            Format::Pcapng => number(bytes, 4).map(|length| length as usize),
            Format::Pcap if !self.has_header => Some(PCAP_HEADER),
            Format::Pcap => number(bytes, 8).map(|length| PCAP_RECORD + length as usize),
        };
        match length {
            Some(length) if !(MIN_BLOCK..=MAX_BLOCK).contains(&length) => Err(Malformed),
            length => Ok(length),
        }
    }
}

/// The blocks among these that another file needs to be read by itself: of pcapng its section, interfaces and names.
pub fn preamble(format: Format, blocks: &[u8], preamble: &mut Vec<u8>) {
    if format == Format::Pcap {
        if preamble.is_empty() {
            preamble.extend(blocks.get(..PCAP_HEADER).unwrap_or_default());
        }
        return;
    }
    let mut rest = blocks;
    while let (Some(kind), Some(length)) = (number(rest, 0), number(rest, 4)) {
        let Some((block, next)) = rest.split_at_checked(length as usize).filter(|(block, _)| !block.is_empty()) else {
            return;
        };
        if matches!(kind, SECTION | INTERFACE | NAMES) {
            preamble.extend(block);
        }
        rest = next;
    }
}

fn count(block: &[u8], counts: &mut Counts) {
    match number(block, 0) {
        Some(PACKET) => counts.packets += 1,
        Some(INTERFACE) => {
            let name = option(block.get(16..).unwrap_or_default(), NAME);
            counts.interfaces.push(name.map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default());
        }
        Some(STATISTICS) => {
            let options = block.get(20..).unwrap_or_default();
            let counted = DROPS.into_iter().filter_map(|code| <[u8; 8]>::try_from(option(options, code)?).ok());
            if let Some(interface) = number(block, 8) {
                counts.dropped.insert(interface, counted.map(u64::from_le_bytes).sum());
            }
        }
        _ => {}
    }
}

/// The value of an option.
fn option(mut options: &[u8], code: u16) -> Option<&[u8]> {
    loop {
        let (head, rest) = options.split_at_checked(4)?;
        let [found, length] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_le_bytes);
        let (value, _) = rest.split_at_checked(length.into())?;
        if found == code {
            return Some(value);
        }
        if found == 0 {
            return None;
        }
        options = rest.get(usize::from(length).next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(12 + body.len()).expect("it is short").to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    }

    fn stream() -> Vec<Vec<u8>> {
        let name = [&[1, 0, 0, 0, 0, 0, 4, 0, 2, 0, 6, 0][..], b"shop/a", &[0, 0, 0, 0, 0, 0]].concat();
        let dropped = [
            &[0; 12][..],
            &[4, 0, 8, 0],
            &[9; 8],
            &[5, 0, 8, 0, 7, 0, 0, 0, 0, 0, 0, 0],
            &[7, 0, 8, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        vec![
            block(SECTION, &[0; 16]),
            block(INTERFACE, &name),
            block(PACKET, &[0; 20]),
            block(NAMES, &[0; 8]),
            block(STATISTICS, &dropped),
            block(PACKET, &[0; 24]),
        ]
    }

    #[test]
    fn blocks_are_whole_however_they_come() {
        let all = stream().concat();
        for size in 1..all.len() {
            let mut blocks = Blocks::new(Format::Pcapng);
            let whole: Vec<u8> = all.chunks(size).flat_map(|part| blocks.push(part).expect("it is valid")).collect();
            assert_eq!(whole, all);
            assert_eq!((blocks.counts.packets, blocks.counts.dropped()), (2, 10), "by {size}");
            assert_eq!(blocks.counts.interfaces, ["shop/a"]);
        }
    }

    #[test]
    fn half_a_block_waits() {
        let all = stream().concat();
        let mut blocks = Blocks::new(Format::Pcapng);
        let whole = blocks.push(&all[..all.len() - 1]).expect("it is valid");
        assert_eq!(whole, stream()[..5].concat());
    }

    #[test]
    fn another_file_begins_with_what_it_needs() {
        let blocks = stream();
        let mut found = Vec::new();
        preamble(Format::Pcapng, &blocks.concat(), &mut found);
        assert_eq!(found, [&blocks[0][..], &blocks[1], &blocks[3]].concat());
    }

    #[test]
    fn pcap_is_a_header_and_records() {
        let record = |length: u32| [&[0; 8][..], &length.to_le_bytes(), &[0; 4], &vec![1; length as usize]].concat();
        let header = [&PCAP.to_le_bytes()[..], &[9; PCAP_HEADER - 4]].concat();
        let all = [header, record(60), record(1)].concat();
        let mut blocks = Blocks::new(Format::Pcap);
        let whole: Vec<u8> = all.chunks(7).flat_map(|part| blocks.push(part).expect("it is valid")).collect();
        assert_eq!((whole, blocks.counts.packets), (all.clone(), 2));
        let mut found = Vec::new();
        preamble(Format::Pcap, &all, &mut found);
        assert_eq!(found, all[..PCAP_HEADER]);
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        for bytes in [&b"HTTP/1.1 400 Bad Request"[..], &stream()[1..].concat()] {
            assert_eq!(Blocks::new(Format::Pcapng).push(bytes), Err(Malformed));
        }
    }
}
