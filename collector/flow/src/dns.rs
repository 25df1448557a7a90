//! DNS: questions and their answers (RFC 1035).
//!
//! Not by a crate: those that follow the pointers of compressed names take time that grows with the square of a message's length, for
//! which a pod needs a few frames. Here, only the name of the first question is read, which comes first, and addresses.

use std::net::IpAddr;

use crate::reader::Reader;

/// Port of DNS.
pub const PORT: u16 = 53;

/// A message with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which question a response answers.
    pub id: u16,
    /// Whether it is an answer.
    pub is_response: bool,
    /// Of a response: 0 NOERROR, 3 NXDOMAIN, ...
    pub code: u8,
    /// The name in the question, in lower case, without the final dot.
    pub name: String,
    /// Addresses in the answer, also those behind aliases, each with its time to live in seconds.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// Most addresses of an answer that are used, and most records of it that are read.
const ADDRESSES: usize = 64;
const RECORDS: usize = 256;
/// Longest name.
const LONGEST: usize = 253;

/// Types and the class of records.
const A: u16 = 1;
const AAAA: u16 = 28;
const INTERNET: u16 = 1;

/// Parses a message. `None`: it is none, its question is cut off, or it has none. An answer that is cut off has the addresses before.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Message> {
    let mut reader = Reader(payload);
    let (id, flags, questions, answers) = (reader.word()?, reader.word()?, reader.word()?, reader.word()?);
    reader.take(4)?;
    if questions == 0 {
        return None;
    }
    let name = reader.name()?;
    reader.take(4)?;
    let mut addresses = Vec::new();
    // A message with several questions does not exist in practice.
    if questions == 1 {
        for _ in 0..usize::from(answers).min(RECORDS) {
            if reader.record(&mut addresses).is_none() || addresses.len() == ADDRESSES {
                break;
            }
        }
    }
    let code = u8::try_from(flags & 15).unwrap_or_default();
    Some(Message { id, is_response: flags & 0x8000 != 0, code, name, addresses })
}

impl Reader<'_> {
    /// A name that is not compressed: the first one of a message cannot be.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            let length = self.byte()?;
            if length == 0 {
                return Some(name);
            }
            if length > 63 {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(self.take(length.into())?.iter().map(|byte| printable(*byte)));
            if name.len() > LONGEST {
                return None;
            }
        }
    }

    /// Skips a name, which may end in a pointer.
    fn skip_name(&mut self) -> Option<()> {
        loop {
            let length = self.byte()?;
            match length {
                0 => return Some(()),
                1..=63 => drop(self.take(length.into())?),
                _ => return self.take(1).map(drop),
            }
        }
    }

    /// Reads a record, and adds its address, if it is one of an address, and its time to live. `None`: it is cut off.
    fn record(&mut self, addresses: &mut Vec<(IpAddr, u32)>) -> Option<()> {
        self.skip_name()?;
        let (kind, class) = (self.word()?, self.word()?);
        let ttl = u32::from(self.word()?) << 16 | u32::from(self.word()?);
        let data = self.vector16()?;
        let address = match (class, kind) {
            (INTERNET, A) => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            (INTERNET, AAAA) => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => None,
        };
        addresses.extend(address.map(|address| (address, ttl)));
        Some(())
    }
}

/// Labels may have any bytes, which could be taken for something else where the name is shown.
fn printable(byte: u8) -> char {
    if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*') {
        byte.to_ascii_lowercase().into()
    } else {
        '?'
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, ResourceRecord, rdata::RData};

    use super::*;

    proptest! {
        /// Against another parser, which writes the message, too.
        #[test]
        fn a_message_is_read_as_it_was_written(
            labels in prop::collection::vec("[a-zA-Z0-9_-]{1,20}", 1..6),
            records in prop::collection::vec((any::<bool>(), any::<u128>(), any::<u32>()), 0..20),
            id: u16,
            compressed: bool,
        ) {
            let text = labels.join(".");
            let name = Name::new(&text).expect("a name");
            let mut message = Packet::new_reply(id);
            message.set_flags(PacketFlag::RECURSION_AVAILABLE);
            message.questions.push(Question::new(name.clone(), simple_dns::TYPE::A.into(), CLASS::IN.into(), false));
            let mut expected = Vec::new();
            for (is_ipv4, address, ttl) in records {
                let (data, address) = if is_ipv4 {
                    let address = u32::try_from(address & 0xffff_ffff).expect("32 bits");
                    (RData::A(simple_dns::rdata::A { address }), IpAddr::from(address.to_be_bytes()))
                } else {
                    (RData::AAAA(simple_dns::rdata::AAAA { address }), IpAddr::from(address.to_be_bytes()))
                };
                message.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, ttl, data));
                expected.push((address, ttl));
            }
            let bytes = if compressed { message.build_bytes_vec_compressed() } else { message.build_bytes_vec() };
            let parsed = parse(&bytes.expect("it can be written")).expect("it can be read");
            prop_assert_eq!((parsed.id, parsed.is_response, parsed.code), (id, true, 0));
            prop_assert_eq!(parsed.name, text.to_ascii_lowercase());
            prop_assert_eq!(parsed.addresses, expected);
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn names_are_shown_without_what_they_could_be_taken_for() {
        let message = [&[0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4][..], b"a\n\".", &[1, b'c', 0, 0, 1, 0, 1]].concat();
        assert_eq!(parse(&message).expect("a question").name, "a???.c");
    }
}
