//! VXLAN (RFC 7348) by a UDP socket: the kernel puts fragments together, and no capability is needed.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

use super::options;

/// For bursts. In bytes.
const BUFFER: usize = 8 << 20;
/// Longest datagram.
const LONGEST: usize = 65_535;
/// VXLAN header: flags, of which one says that there is a VNI, and the VNI.
const HEADER: usize = 8;
/// Where frames begin in what a filter of the socket sees: behind the UDP header, too.
pub const FRAME: u32 = 16;
const HAS_VNI: u8 = 0x08;
/// With an Ethernet header.
const SHORTEST: usize = HEADER + 14;

/// A socket, and room for a datagram.
pub struct Listener {
    socket: UdpSocket,
    buffer: Box<[u8]>,
    /// Datagrams that the kernel had dropped when it was asked last.
    dropped: u32,
}

impl Listener {
    /// Listens on all addresses, of IPv4 also if the system has no IPv6.
    pub fn bind(port: u16) -> io::Result<Self> {
        let any = [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
        let socket = UdpSocket::bind(&any[..])?;
        socket.set_nonblocking(true)?;
        // As far as the system allows (net.core.rmem_max).
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
        Ok(Self { socket, buffer: vec![0; LONGEST].into(), dropped: 0 })
    }

    /// How full the socket's buffer is, in percent; and how many datagrams the kernel has dropped since the last call: for want of room, or
    /// by a filter.
    pub fn load(&mut self) -> io::Result<(usize, u64)> {
        // SK_MEMINFO_* in include/uapi/linux/sock_diag.h: the first two, and the last one.
        let [used, room, .., dropped]: [u32; 9] = options::numbers(&self.socket, libc::SOL_SOCKET, libc::SO_MEMINFO)?;
        let before = std::mem::replace(&mut self.dropped, dropped);
        Ok((used as usize * 100 / room.max(1) as usize, dropped.wrapping_sub(before).into()))
    }

    /// The next frame, which is empty if the datagram is not VXLAN with an Ethernet frame. `None`: there is none now.
    pub fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        match self.socket.recv(&mut self.buffer) {
            Ok(length) if length >= SHORTEST && self.buffer[0] & HAS_VNI != 0 => Ok(Some(&self.buffer[HEADER..length])),
            Ok(_) => Ok(Some(&[])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
