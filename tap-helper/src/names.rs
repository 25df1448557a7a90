//! Names and numbers that are derived, so that two runs of the helper derive the same.

use crate::step::SenderKey;

/// What the name of every device begins with that PodTap names by itself.
pub const TEMPORARY_PREFIX: &str = "ptap";

/// The node-local network identifiers that sender devices have for themselves. They never appear on the wire, but no two
/// devices of a node may share one, so they are far from those that users choose.
pub const SENDER_VNIS: std::ops::RangeInclusive<u32> = 16_000_001..=16_777_215;

/// UDP port on which sender devices listen, though nothing is meant to arrive: below the ephemeral range, where a
/// resolver's socket could sit on it just when a tap is made.
pub const SENDER_PORT: u16 = 14788;

/// UDP ports that copies come from: the first, and the first that is not used. Each is an entry in the node's connection
/// tracking table per destination; by default there would be one per mirrored flow.
pub const SOURCE_PORTS: (u16, u16) = (50000, 50016);

/// Largest frame payload of PodTap's devices: what the path carries is decided on the way, not here.
pub const DEVICE_MTU: u32 = 65000;

/// FNV-1a, 64 bit: the same in every version and on every machine, unlike the standard library's.
#[derive(Clone, Copy, Debug)]
pub struct Hash(u64);

impl Hash {
    /// The hash of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a text and its end, so that "ab", "c" and "a", "bc" differ.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        text.bytes().chain([0xff]).fold(self, Self::byte)
    }

    fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// The hash.
    #[must_use]
    pub fn value(self) -> u64 {
        // FNV's high bits depend little on the last bytes; names and identifiers use a part of the bits.
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^ (mixed >> 33)
    }
}

impl std::hash::Hasher for Hash {
    fn write(&mut self, bytes: &[u8]) {
        *self = bytes.iter().copied().fold(*self, Self::byte);
    }

    fn finish(&self) -> u64 {
        self.value()
    }
}

impl Default for Hash {
    fn default() -> Self {
        Self::new()
    }
}

/// The hash of a sender's identity.
#[must_use]
pub fn sender_hash(key: &SenderKey) -> u64 {
    Hash::new().text("sender").text(&key.tap).text(&key.pod).value()
}

/// Name of a sender device: at most 15 bytes.
#[must_use]
pub fn sender_device(key: &SenderKey) -> String {
    device(sender_hash(key))
}

/// The hash of a receiver's identity on its node.
#[must_use]
pub fn receiver_hash(vni: u32) -> u64 {
    Hash::new().text("receiver").text(&vni.to_string()).value()
}

/// Name of a receiver's VXLAN device: for good, or until it is complete and gets the wanted one.
#[must_use]
pub fn receiver_device(vni: u32) -> String {
    device(receiver_hash(vni))
}

/// Names of the ends of a receiver's pair: of the near one for good, of the far one until it is complete and gets the wanted one.
#[must_use]
pub fn receiver_pair(vni: u32) -> [String; 2] {
    ["near", "far"].map(|end| device(Hash::new().text("receiver").text(&vni.to_string()).text(end).value()))
}

fn device(hash: u64) -> String {
    format!("{TEMPORARY_PREFIX}{:011x}", hash >> 20)
}

/// The network identifiers to try for a sender device, one after the other.
pub fn sender_vnis(key: &SenderKey) -> impl Iterator<Item = u32> + use<> {
    let (first, last) = (*SENDER_VNIS.start(), *SENDER_VNIS.end());
    let count = last - first + 1;
    let offset = u32::try_from(sender_hash(key) % u64::from(count)).unwrap_or_default();
    (0..VNI_ATTEMPTS).map(move |step| first + (offset + step) % count)
}

/// With 10,000 senders on one node, that many collisions in a row do not happen.
const VNI_ATTEMPTS: u32 = 64;
