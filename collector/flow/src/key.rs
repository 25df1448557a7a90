//! Which flow a packet belongs to.

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
};

use crate::record::{Endpoint, Source};

/// A flow's tuple. The lower end comes first, so that both directions have one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub ends: [Endpoint; 2],
    pub protocol: u8,
    pub source: Source,
}

/// An end of a key.
pub(crate) type Side = u8;

/// In few words: every frame is hashed.
impl Hash for Key {
    fn hash<State: Hasher>(&self, state: &mut State) {
        let [lower, upper] = self.ends;
        if let (IpAddr::V4(lower), IpAddr::V4(upper)) = (lower.address, upper.address) {
            state.write_u64(u64::from(lower.to_bits()) << 32 | u64::from(upper.to_bits()));
        } else {
            (lower.address, upper.address).hash(state);
        }
        let ports = u64::from(lower.port) << 48 | u64::from(upper.port) << 32;
        state.write_u64(ports | u64::from(self.source) << 8 | u64::from(self.protocol));
    }
}

impl Key {
    /// The key, and the side that sent the packet.
    pub fn new(source: Source, protocol: u8, from: Endpoint, to: Endpoint) -> (Self, Side) {
        let side = u8::from(from > to);
        let ends = if side == 0 { [from, to] } else { [to, from] };
        (Self { ends, protocol, source }, side)
    }
}
