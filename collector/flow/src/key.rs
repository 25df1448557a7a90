//! Which flow a packet belongs to.

use crate::record::{Endpoint, Source};

/// A flow's tuple. The lower end comes first, so that both directions have one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub ends: [Endpoint; 2],
    pub protocol: u8,
    pub source: Source,
}

/// An end of a key.
pub(crate) type Side = u8;

impl Key {
    /// The key, and the side that sent the packet.
    pub fn new(source: Source, protocol: u8, from: Endpoint, to: Endpoint) -> (Self, Side) {
        let side = u8::from(from > to);
        let ends = if side == 0 { [from, to] } else { [to, from] };
        (Self { ends, protocol, source }, side)
    }
}
