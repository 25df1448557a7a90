//! Packets as one stream for a client.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use clap::ValueEnum;
use podtap_flow::Timestamp;

use super::{
    Counts, Packet,
    blocks::{ETHERNET, SNAPLEN},
    section::Section,
};
use crate::output::window::Window;

/// How often what was counted is told.
const STATISTICS: Duration = Duration::from_secs(10);

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// With an interface for each pod, names, directions and drop counts
    Pcapng,
    /// Only frames and their times, in nanoseconds: for programs that do not read pcapng
    Pcap,
}

/// See the module.
#[derive(Debug)]
pub struct Stream {
    window: Arc<Window>,
    counts: Arc<Counts>,
    /// None: classic pcap.
    section: Option<Section>,
    /// Blocks before they are appended.
    buffer: Vec<u8>,
    /// When what was counted was told last.
    told: Option<Timestamp>,
}

impl Stream {
    /// Begins the stream at once: the client sees that there is one.
    pub fn new(format: Format, window: Arc<Window>, counts: Arc<Counts>) -> Self {
        let mut buffer = Vec::new();
        let section = match format {
            Format::Pcapng => Some(Section::new(&mut buffer)),
            Format::Pcap => {
                pcap_header(&mut buffer);
                None
            }
        };
        window.append(&buffer);
        Self { window, counts, section, buffer, told: None }
    }

    /// Appends a packet. Returns whether there was room.
    pub fn write(&mut self, packet: &Packet<'_>) -> bool {
        self.buffer.clear();
        match &self.section {
            Some(section) => section.encode(&mut self.buffer, packet),
            None => pcap_packet(&mut self.buffer, packet),
        }
        let has_room = self.window.append(&self.buffer);
        if has_room && let Some(section) = &mut self.section {
            section.add(packet);
        }
        has_room
    }

    /// Tells what was counted, when that is due and there is room.
    pub fn tick(&mut self, now: Timestamp) {
        let told = *self.told.get_or_insert(now);
        if now.since(told) >= STATISTICS {
            self.told = Some(now);
            self.encode_statistics(now);
            self.window.append(&self.buffer);
        }
    }

    /// Ends the stream with what was counted.
    pub fn complete(&mut self, now: Timestamp) {
        self.encode_statistics(now);
        self.window.complete(&self.buffer);
    }

    fn encode_statistics(&mut self, now: Timestamp) {
        self.buffer.clear();
        let lost = self.window.take_lost();
        let count = lost.values().sum();
        self.counts.written.fetch_sub(count, Ordering::Relaxed);
        self.counts.dropped.fetch_add(count, Ordering::Relaxed);
        if let Some(section) = &self.section {
            section.lose(&lost);
            section.statistics(&mut self.buffer, now, &self.counts);
        }
    }
}

/// The beginning of a file (draft-ietf-opsawg-pcap) in little-endian byte order, with times in nanoseconds.
fn pcap_header(out: &mut Vec<u8>) {
    for word in [0xa1b2_3c4d, 4 << 16 | 2, 0, 0, SNAPLEN, ETHERNET.into()] {
        out.extend(u32::to_le_bytes(word));
    }
}

fn pcap_packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    let bytes = &packet.bytes[..packet.bytes.len().min(SNAPLEN as usize)];
    let (seconds, rest) = (packet.at.0 / 1_000_000_000, packet.at.0 % 1_000_000_000);
    for number in [seconds, rest, bytes.len() as u64, packet.length.into()] {
        out.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }
    out.extend(bytes);
}
