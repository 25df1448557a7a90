//! The first bytes of a client's stream, until they tell which server it asks for.

use std::{borrow::Cow, mem};

use crate::{
    packet::{Flags, Segment},
    tls::{Hello, server_name},
};

/// Most bytes that are kept of one flow: a `ClientHello` with a post-quantum key share has about 1,800.
const MAX_BYTES: usize = 4096;

#[derive(Debug, Default)]
pub(crate) enum Beginning {
    /// The client's SYN was not seen.
    #[default]
    Unknown,
    /// No payload was seen. The sequence number of the first byte.
    Awaited {
        next: u32,
    },
    Partial(Box<Partial>),
    Name(Box<str>),
    Nameless,
}

/// The sequence number of the stream's next byte, and the bytes before it.
#[derive(Debug)]
pub(crate) struct Partial {
    next: u32,
    bytes: Vec<u8>,
}

impl Beginning {
    /// Reads a segment of the client. Without `may_keep`, what does not end in it is not read.
    pub fn read(&mut self, segment: &Segment<'_>, may_keep: bool) {
        if segment.flags.has(Flags::SYN) {
            if matches!(self, Self::Unknown) {
                *self = Self::Awaited { next: segment.sequence.wrapping_add(1) };
            }
            return;
        }
        let next = match self {
            Self::Awaited { next } => *next,
            Self::Partial(partial) => partial.next,
            Self::Unknown | Self::Name(_) | Self::Nameless => return,
        };
        if segment.payload.is_empty() || segment.sequence != next {
            return;
        }
        let before = if let Self::Partial(partial) = self { mem::take(&mut partial.bytes) } else { Vec::new() };
        // Nearly always, the first segment has all of it.
        let mut bytes = Cow::Borrowed(segment.payload);
        if !before.is_empty() {
            bytes = Cow::Owned([&before, segment.payload].concat());
        }
        let is_whole = segment.payload.len() == segment.length as usize;
        *self = match server_name(&bytes) {
            Hello::Name(name) => Self::Name(name.into()),
            Hello::Incomplete if is_whole && may_keep && bytes.len() <= MAX_BYTES => {
                Self::Partial(Box::new(Partial { next: next.wrapping_add(segment.length), bytes: bytes.into_owned() }))
            }
            Hello::Incomplete | Hello::Nameless => Self::Nameless,
        };
    }

    /// Bytes of memory that are used.
    pub fn kept(&self) -> usize {
        if let Self::Partial(partial) = self { partial.bytes.capacity() + size_of::<Partial>() } else { 0 }
    }

    /// Bytes of the name.
    pub fn name_length(&self) -> usize {
        if let Self::Name(name) = self { name.len() } else { 0 }
    }

    /// Forgets the name, for want of room.
    pub fn forget_name(&mut self) {
        *self = Self::Nameless;
    }

    pub fn name(&self) -> Option<Box<str>> {
        if let Self::Name(name) = self { Some(name.clone()) } else { None }
    }
}
