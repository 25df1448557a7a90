//! Requests to the netfilter family of netlink: nftables and conntrack. The kernel answers them while they are sent or read, so nothing
//! waits.

use std::io;

use nix::errno::Errno;
use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};

use super::{
    error::{NetlinkError, NetnsError},
    generic::GenericMessage,
};
use crate::namespace::{Namespace, within};

/// Opens a socket in a network namespace.
pub(super) fn open(namespace: &Namespace) -> Result<Socket, NetnsError> {
    let opened = within(namespace, || {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        socket.set_non_blocking(true)?;
        Ok(socket)
    })?;
    Ok(opened.map_err(|error: io::Error| NetlinkError::socket("open a netlink socket of netfilter", &error))?)
}

/// The bytes of a request.
pub(super) fn request(message: GenericMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    (message.header.flags, message.header.sequence_number) = (NLM_F_REQUEST | flags, sequence);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// What the kernel answers in one datagram.
pub(super) struct Answers {
    pub messages: Vec<GenericMessage>,
    /// Whether it confirms the request with the number that was waited for: nothing follows.
    pub is_last: bool,
}

/// Reads a datagram. `last`: the number of the request.
pub(super) fn read(socket: &Socket, last: u32, operation: &str) -> Result<Answers, NetlinkError> {
    let (received, _) = socket.recv_from_full().map_err(|error| NetlinkError::socket(operation, &error))?;
    answers(&received, last, operation)
}

/// Decodes a datagram. `last`: the number of the request.
pub(super) fn answers(received: &[u8], last: u32, operation: &str) -> Result<Answers, NetlinkError> {
    let mut answers = Answers { messages: Vec::new(), is_last: false };
    let mut rest = received;
    while !rest.is_empty() && !answers.is_last {
        let answer = NetlinkMessage::<GenericMessage>::deserialize(rest);
        let answer = answer.map_err(|_| NetlinkError::new(operation, Errno::EBADMSG))?;
        let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        let error = match answer.payload {
            NetlinkPayload::InnerMessage(message) => {
                answers.messages.push(message);
                continue;
            }
            NetlinkPayload::Error(ack) => NetlinkError::of_ack(operation, &answer.header, &ack),
            NetlinkPayload::Done(done) => NetlinkError::of_done(operation, &answer.header, &done),
            _ => continue,
        };
        if let Some(error) = error {
            return Err(error);
        }
        answers.is_last = answer.header.sequence_number == last;
    }
    Ok(answers)
}
