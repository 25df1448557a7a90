//! The receivers of the taps whose destination is this pod.
//!
//! One ring for all of them, on a socket that is bound to no interface: what it costs does not depend on how many taps there are, and a
//! tap is captured from its first frame, without a moment between its interface and a ring for it.

use std::{collections::HashMap, io};

use super::ring::{CapturedFrame, Ring};

/// Interfaces that are remembered.
const INTERFACES: usize = 4096;

/// Captures the frames of all receivers, also of those that are created later.
#[derive(Debug)]
pub struct Receivers {
    pub ring: Ring,
    /// Whether the interface of an index is a receiver.
    known: HashMap<u32, bool>,
}

impl Receivers {
    pub fn open() -> io::Result<Self> {
        Ok(Self { ring: Ring::open_all()?, known: HashMap::new() })
    }

    /// Passes on the frames of receivers, of one block, if there is one: see [`Ring::read`]. Returns whether there was.
    pub fn read(&mut self, mut take: impl FnMut(&[CapturedFrame<'_>])) -> bool {
        let Self { ring, known } = self;
        ring.read(|frames| {
            let of_receivers = frames.iter().filter(|frame| is_receiver(known, frame.interface));
            take(&of_receivers.copied().collect::<Vec<_>>());
        })
    }
}

fn is_receiver(known: &mut HashMap<u32, bool>, index: u32) -> bool {
    if let Some(is_receiver) = known.get(&index) {
        return *is_receiver;
    }
    // The name of one that is gone already cannot be asked for: its last frames are left out.
    let Ok(name) = nix::net::if_::if_indextoname(index) else { return false };
    if known.len() >= INTERFACES {
        known.clear();
    }
    let is_receiver = name.to_str().is_ok_and(is_name_of_receiver);
    known.insert(index, is_receiver);
    is_receiver
}

/// Whether this is the default name of a receiver: ptap and the VXLAN network identifier. The devices behind a receiver have names with a
/// hash, which is longer.
fn is_name_of_receiver(name: &str) -> bool {
    name.strip_prefix("ptap")
        .is_some_and(|vni| (1..=8).contains(&vni.len()) && vni.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_receivers() {
        assert!(is_name_of_receiver("ptap4096") && is_name_of_receiver("ptap16777215"));
        for other in ["ptap", "eth0", "lo", "ptap837b6a6d76c", "ptap12345678901", "ptap12x", "mirror"] {
            assert!(!is_name_of_receiver(other), "{other}");
        }
    }
}
