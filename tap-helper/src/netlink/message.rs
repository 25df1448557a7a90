use std::net::IpAddr;

use netlink_packet_core::{NLA_TYPE_MASK, NlasIterator};

/// `NLM_F_REQUEST` (include/uapi/linux/netlink.h, as are the other flags).
pub(super) const REQUEST: u16 = 0x0001;
/// `NLM_F_ACK`.
pub(super) const ACK: u16 = 0x0004;
/// `NLM_F_DUMP`.
pub(super) const DUMP: u16 = 0x0300;
/// `NLM_F_EXCL`: fail if it exists.
pub(super) const EXCLUSIVE: u16 = 0x0200;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x0400;
/// `NLM_F_APPEND`: one more beside those there.
pub(super) const APPEND: u16 = 0x0800;

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// A netlink request under construction: header, the family's fixed part, attributes.
///
/// Numbers are in the machine's byte order unless a method says otherwise, as the kernel wants them.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of one `RTM_` type with the family's fixed part.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Adds a fixed part, of a length that is a multiple of 4, inside of an attribute.
    pub(super) fn put_fixed(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Adds an attribute.
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        self.append(kind, value);
        self
    }

    /// Adds an attribute of one byte.
    pub(super) fn put_u8(self, kind: u16, value: u8) -> Self {
        self.put(kind, &[value])
    }

    /// Adds an attribute of two bytes.
    pub(super) fn put_u16(self, kind: u16, value: u16) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute of four bytes.
    pub(super) fn put_u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute of two bytes in network byte order, as UDP ports are.
    pub(super) fn put_port(self, kind: u16, value: u16) -> Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds a string with its terminating zero.
    pub(super) fn put_string(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds an address, 4 or 16 bytes.
    pub(super) fn put_address(self, kind: u16, value: IpAddr) -> Self {
        match value {
            IpAddr::V4(address) => self.put(kind, &address.octets()),
            IpAddr::V6(address) => self.put(kind, &address.octets()),
        }
    }

    /// Adds an attribute that holds those which `inside` adds.
    pub(super) fn nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let mut message = inside(self);
        message.fix_attribute(start, kind);
        message
    }

    /// The message with its length and sequence number filled in.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    /// Adds flags of the header.
    pub(super) fn flags(mut self, flags: u16) -> Self {
        let now = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(now | flags).to_ne_bytes());
        self
    }

    fn append(&mut self, kind: u16, value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(value);
        self.fix_attribute(start, kind);
    }

    /// Writes length and type of the attribute that begins at `start` and ends at the message's end, and pads it.
    fn fix_attribute(&mut self, start: usize, kind: u16) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// The attributes of a message that came from the kernel.
///
/// Reading is lenient: what has an unexpected length counts as absent, since it may belong to a newer kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Type and value of each, in order, up to the first one that is broken.
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let bytes = self.0;
        NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
            let value = attribute.into_inner();
            let length = usize::from(u16::from_ne_bytes([value[0], value[1]]));
            let kind = u16::from_ne_bytes([value[2], value[3]]) & NLA_TYPE_MASK;
            (kind, &value[4..length])
        })
    }

    /// The value of the first one of a type.
    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|(candidate, _)| *candidate == kind).map(|(_, value)| value)
    }

    /// The attributes inside of one.
    pub(super) fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes)
    }

    /// A byte.
    pub(super) fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind).and_then(|value| value.first().copied())
    }

    /// Two bytes in network byte order.
    pub(super) fn port(self, kind: u16) -> Option<u16> {
        self.get(kind).and_then(|value| value.try_into().ok()).map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        self.get(kind).and_then(|value| value.try_into().ok()).map(u32::from_ne_bytes)
    }

    /// Eight bytes.
    pub(super) fn u64(self, kind: u16) -> Option<u64> {
        self.get(kind).and_then(|value| value.try_into().ok()).map(u64::from_ne_bytes)
    }

    /// A string without its terminating zero.
    pub(super) fn string(self, kind: u16) -> Option<String> {
        let value = self.get(kind)?;
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        Some(String::from_utf8_lossy(&value[..end]).into_owned())
    }

    /// An address of 4 or 16 bytes.
    pub(super) fn address(self, kind: u16) -> Option<IpAddr> {
        let value = self.get(kind)?;
        if let Ok(octets) = <[u8; 4]>::try_from(value) {
            return Some(IpAddr::from(octets));
        }
        <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
    }
}

/// Four bytes of a fixed part, zero where it is too short.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|value| value.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Two bytes of a fixed part, zero where it is too short.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    bytes.get(offset..offset + 2).and_then(|value| value.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

#[cfg(test)]
#[path = "message_tests.rs"]
pub(super) mod tests;
