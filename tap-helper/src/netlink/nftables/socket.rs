//! Requests to nftables. Unlike the other families, it takes changes as transactions: several messages in one datagram.

use std::io;

use nix::errno::Errno;
use rtnetlink::{
    packet_core::{DefaultNla, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};
use rustix::net::sockopt::set_socket_send_buffer_size_force;

use crate::{
    namespace::{Namespace, within},
    netlink::{
        error::{NetlinkError, NetnsError},
        generic::GenericMessage,
    },
};

/// `NFNL_SUBSYS_NFTABLES` (include/uapi/linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u8 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;

/// Bytes of the send buffer at least.
const SEND_BUFFER: usize = 128 << 10;

/// A message and its flags.
pub(super) type Sent = (GenericMessage, u16);

pub(super) fn message(kind: u8, family: u8, attributes: &[DefaultNla]) -> GenericMessage {
    GenericMessage::with_header(u16::from_be_bytes([SUBSYSTEM, kind]), [family, 0, 0, 0], attributes)
}

/// A socket for one operation.
pub(super) struct Nftables(Socket);

impl Nftables {
    /// Opens one in a network namespace.
    pub(super) fn open(namespace: &Namespace) -> Result<Self, NetnsError> {
        let opened = within(namespace, || {
            let socket = Socket::new(NETLINK_NETFILTER)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // The kernel answers before it returns from sending.
            socket.set_non_blocking(true)?;
            Ok(socket)
        })?;
        Ok(Self(opened.map_err(|error: io::Error| NetlinkError::socket("open a netlink socket of netfilter", &error))?))
    }

    /// Sends one request. Returns the answers.
    pub(super) fn send(
        &self,
        message: GenericMessage,
        flags: u16,
        operation: &str,
    ) -> Result<Vec<GenericMessage>, NetlinkError> {
        self.exchange(&bytes(message, flags, 1), 1, operation)
    }

    /// Executes all messages, or none. They are one datagram, which the kernel limits to the send buffer (`netlink_sendmsg`,
    /// `net/netlink/af_netlink.c`): by default, about 4,400 sources fit.
    pub(super) fn transaction(&self, messages: Vec<Sent>, operation: &str) -> Result<(), NetlinkError> {
        let border = |kind| GenericMessage::with_header(kind, [0, 0, 0, SUBSYSTEM], &[]);
        let mut request = bytes(border(NFNL_MSG_BATCH_BEGIN), 0, 0);
        let mut sequence = 0;
        let count = messages.len();
        for (index, (message, flags)) in messages.into_iter().enumerate() {
            sequence += 1;
            // The answer to the last one arrives last.
            let acknowledged = if index + 1 == count { NLM_F_ACK } else { 0 };
            request.extend(bytes(message, flags | acknowledged, sequence));
        }
        request.extend(bytes(border(NFNL_MSG_BATCH_END), 0, sequence + 1));
        let failed = |error: rustix::io::Errno| NetlinkError::socket(operation, &error.into());
        // The kernel doubles it for its own data.
        set_socket_send_buffer_size_force(&self.0, request.len().max(SEND_BUFFER)).map_err(failed)?;
        self.exchange(&request, sequence, operation).map(drop)
    }

    /// Sends a request and reads the answers until one confirms the message with the number `last`.
    fn exchange(&self, request: &[u8], last: u32, operation: &str) -> Result<Vec<GenericMessage>, NetlinkError> {
        let failed = |error: io::Error| NetlinkError::socket(operation, &error);
        self.0.send(request, 0).map_err(failed)?;
        let mut found = Vec::new();
        loop {
            let (received, _) = self.0.recv_from_full().map_err(failed)?;
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<GenericMessage>::deserialize(rest);
                let answer = answer.map_err(|_| NetlinkError::new(operation, Errno::EBADMSG))?;
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                let error = match answer.payload {
                    NetlinkPayload::InnerMessage(message) => {
                        found.push(message);
                        continue;
                    }
                    NetlinkPayload::Error(ack) => NetlinkError::of_ack(operation, &answer.header, &ack),
                    NetlinkPayload::Done(done) => NetlinkError::of_done(operation, &answer.header, &done),
                    _ => continue,
                };
                match error {
                    Some(error) => return Err(error),
                    None if answer.header.sequence_number == last => return Ok(found),
                    None => {}
                }
            }
        }
    }
}

fn bytes(message: GenericMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
    (message.header.flags, message.header.sequence_number) = (NLM_F_REQUEST | flags, sequence);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
