//! VXLAN (RFC 7348) by a UDP socket: the kernel puts fragments together, and no capability is needed.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::socket::{setsockopt, sockopt};

/// For bursts. In bytes.
const BUFFER: usize = 8 << 20;
/// Longest datagram.
const LONGEST: usize = 65_535;
/// VXLAN header: flags, of which one says that there is a VNI, and the VNI.
const HEADER: usize = 8;
const HAS_VNI: u8 = 0x08;

/// A socket, and room for a datagram.
pub struct Listener {
    socket: UdpSocket,
    buffer: Box<[u8]>,
    /// Frames since they were counted last.
    pub frames: u64,
}

impl Listener {
    /// Listens on all addresses, of IPv4 also if the system has no IPv6.
    pub fn bind(port: u16) -> io::Result<Self> {
        let any = [SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
        let socket = UdpSocket::bind(&any[..])?;
        socket.set_nonblocking(true)?;
        // As far as the system allows (net.core.rmem_max).
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
        Ok(Self { socket, buffer: vec![0; LONGEST].into(), frames: 0 })
    }

    /// The next frame, which is empty if the datagram is no VXLAN. `None`: there is none now.
    pub fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        match self.socket.recv(&mut self.buffer) {
            Ok(length) if length > HEADER && self.buffer[0] & HAS_VNI != 0 => {
                self.frames += 1;
                Ok(Some(&self.buffer[HEADER..length]))
            }
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
