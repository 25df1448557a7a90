//! Comparing with what `ip`, `bridge` and `tc` (iproute2 6.1) send.
//!
//! Each expected message was printed by `strace -e trace=sendmsg -e write=all COMMAND` in a scratch namespace, where `mirror0`
//! is device 4 and `eth0` device 3. Only the sequence number is left out, at bytes 8 to 11.

use super::{ACK, Attributes, HEADER, Message};

/// Asserts that a message is the one that a command sends.
#[track_caller]
pub(in crate::netlink) fn assert_sends(message: Message, expected: &str) {
    let expected: Vec<u8> = expected
        .split_ascii_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).expect("the dump is hexadecimal"))
        .collect();
    let sequence = u32::from_ne_bytes(expected[8..12].try_into().expect("four bytes"));
    let bytes = message.flags(ACK).finish(sequence);
    assert_eq!(lines(&bytes), lines(&expected));
}

fn lines(bytes: &[u8]) -> Vec<String> {
    bytes.chunks(16).map(|line| format!("{line:02x?}")).collect()
}

#[test]
fn attributes_are_read_as_they_were_written() {
    let message = Message::new(16, 0, &[]).put_u8(1, 7).put_string(2, "eth0").nest(3, |inner| inner.put_u32(9, 5));
    let bytes = message.put_port(4, 14789).finish(1);
    let attributes = Attributes(&bytes[HEADER..]);
    assert_eq!((attributes.u8(1), attributes.string(2).as_deref()), (Some(7), Some("eth0")));
    assert_eq!((attributes.nested(3).and_then(|inner| inner.u32(9)), attributes.port(4)), (Some(5), Some(14789)));
    assert_eq!((attributes.u32(1), attributes.u64(3), attributes.get(5)), (None, Some(5 << 32 | 9 << 16 | 8), None));
}

/// Whatever arrives, reading it ends and does not panic.
#[test]
fn broken_attributes_end_the_reading() {
    for bytes in [&[0u8; 0][..], &[1], &[3, 0, 1, 0], &[8, 0, 1, 0, 1], &[0, 0, 0, 0, 5, 0, 2, 0, 1], &[255; 40]] {
        let _ = Attributes(bytes).iter().count();
        assert_eq!(Attributes(bytes).get(2), None);
    }
    assert_eq!(Attributes(&[5, 0, 1, 0, 9]).u8(1), Some(9), "the last one may lack its padding");
}
