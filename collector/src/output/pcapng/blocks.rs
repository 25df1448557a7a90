//! Blocks of pcapng (draft-ietf-opsawg-pcapng), in little-endian byte order.

use std::{iter, net::IpAddr};

use podtap_flow::Timestamp;

use super::Packet;

/// Longest frame that is written whole: BIG TCP has frames of 256 KiB.
pub const SNAPLEN: u32 = 1 << 18;
/// Link type.
pub const ETHERNET: u16 = 1;

/// The program that has written a file, in its first block; its version follows.
pub const WRITER: &str = "podtap-collector";

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const NAMES: u32 = 4;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Later ones need it: a section, an interface or a name.
    Preamble,
    /// A frame of the interface with this place in the section.
    Packet(u32),
    Statistics,
}

/// The whole blocks that bytes of a stream begin with.
pub fn whole(mut bytes: &[u8]) -> impl Iterator<Item = (Kind, &[u8])> {
    iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let (kind, length) = (word(0)?, word(4)?);
        let kind = match kind {
            PACKET => Kind::Packet(word(8)?),
            STATISTICS => Kind::Statistics,
            _ => Kind::Preamble,
        };
        let (block, rest) = bytes.split_at_checked(length as usize).filter(|(block, _)| !block.is_empty())?;
        bytes = rest;
        Some((kind, block))
    })
}

/// Which way a frame went, as its pod sees it: the bits of `epb_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Inbound = 1,
    Outbound = 2,
}

/// Adds a block.
fn block(out: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    write(out);
    let length = u32::try_from(out.len() - start + 4).unwrap_or(u32::MAX).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&length);
    out.extend(length);
}

fn pad(out: &mut Vec<u8>, length: usize) {
    out.resize(out.len() + length.next_multiple_of(4) - length, 0);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let value = &value[..length.into()];
    out.extend(code.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(value);
    pad(out, value.len());
}

fn end_of_options(out: &mut Vec<u8>) {
    option(out, 0, b"");
}

/// The beginning of a file.
pub fn section(out: &mut Vec<u8>) {
    block(out, SECTION, |out| {
        out.extend(0x1a2b_3c4d_u32.to_le_bytes());
        // Version 1.0, and a section of unknown length.
        out.extend([1, 0, 0, 0]);
        out.extend(u64::MAX.to_le_bytes());
        option(out, 4, format!("{WRITER} {}", env!("CARGO_PKG_VERSION")).as_bytes());
        end_of_options(out);
    });
}

/// An interface of Ethernet, whose times are nanoseconds.
pub fn interface(out: &mut Vec<u8>, name: &str, description: &str) {
    block(out, INTERFACE, |out| {
        out.extend(ETHERNET.to_le_bytes());
        out.extend([0, 0]);
        out.extend(SNAPLEN.to_le_bytes());
        option(out, 2, name.as_bytes());
        if !description.is_empty() {
            option(out, 3, description.as_bytes());
        }
        option(out, 9, &[9]);
        end_of_options(out);
    });
}

/// A name of an address. One block each: of several names in one, programs show only one.
pub fn name(out: &mut Vec<u8>, address: IpAddr, name: &str) {
    block(out, NAMES, |out| {
        let (kind, mut value) = match address {
            IpAddr::V4(address) => (1, address.octets().to_vec()),
            IpAddr::V6(address) => (2, address.octets().to_vec()),
        };
        value.extend(name.as_bytes());
        value.push(0);
        option(out, kind, &value);
        end_of_options(out);
    });
}

/// A frame of the interface with this place in the section. Its time, its length on the wire, its first bytes, its direction, and how many
/// frames of the interface were dropped before it.
pub fn packet(out: &mut Vec<u8>, interface: u32, packet: &Packet<'_>) {
    let bytes = &packet.bytes[..packet.bytes.len().min(SNAPLEN as usize)];
    block(out, PACKET, |out| {
        out.extend(interface.to_le_bytes());
        time(out, packet.at);
        out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(packet.length.to_le_bytes());
        out.extend(bytes);
        pad(out, bytes.len());
        if let Some(direction) = packet.direction {
            option(out, 2, &(direction as u32).to_le_bytes());
        }
        if packet.gap > 0 {
            option(out, 4, &packet.gap.to_le_bytes());
        }
        if packet.direction.is_some() || packet.gap > 0 {
            end_of_options(out);
        }
    });
}

/// What was counted of an interface, since the program was started.
pub struct Statistics {
    /// Frames, also those that were not written.
    pub received: u64,
    /// Of these, those that were not written.
    pub dropped: u64,
    /// Frames of all interfaces that the kernel dropped or left out.
    pub lost: u64,
}

/// What was counted of an interface until now.
pub fn statistics(out: &mut Vec<u8>, interface: u32, at: Timestamp, counted: &Statistics) {
    block(out, STATISTICS, |out| {
        out.extend(interface.to_le_bytes());
        time(out, at);
        let comment = format!("the kernel dropped or left out {} frames, of any interface", counted.lost);
        option(out, 1, comment.as_bytes());
        option(out, 4, &counted.received.to_le_bytes());
        option(out, 5, &counted.dropped.to_le_bytes());
        // They are of no known interface: the first one has them.
        if interface == 0 {
            option(out, 7, &counted.lost.to_le_bytes());
        }
        end_of_options(out);
    });
}

/// The upper half comes first.
fn time(out: &mut Vec<u8>, at: Timestamp) {
    #[expect(clippy::cast_possible_truncation, reason = "both halves are written")]
    for half in [(at.0 >> 32) as u32, at.0 as u32] {
        out.extend(half.to_le_bytes());
    }
}
