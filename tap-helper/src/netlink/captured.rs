//! Comparing with what `ip`, `bridge`, `tc` (iproute2 6.1) and `ethtool` send.
//!
//! Each expected message was printed by `strace -e trace=sendmsg -e write=all COMMAND` in a scratch namespace, where `mirror0`
//! is device 4 and `eth0` device 3. The sequence number is left out, at bytes 8 to 11. `ip` sends the kind and the alias of a device
//! without their terminating zeros, `rtnetlink` with them: the tests say where.

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
        NetlinkSerializable,
    },
    packet_route::RouteNetlinkMessage,
};

use super::decode::Message;

/// Asserts that a request is the one that a command sends.
#[track_caller]
pub(super) fn assert_sends<T: NetlinkSerializable>(message: T, flags: u16, expected: &str) {
    let expected: Vec<u8> = expected
        .split_ascii_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).expect("the dump is hexadecimal"))
        .collect();
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    request.header.sequence_number = u32::from_ne_bytes(expected[8..12].try_into().expect("four bytes"));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    assert_eq!(lines(&bytes), lines(&expected));
}

fn lines(bytes: &[u8]) -> Vec<String> {
    bytes.chunks(16).map(|line| format!("{line:02x?}")).collect()
}

/// What is read of a message, as if the kernel had sent it.
#[track_caller]
pub(super) fn read_back(message: &RouteNetlinkMessage) -> RouteNetlinkMessage {
    let mut bytes = vec![0; NetlinkSerializable::buffer_len(message)];
    message.serialize(&mut bytes);
    decoded(message.message_type(), &bytes)
}

/// What is read of the bytes behind the header of a message.
#[track_caller]
pub(super) fn decoded(message_type: u16, payload: &[u8]) -> RouteNetlinkMessage {
    let mut header = NetlinkHeader::default();
    header.message_type = message_type;
    Message::deserialize(&header, payload).expect("it can be read").0
}
