//! Information elements (RFC 7012, IANA's registry "IPFIX Information Elements"): their types, and how values are written.

use std::{borrow::Cow, net::IpAddr};

use super::{messages::SetRecord, report::Report};

/// Enterprise number of the elements of the other direction (RFC 5103).
pub const REVERSE: u32 = 29305;
/// The set of type records, which is also the ID of their template.
const TYPES: u16 = 256;
/// The set of options templates.
const OPTIONS_TEMPLATES: u16 = 3;
/// The length of a text in a template.
const VARIABLE: u16 = 0xffff;
/// Longest text, in bytes: a record with the longest ones fits into a datagram.
pub const LONGEST_TEXT: usize = 175;

/// An information element, and where its value is from.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Number of the enterprise that has defined it; 0: IANA.
    pub enterprise: u32,
    pub id: u16,
    name: &'static str,
    read: Read,
}

/// How a value is read from a report, and with that its type.
#[derive(Clone, Copy, Debug)]
enum Read {
    Unsigned8(fn(&Report<'_>) -> u8),
    Unsigned16(fn(&Report<'_>) -> u16),
    Unsigned64(fn(&Report<'_>) -> u64),
    Milliseconds(fn(&Report<'_>) -> u64),
    Address(Family, fn(&Report<'_>) -> Option<IpAddr>),
    Text(for<'a> fn(&Report<'a>) -> Cow<'a, str>),
}

impl Field {
    const fn new(id: u16, name: &'static str, read: Read) -> Self {
        Self { enterprise: 0, id, name, read }
    }

    pub const fn unsigned8(id: u16, name: &'static str, read: fn(&Report<'_>) -> u8) -> Self {
        Self::new(id, name, Read::Unsigned8(read))
    }

    pub const fn unsigned16(id: u16, name: &'static str, read: fn(&Report<'_>) -> u16) -> Self {
        Self::new(id, name, Read::Unsigned16(read))
    }

    pub const fn unsigned64(id: u16, name: &'static str, read: fn(&Report<'_>) -> u64) -> Self {
        Self::new(id, name, Read::Unsigned64(read))
    }

    /// Since 1970.
    pub const fn milliseconds(id: u16, name: &'static str, read: fn(&Report<'_>) -> u64) -> Self {
        Self::new(id, name, Read::Milliseconds(read))
    }

    /// ID and name depend on the family.
    pub const fn address(
        family: Family,
        v4: (u16, &'static str),
        v6: (u16, &'static str),
        read: fn(&Report<'_>) -> Option<IpAddr>,
    ) -> Self {
        let (id, name) = family.choose(v4, v6);
        Self::new(id, name, Read::Address(family, read))
    }

    pub const fn text(id: u16, name: &'static str, read: for<'a> fn(&Report<'a>) -> Cow<'a, str>) -> Self {
        Self::new(id, name, Read::Text(read))
    }

    /// The same one of an enterprise.
    #[must_use]
    pub const fn of(self, enterprise: u32) -> Self {
        Self { enterprise, ..self }
    }

    /// The number of its type (IANA's registry "IPFIX Information Element Data Types"), and its length in a template.
    const fn kind(&self) -> (u8, u16) {
        match self.read {
            Read::Unsigned8(_) => (1, 1),
            Read::Unsigned16(_) => (2, 2),
            Read::Unsigned64(_) => (4, 8),
            Read::Text(_) => (13, VARIABLE),
            Read::Milliseconds(_) => (15, 8),
            Read::Address(Family::V4, _) => (18, 4),
            Read::Address(Family::V6, _) => (19, 16),
        }
    }

    /// Writes its specifier, of which templates are made.
    pub fn specify(&self, out: &mut Vec<u8>) {
        specify(self.enterprise, self.id, self.kind().1, out);
    }

    /// Writes its value.
    pub fn write(&self, report: &Report<'_>, out: &mut Vec<u8>) {
        match self.read {
            Read::Unsigned8(read) => out.push(read(report)),
            Read::Unsigned16(read) => out.extend(read(report).to_be_bytes()),
            Read::Unsigned64(read) | Read::Milliseconds(read) => out.extend(read(report).to_be_bytes()),
            Read::Address(family, read) => family.write(read(report), out),
            Read::Text(read) => write_text(&read(report), out),
        }
    }

    /// What a collector needs to know of an element that IANA has not registered (RFC 5610, section 3.9).
    pub fn type_record(&self) -> SetRecord {
        let semantics = match self.read {
            // Identifier.
            Read::Unsigned8(_) | Read::Unsigned16(_) => 4,
            // Quantity.
            Read::Unsigned64(_) => 1,
            Read::Milliseconds(_) | Read::Address(..) | Read::Text(_) => 0,
        };
        let mut bytes =
            [&self.enterprise.to_be_bytes()[..], &self.id.to_be_bytes(), &[self.kind().0, semantics]].concat();
        write_text(self.name, &mut bytes);
        SetRecord { set: TYPES, bytes }
    }
}

/// The template of type records: an options template record (RFC 7011, section 3.4.2.2) whose first two fields are the scope.
pub fn types_template() -> SetRecord {
    // privateEnterpriseNumber, informationElementId, informationElementDataType, informationElementSemantics, informationElementName
    let fields = [(346, 4), (303, 2), (339, 1), (344, 1), (341, VARIABLE)];
    let mut bytes = [TYPES, 5, 2].map(u16::to_be_bytes).concat();
    for (id, length) in fields {
        specify(0, id, length, &mut bytes);
    }
    SetRecord { set: OPTIONS_TEMPLATES, bytes }
}

/// A field specifier (RFC 7011, section 3.2).
fn specify(enterprise: u32, id: u16, length: u16, out: &mut Vec<u8>) {
    let has_enterprise = enterprise != 0;
    out.extend((id | u16::from(has_enterprise) << 15).to_be_bytes());
    out.extend(length.to_be_bytes());
    if has_enterprise {
        out.extend(enterprise.to_be_bytes());
    }
}

/// Writes a text behind its length (RFC 7011, section 7).
fn write_text(text: &str, out: &mut Vec<u8>) {
    let length = (0..=LONGEST_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    out.push(u8::try_from(length).unwrap_or(u8::MAX));
    out.extend(&text.as_bytes()[..length]);
}

/// Of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// If one of both addresses is of IPv6, both are written as such.
    pub fn of(addresses: [Option<IpAddr>; 2]) -> Self {
        if addresses.into_iter().flatten().any(|address| address.is_ipv6()) { Self::V6 } else { Self::V4 }
    }

    const fn choose<T: Copy>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// An address that is unknown is 0.
    fn write(self, address: Option<IpAddr>, out: &mut Vec<u8>) {
        match (self, address) {
            (Self::V4, Some(IpAddr::V4(address))) => out.extend(address.octets()),
            (Self::V4, _) => out.extend([0; 4]),
            (Self::V6, Some(IpAddr::V4(address))) => out.extend(address.to_ipv6_mapped().octets()),
            (Self::V6, Some(IpAddr::V6(address))) => out.extend(address.octets()),
            (Self::V6, None) => out.extend([0; 16]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Flow;

    fn written(field: Field) -> Vec<u8> {
        let mut out = Vec::new();
        field.write(&Report { flow: &Flow::default(), reverse: None }, &mut out);
        out
    }

    #[test]
    fn values_have_the_length_that_the_template_says() {
        let [mut own, mut of_enterprise] = [Vec::new(), Vec::new()];
        let port = Field::unsigned16(7, "sourceTransportPort", |_| 0x0102);
        port.specify(&mut own);
        port.of(REVERSE).specify(&mut of_enterprise);
        assert_eq!(own, [0, 7, 0, 2]);
        assert_eq!(of_enterprise, [0x80, 7, 0, 2, 0, 0, 0x72, 0x79]);
        assert_eq!(written(port), [1, 2]);
        assert_eq!(written(Field::unsigned8(4, "", |_| 17)), [17]);
        assert_eq!(written(Field::unsigned64(1, "", |_| 1 << 32)), [0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(written(Field::text(96, "", |_| "shop".into())), *b"\x04shop");
        assert_eq!(written(Field::text(96, "", |_| "".into())), [0]);
        let address = |family| Field::address(family, (8, ""), (27, ""), |_| Some([10, 0, 0, 1].into()));
        assert_eq!(written(address(Family::V4)), [10, 0, 0, 1]);
        assert_eq!(written(address(Family::V6)), [[0; 8].as_slice(), &[0, 0, 0xff, 0xff, 10, 0, 0, 1]].concat());
    }

    #[test]
    fn a_long_text_is_truncated_between_characters() {
        let found = written(Field::text(96, "", |_| format!("a{}", "é".repeat(200)).into()));
        assert_eq!((found.len(), found[0]), (1 + LONGEST_TEXT, 175));
        let found = written(Field::text(96, "", |_| "é".repeat(200).into()));
        assert_eq!((found.len(), found[0]), (LONGEST_TEXT, 174));
        assert!(std::str::from_utf8(&found[1..]).is_ok());
    }

    #[test]
    fn types_are_told() {
        let template = types_template();
        assert_eq!(template.set, 3);
        // ID, 5 fields, 2 of them the scope.
        let fields = [1, 90, 0, 4, 1, 47, 0, 2, 1, 83, 0, 1, 1, 88, 0, 1, 1, 85, 0xff, 0xff];
        assert_eq!(template.bytes, [&[1, 0, 0, 5, 0, 2][..], &fields].concat());
        let record = Field::unsigned16(108, "port", |_| 0).of(56506).type_record();
        assert_eq!((record.set, &*record.bytes), (256, &b"\0\0\xdc\xba\0\x6c\x02\x04\x04port"[..]));
    }
}
