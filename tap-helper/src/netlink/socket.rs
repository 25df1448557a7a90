use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_ROUTE},
};
use nix::errno::Errno;

use super::{
    error::NetlinkError,
    message::{ACK, Attributes, DUMP, HEADER, Message, u32_at},
};

/// `NLMSG_ERROR`: an answer, also that of success.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: a dump is complete.
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile; parts may be missing or doubled.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_CAPPED`: the answer does not repeat the request's attributes.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: the answer has extended information.
const ACK_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const ACK_TEXT: u16 = 1;
/// Room for one answer: the kernel fills at most 32 KiB per datagram (`netlink_dump`, `net/netlink/af_netlink.c`).
const ROOM: usize = 64 << 10;
/// How often a dump is begun anew when it was interrupted; more in a row means a namespace in uproar.
const DUMP_ATTEMPTS: u32 = 8;

/// A routing netlink socket, and a generic one for what is not asked of that family. They belong for good to the network namespace
/// in which they were opened.
pub struct RouteSocket {
    route: Connection,
    pub(super) generic: Connection,
    /// Number of ethtool's family, once it is known.
    pub(super) ethtool: Option<u16>,
}

impl RouteSocket {
    /// Opens one in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        let (route, generic) = (Connection::open(NETLINK_ROUTE)?, Connection::open(NETLINK_GENERIC)?);
        Ok(Self { route, generic, ethtool: None })
    }

    /// Sends a request and waits until the kernel has done it.
    pub(super) fn request(&mut self, message: Message, operation: &str) -> Result<(), NetlinkError> {
        self.route.ask(message, operation, |_| None::<()>).map(drop)
    }

    /// Sends a request about one object; `take` gets the fixed part and attributes of what the kernel says of it.
    pub(super) fn ask<T>(
        &mut self,
        message: Message,
        operation: &str,
        take: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.route.ask(message, operation, take)
    }

    /// Reads all objects that a request names; `take` gets the fixed part and attributes of each.
    pub(super) fn dump<T>(
        &mut self,
        message: &Message,
        operation: &str,
        take: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.route.dump(message, operation, take)
    }
}

/// A socket of one netlink protocol.
pub(super) struct Connection {
    socket: Socket,
    sequence: u32,
}

impl Connection {
    fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let failed = |error| NetlinkError::socket("open a netlink socket", &error);
        let mut socket = Socket::new(protocol).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        // Errors with text, and without a copy of the request.
        socket.set_ext_ack(true).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        // The kernel filters dumps by what the request names (4.20); without it each dump is of the whole namespace.
        socket.set_netlink_get_strict_chk(true).map_err(failed)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits until the kernel has done it; `take` gets the fixed part and attributes of what it says before.
    pub(super) fn ask<T>(
        &mut self,
        message: Message,
        operation: &str,
        mut take: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let sequence = self.send(message.flags(ACK), operation)?;
        let mut found = Vec::new();
        loop {
            let bytes = self.receive(operation)?;
            for part in parts(&bytes).filter(|part| part.sequence == sequence) {
                if part.kind == ERROR {
                    return answer(&part, operation).map(|()| found);
                }
                found.extend(take(part.payload));
            }
        }
    }

    fn dump<T>(
        &mut self,
        message: &Message,
        operation: &str,
        mut take: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(message.clone().flags(DUMP), operation)?;
            if let Some(found) = self.collect(sequence, operation, &mut take)? {
                return Ok(found);
            }
        }
        Err(NetlinkError { operation: operation.to_owned(), errno: Errno::EAGAIN, text: None })
    }

    /// The objects of one dump, none if it was interrupted.
    fn collect<T>(
        &mut self,
        sequence: u32,
        operation: &str,
        take: &mut impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            let bytes = self.receive(operation)?;
            for part in parts(&bytes).filter(|part| part.sequence == sequence) {
                interrupted |= part.flags & INTERRUPTED != 0;
                match part.kind {
                    ERROR => return answer(&part, operation).map(|()| None),
                    DONE => {
                        answer(&part, operation)?;
                        return Ok((!interrupted).then_some(found));
                    }
                    _ => found.extend(take(part.payload)),
                }
            }
        }
    }

    fn send(&mut self, message: Message, operation: &str) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence);
        match self.socket.send(&bytes, 0) {
            Ok(_) => Ok(self.sequence),
            Err(error) => Err(NetlinkError::socket(operation, &error)),
        }
    }

    fn receive(&mut self, operation: &str) -> Result<Vec<u8>, NetlinkError> {
        let mut bytes = Vec::with_capacity(ROOM);
        loop {
            match self.socket.recv(&mut bytes, 0) {
                Ok(_) => return Ok(bytes),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NetlinkError::socket(operation, &error)),
            }
        }
    }
}

impl AsFd for RouteSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.route.socket.as_fd()
    }
}

/// One message of a datagram.
pub(super) struct Part<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

/// The messages of a datagram, up to the first broken one.
pub(super) fn parts(bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(buffer.length()).ok().filter(|length| *length >= HEADER)?;
        let part = Part {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            sequence: buffer.sequence_number(),
            payload: rest.get(HEADER..length)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    })
}

/// Reads `struct nlmsgerr`, or the number at the end of a dump.
fn answer(part: &Part<'_>, operation: &str) -> Result<(), NetlinkError> {
    let code = i32::from_ne_bytes(u32_at(part.payload, 0).to_ne_bytes());
    if code == 0 {
        return Ok(());
    }
    let text = (part.flags & ACK_ATTRIBUTES != 0).then(|| extended_text(part)).flatten();
    Err(NetlinkError { operation: operation.to_owned(), errno: Errno::from_raw(-code), text })
}

/// The extended text: after the number (of a dump), or after the number and the request's header.
fn extended_text(part: &Part<'_>) -> Option<String> {
    let start = match (part.kind, part.flags & CAPPED != 0) {
        (DONE, _) => 4,
        (_, true) => 4 + HEADER,
        // The request is repeated in full; its header begins with its length.
        (_, false) => 4 + usize::try_from(u32_at(part.payload, 4)).ok()?.next_multiple_of(4),
    };
    Attributes(part.payload.get(start..)?).string(ACK_TEXT).filter(|text| !text.is_empty())
}
