//! Packet sockets that the tap-helper hands over: see [`PacketSocket`].

use std::{
    io::{self, ErrorKind, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, bail, ensure};
use podtap_model::{MAX_PACKET_SOCKET_MESSAGE, PACKET_SOCKET_ADDRESS, PacketSocket};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, recvmsg, socket_with, sockopt,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Where the tap-helper connects.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens in this network namespace.
    pub fn bind() -> Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        let address = SocketAddrUnix::new_abstract_name(PACKET_SOCKET_ADDRESS.as_bytes())?;
        bind(&socket, &address)
            .with_context(|| format!("@{PACKET_SOCKET_ADDRESS} is in use: does another one run in this pod?"))?;
        listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// The next connection. `None`: there is none now.
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        match accept_with(&self.0, FLAGS).map_err(io::Error::from) {
            Ok(socket) => Ok(Some(Connection(socket))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A connection of the tap-helper.
#[derive(Debug)]
pub struct Connection(OwnedFd);

/// What came by a connection.
#[derive(Debug)]
pub enum Received {
    /// A packet socket, and what it is for.
    Socket(PacketSocket, OwnedFd),
    /// Nothing yet.
    Nothing,
    /// Its end.
    End,
}

impl Connection {
    /// Receives a message. An error: it is none of the protocol.
    pub fn receive(&self) -> Result<Received> {
        let mut message = [0; MAX_PACKET_SOCKET_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received.map_err(io::Error::from) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Received::Nothing),
            Err(error) => return Err(error.into()),
        };
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let mut sockets: Vec<OwnedFd> = rights.flatten().collect();
        if received.bytes == 0 && sockets.is_empty() {
            return Ok(Received::End);
        }
        ensure!(!received.flags.contains(ReturnFlags::TRUNC), "the message is too long");
        let (Some(socket), true) = (sockets.pop(), sockets.is_empty()) else { bail!("there is not one descriptor") };
        let is_packet_socket = sockopt::socket_domain(&socket) == Ok(AddressFamily::PACKET)
            && sockopt::socket_type(&socket) == Ok(SocketType::RAW);
        ensure!(is_packet_socket, "the descriptor is no packet socket");
        Ok(Received::Socket(serde_json::from_slice(&message[..received.bytes])?, socket))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
