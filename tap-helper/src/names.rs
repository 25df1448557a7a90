//! Names, VNIs and ports of PodTap's devices. They are derived, so that every run of the helper derives the same ones.

use crate::resource::SenderKey;

/// Prefix of every device name that PodTap chooses.
pub const TEMPORARY_PREFIX: &str = "ptap";

/// VNIs of sender devices. They never appear on the wire, but no two VXLAN devices of a node may share one, so this range is far
/// from the VNIs that users choose.
pub const SENDER_VNIS: std::ops::RangeInclusive<u32> = 16_000_001..=16_777_215;

/// UDP port on which sender devices listen, although nothing is meant to arrive. It is below the ephemeral range, where the socket
/// of a resolver could occupy it when a tap is created.
pub const SENDER_PORT: u16 = 14788;

/// UDP source ports of mirrored frames: the first one, and the first one that is not used. Each takes one conntrack entry per
/// destination on the node; with the kernel's default range there would be one per mirrored flow.
pub const SOURCE_PORTS: (u16, u16) = (50000, 50016);

/// MTU of PodTap's devices. It is this large because the path limits mirrored frames, not the devices.
pub const DEVICE_MTU: u32 = 65000;

/// FNV-1a, 64 bit: the same in every version and on every machine, unlike the hash of the standard library.
#[derive(Clone, Copy, Debug)]
pub struct Hash(u64);

impl Hash {
    /// The hash of no input.
    #[must_use]
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a text and a terminator, so that "ab", "c" and "a", "bc" differ.
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
        // FNV's high bits depend little on the last bytes, and names and VNIs use only some of the bits.
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

/// Name of a receiver's VXLAN device.
#[must_use]
pub fn receiver_device(vni: u32) -> String {
    device(receiver_hash(vni))
}

/// Names of the devices of a receiver's veth pair: the peer, and the interface, which is renamed to the requested name once it is
/// complete.
#[must_use]
pub fn receiver_veth_pair(vni: u32) -> [String; 2] {
    ["peer", "interface"].map(|part| device(Hash::new().text("receiver").text(&vni.to_string()).text(part).value()))
}

fn device(hash: u64) -> String {
    format!("{TEMPORARY_PREFIX}{:011x}", hash >> 20)
}

/// The VNIs to try for a sender device, in this order.
pub fn sender_vnis(key: &SenderKey) -> impl Iterator<Item = u32> + use<> {
    let (first, last) = (*SENDER_VNIS.start(), *SENDER_VNIS.end());
    let count = last - first + 1;
    let offset = u32::try_from(sender_hash(key) % u64::from(count)).unwrap_or_default();
    (0..VNI_ATTEMPTS).map(move |step| first + (offset + step) % count)
}

/// Even with 10,000 senders on one node, this many collisions in a row do not happen.
const VNI_ATTEMPTS: u32 = 64;
