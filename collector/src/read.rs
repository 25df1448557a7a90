//! Frames of capture files.

use std::io::Read;

use anyhow::{Result, bail};
use pcap_parser::{Block, Linktype, OptionCode, PcapBlockOwned, PcapError, create_reader};
use podtap_flow::{Source, Timestamp};

use crate::{analysis::Frame, output::pcapng};

/// Longest block that can be read: a frame of 256 KiB, as BIG TCP has them, with its options.
const BUFFER: usize = 1 << 20;

/// An interface of a pcapng file.
struct Interface {
    is_ethernet: bool,
    /// Units of its time stamps per second, and seconds that are added to them.
    resolution: u64,
    offset: i64,
}

/// Passes on each frame of a pcap or pcapng file, in order. The file may end in the middle of a block, as one that is still written does.
///
/// # Errors
/// If it is no such file, is damaged, or has frames that are not of Ethernet.
pub fn frames(file: impl Read + Send, mut take: impl FnMut(Frame<'_>)) -> Result<()> {
    let mut reader = match create_reader(BUFFER, file) {
        Ok(reader) => reader,
        Err(PcapError::Eof | PcapError::Incomplete(_)) => bail!("it is empty"),
        Err(PcapError::HeaderNotRecognized) => bail!("it is no pcap or pcapng file"),
        Err(error) => bail!("it cannot be read: {error}"),
    };
    let mut interfaces: Vec<Interface> = Vec::new();
    // Those of earlier sections of the file.
    let mut earlier = 0;
    let mut nanoseconds = false;
    // The interfaces of a file that this program has written are pods, whose frames came by one interface.
    let mut is_own = false;
    loop {
        let consumed = match reader.next() {
            Ok((consumed, block)) => {
                match block {
                    PcapBlockOwned::LegacyHeader(header) => {
                        check(header.network)?;
                        nanoseconds = header.is_nanosecond_precision();
                    }
                    PcapBlockOwned::Legacy(packet) => {
                        let fraction = u64::from(packet.ts_usec) * if nanoseconds { 1 } else { 1000 };
                        take(Frame {
                            source: 0,
                            at: Timestamp(Timestamp::from_seconds(packet.ts_sec.into()).0 + fraction),
                            length: packet.origlen,
                            bytes: captured(packet.data, packet.caplen),
                        });
                    }
                    PcapBlockOwned::NG(Block::SectionHeader(header)) => {
                        earlier += interfaces.len();
                        interfaces.clear();
                        let writer = header.options.iter().find(|option| option.code == OptionCode::ShbUserAppl);
                        is_own = writer.is_some_and(|writer| writer.value.starts_with(pcapng::WRITER.as_bytes()));
                    }
                    PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => interfaces.push(Interface {
                        is_ethernet: interface.linktype == Linktype::ETHERNET,
                        resolution: interface.ts_resolution().unwrap_or(1_000_000),
                        offset: interface.ts_offset(),
                    }),
                    PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                        let Some(interface) = interfaces.get(packet.if_id as usize) else {
                            bail!("a packet is of interface {}, which the file does not describe", packet.if_id);
                        };
                        if !interface.is_ethernet {
                            bail!("interface {} of it is not of Ethernet", packet.if_id);
                        }
                        let source = if is_own { earlier } else { earlier + packet.if_id as usize };
                        take(Frame {
                            source: Source::try_from(source).unwrap_or(Source::MAX),
                            at: time(interface, packet.ts_high, packet.ts_low),
                            length: packet.origlen,
                            bytes: captured(packet.data, packet.caplen),
                        });
                    }
                    PcapBlockOwned::NG(_) => {}
                }
                consumed
            }
            Err(PcapError::Eof | PcapError::UnexpectedEof) => return Ok(()),
            Err(PcapError::Incomplete(_)) => {
                if reader.reader_exhausted() {
                    return Ok(());
                }
                if reader.refill().is_err() {
                    bail!("a block of it is longer than {BUFFER} bytes");
                }
                continue;
            }
            Err(error) => bail!("it is damaged: {error}"),
        };
        reader.consume(consumed);
    }
}

fn check(linktype: Linktype) -> Result<()> {
    if linktype == Linktype::ETHERNET {
        Ok(())
    } else {
        bail!("its frames are not of Ethernet but of link type {}: capture on one interface, not on `any`", linktype.0)
    }
}

/// Without the padding of blocks.
fn captured(bytes: &[u8], length: u32) -> &[u8] {
    bytes.get(..length as usize).unwrap_or(bytes)
}

fn time(interface: &Interface, high: u32, low: u32) -> Timestamp {
    let units = u128::from(high) << 32 | u128::from(low);
    let nanoseconds = units * 1_000_000_000 / u128::from(interface.resolution.max(1));
    let nanoseconds =
        i128::try_from(nanoseconds).unwrap_or(i128::MAX).saturating_add(i128::from(interface.offset) * 1_000_000_000);
    Timestamp(u64::try_from(nanoseconds).unwrap_or_default())
}
