//! DNS: questions and their answers (RFC 1035).

use std::net::IpAddr;

use simple_dns::{Packet, PacketFlag, rdata::RData};

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

/// Lower case, without the final dot. Labels may have any bytes, which could be taken for something else where the name is shown.
fn printable(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*');
    let name = name.trim_end_matches('.').chars().map(|c| if allowed(c) { c.to_ascii_lowercase() } else { '?' });
    name.take(LONGEST).collect()
}

/// Longest name of DNS.
const LONGEST: usize = 253;
/// Most addresses of an answer that are used.
const ADDRESSES: usize = 64;

/// Parses a message. `None`: it is none, is cut off, or has no question.
#[must_use]
pub fn parse(payload: &[u8]) -> Option<Message> {
    let packet = Packet::parse(payload).ok()?;
    let question = packet.questions.first()?;
    let addresses = packet.answers.iter().filter_map(|record| {
        let address = match &record.rdata {
            RData::A(a) => IpAddr::V4(a.address.into()),
            RData::AAAA(aaaa) => IpAddr::V6(aaaa.address.into()),
            _ => return None,
        };
        Some((address, record.ttl))
    });
    Some(Message {
        id: packet.id(),
        is_response: packet.has_flags(PacketFlag::RESPONSE),
        // The crate does not give the value of codes that it does not know.
        code: payload.get(3).map_or(0, |flags| flags & 15),
        name: printable(&question.qname.to_string()),
        addresses: addresses.take(ADDRESSES).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_what_they_could_be_taken_for() {
        assert_eq!(printable("Cart.Shop.SVC."), "cart.shop.svc");
        assert_eq!(printable("a\n\"b\u{1b}.c"), "a??b?.c");
        assert_eq!(printable(&"a".repeat(1000)).len(), LONGEST);
    }
}
