//! The server name that a TLS client asks for (RFC 6066, section 3), from the first bytes of its stream.

use crate::reader::Reader;

/// Content type of handshake records (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Extension types.
const SERVER_NAME: u16 = 0;
/// Name type of the extension.
const HOST_NAME: u8 = 0;
/// Longest name of DNS.
const MAX_NAME: usize = 253;

/// What the first bytes of a stream tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// They may become a `ClientHello`: more are needed.
    Incomplete,
    /// No `ClientHello`, or one without a name.
    Nameless,
    /// The name that the client asks for.
    Name(String),
}

/// Searches the first bytes of a client's stream. The message may be split into several records, and the bytes may end anywhere.
#[must_use]
pub fn server_name(stream: &[u8]) -> Hello {
    if stream.first().is_some_and(|kind| *kind != HANDSHAKE) {
        return Hello::Nameless;
    }
    let mut message = Vec::new();
    let mut rest = Reader(stream);
    // Content type, version, length.
    while let Some(header) = rest.take(5) {
        if header[0] != HANDSHAKE || header[1] != 3 {
            return Hello::Nameless;
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let available = rest.0.len().min(length);
        message.extend_from_slice(&rest.0[..available]);
        if available < length {
            break;
        }
        rest.take(length);
    }
    match message.first() {
        None => return Hello::Incomplete,
        Some(&CLIENT_HELLO) => {}
        Some(_) => return Hello::Nameless,
    }
    let length = match message.get(1..4) {
        Some(length) => usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]),
        None => return Hello::Incomplete,
    };
    let complete = message.len() - 4 >= length;
    let hello = &message[4..message.len().min(4 + length)];
    match name(hello) {
        Some(name) => host(name).map_or(Hello::Nameless, Hello::Name),
        // It ends before the name, or has none.
        None if complete => Hello::Nameless,
        None => Hello::Incomplete,
    }
}

/// The name in a message; `None`, if it has none or is cut off before it.
fn name(hello: &[u8]) -> Option<&[u8]> {
    let mut hello = Reader(hello);
    // Version and random, session, cipher suites, compression methods.
    hello.take(34)?;
    hello.vector8()?;
    hello.vector16()?;
    hello.vector8()?;
    // Without extensions, the message ends here: the caller knows whether it is complete.
    hello.take(2)?;
    while !hello.0.is_empty() {
        let kind = hello.word()?;
        let mut extension = Reader(hello.vector16()?);
        if kind != SERVER_NAME {
            continue;
        }
        let mut names = Reader(extension.vector16()?);
        while let (Some(kind), Some(name)) = (names.take(1), names.vector16()) {
            if kind[0] == HOST_NAME {
                return Some(name);
            }
        }
        return Some(&[]);
    }
    None
}

/// A host name, in lower case. `None`: it is none.
fn host(name: &[u8]) -> Option<String> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (!name.is_empty() && name.len() <= MAX_NAME && name.iter().all(allowed))
        .then(|| String::from_utf8_lossy(name).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A `ClientHello` with extensions: another one, then the name, then another one, in records of at most `record` bytes.
    fn hello(name: Option<&str>, padding: usize, record: usize) -> Vec<u8> {
        let vector16 = |bytes: &[u8]| [&u16::try_from(bytes.len()).expect("short").to_be_bytes()[..], bytes].concat();
        let mut extensions = [&[0, 51][..], &vector16(&vec![7; padding])].concat();
        if let Some(name) = name {
            let entry = [&[HOST_NAME][..], &vector16(name.as_bytes())].concat();
            extensions.extend([&[0, 0][..], &vector16(&vector16(&entry))].concat());
        }
        extensions.extend([0, 43, 0, 1, 2]);
        let body = [&[3, 3][..], &[9; 32], &[2, 1, 2], &vector16(&[0x13, 1]), &[1, 0], &vector16(&extensions)].concat();
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        let message = [&[CLIENT_HELLO][..], &length[1..], &body].concat();
        message.chunks(record).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &vector16(part)].concat()).collect()
    }

    proptest! {
        #[test]
        fn the_name_is_found_however_it_is_split(padding in 0_usize..3000, record in 1_usize..2000, cut in 0_usize..5000) {
            let stream = hello(Some("Shop.example.com"), padding, record);
            prop_assert_eq!(server_name(&stream), Hello::Name("shop.example.com".into()));
            let part = server_name(&stream[..cut.min(stream.len())]);
            prop_assert!(part != Hello::Nameless, "cut at {}", cut);
        }

        #[test]
        fn any_bytes_are_read(stream in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = server_name(&stream);
            let _ = server_name(&[&[HANDSHAKE, 3, 1, 1, 0, CLIENT_HELLO][..], &stream].concat());
        }
    }

    #[test]
    fn streams_without_a_name_are_told_apart_from_incomplete_ones() {
        assert_eq!(server_name(b""), Hello::Incomplete);
        assert_eq!(server_name(b"GET / HTTP/1.1"), Hello::Nameless);
        assert_eq!(server_name(&hello(None, 5, 2000)), Hello::Nameless);
        assert_eq!(server_name(&hello(Some("a\nb"), 5, 2000)), Hello::Nameless);
    }
}
