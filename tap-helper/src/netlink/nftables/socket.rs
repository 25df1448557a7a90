//! Requests to nftables. Unlike the other families, it takes changes as transactions: several messages in one datagram.

use rtnetlink::{
    packet_core::{DefaultNla, NLM_F_ACK},
    sys::Socket,
};
use rustix::net::sockopt::set_socket_send_buffer_size_force;

use crate::{
    namespace::Namespace,
    netlink::{
        error::{NetlinkError, NetnsError},
        generic::GenericMessage,
        netfilter,
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
        netfilter::open(namespace).map(Self)
    }

    /// Sends one request. Returns the answers.
    pub(super) fn send(
        &self,
        message: GenericMessage,
        flags: u16,
        operation: &str,
    ) -> Result<Vec<GenericMessage>, NetlinkError> {
        self.exchange(&netfilter::request(message, flags, 1), 1, operation)
    }

    /// Executes all messages, or none. They are one datagram, which the kernel limits to the send buffer (`netlink_sendmsg`,
    /// `net/netlink/af_netlink.c`): by default, about 4,400 sources fit.
    pub(super) fn transaction(&self, messages: Vec<Sent>, operation: &str) -> Result<(), NetlinkError> {
        let border = |kind| GenericMessage::with_header(kind, [0, 0, 0, SUBSYSTEM], &[]);
        let mut batch = netfilter::request(border(NFNL_MSG_BATCH_BEGIN), 0, 0);
        let mut sequence = 0;
        let count = messages.len();
        for (index, (message, flags)) in messages.into_iter().enumerate() {
            sequence += 1;
            // The answer to the last one arrives last.
            let acknowledged = if index + 1 == count { NLM_F_ACK } else { 0 };
            batch.extend(netfilter::request(message, flags | acknowledged, sequence));
        }
        batch.extend(netfilter::request(border(NFNL_MSG_BATCH_END), 0, sequence + 1));
        let failed = |error: rustix::io::Errno| NetlinkError::socket(operation, &error.into());
        // The kernel doubles it for its own data.
        set_socket_send_buffer_size_force(&self.0, batch.len().max(SEND_BUFFER)).map_err(failed)?;
        self.exchange(&batch, sequence, operation).map(drop)
    }

    /// Sends a request and reads the answers until one confirms the message with the number `last`.
    fn exchange(&self, request: &[u8], last: u32, operation: &str) -> Result<Vec<GenericMessage>, NetlinkError> {
        self.0.send(request, 0).map_err(|error| NetlinkError::socket(operation, &error))?;
        let mut found = Vec::new();
        loop {
            let answers = netfilter::read(&self.0, last, operation)?;
            found.extend(answers.messages);
            if answers.is_last {
                return Ok(found);
            }
        }
    }
}
