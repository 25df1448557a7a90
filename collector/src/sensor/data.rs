//! The data connection of a capture.

use std::{
    io::{self, ErrorKind, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use tracing::warn;

use super::{
    datagrams::{Packer, Parts, Tally},
    feed::{Feed, Subscription},
    rpcap::{HEADER, packets},
};

/// How long a connection may take.
pub const CONNECT: Duration = Duration::from_secs(10);
/// How long a datagram may wait for room in the socket.
const SEND: Duration = Duration::from_secs(1);
/// Of the socket of datagrams, as far as the system allows (`net.core.wmem_max`).
const BUFFER: usize = 4 << 20;

/// Where frames are sent.
#[derive(Debug)]
pub enum Data {
    Stream(TcpStream),
    /// A message in each datagram.
    Plain(UdpSocket),
    /// Datagrams of at most so many bytes.
    Packed(UdpSocket, u16),
}

impl Data {
    /// Connects to a client by TCP.
    pub fn connect(client: SocketAddr) -> io::Result<Self> {
        Ok(Self::Stream(TcpStream::connect_timeout(&client, CONNECT)?))
    }

    /// Sends datagrams from an address to a client. `payload`: see [`Packer`]; 0 for a message in each.
    pub fn datagrams(from: SocketAddr, client: SocketAddr, payload: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind(from)?;
        socket.connect(client)?;
        socket.set_write_timeout(Some(SEND))?;
        SockRef::from(&socket).set_send_buffer_size(BUFFER)?;
        Ok(if payload == 0 { Self::Plain(socket) } else { Self::Packed(socket, payload) })
    }

    /// Waits for a client to connect.
    pub fn accept(listener: &TcpListener, client: SocketAddr) -> io::Result<Self> {
        let deadline = Instant::now() + CONNECT;
        listener.set_nonblocking(true)?;
        loop {
            match listener.accept() {
                Ok((socket, peer)) if peer.ip() == client.ip() => {
                    socket.set_nonblocking(false)?;
                    return Ok(Self::Stream(socket));
                }
                // Another host has found the port.
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left == Duration::ZERO {
                        return Err(io::Error::new(ErrorKind::TimedOut, "the client did not open the data connection"));
                    }
                    let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
                    match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout) {
                        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Stream(socket) => Self::Stream(socket.try_clone()?),
            Self::Plain(socket) => Self::Plain(socket.try_clone()?),
            Self::Packed(socket, payload) => Self::Packed(socket.try_clone()?, *payload),
        })
    }

    /// Ends what is being written.
    fn shut_down(&self) {
        // Fails if the client has ended it before.
        let _ = match self {
            Self::Stream(socket) => socket.shutdown(Shutdown::Both),
            Self::Plain(socket) | Self::Packed(socket, _) => SockRef::from(socket).shutdown(Shutdown::Both),
        };
    }

    /// Sends what a feed has, until it is over.
    fn send(&mut self, feed: &Feed) -> io::Result<()> {
        let mut packer = Packer::new(if let Self::Packed(_, payload) = self { *payload } else { 0 });
        let mut tally = Tally::default();
        while let Some(chunk) = feed.next() {
            match self {
                Self::Stream(socket) => {
                    let result = socket.write_all(&chunk.messages);
                    let sent = if result.is_ok() { chunk.frames } else { 0 };
                    feed.count(sent, chunk.frames - sent);
                    result?;
                }
                Self::Plain(socket) => {
                    let sent = packets(&chunk.messages).filter(|packet| send(socket, packet)).count() as u64;
                    feed.count(sent, chunk.frames - sent);
                }
                Self::Packed(socket, _) => {
                    send_packed(socket, &mut tally, feed, |send| {
                        for packet in packets(&chunk.messages) {
                            packer.add(&packet[HEADER..], &mut *send);
                        }
                        if feed.is_empty() {
                            packer.flush(send);
                        }
                    });
                }
            }
        }
        // More frames were to follow, and were dropped.
        if let Self::Packed(socket, _) = self {
            send_packed(socket, &mut tally, feed, |send| packer.flush(send));
        }
        Ok(())
    }
}

/// Whether a datagram was sent. Where nothing listened to an earlier one, the socket tells it now, once, and sends nothing.
fn send(socket: &UdpSocket, datagram: &[u8]) -> bool {
    let sent = match socket.send(datagram) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => socket.send(datagram),
        sent => sent,
    };
    sent.is_ok()
}

/// Sends datagrams that are packed meanwhile, and counts their packets.
fn send_packed(socket: &UdpSocket, tally: &mut Tally, feed: &Feed, pack: impl FnOnce(&mut dyn FnMut(&[u8], Parts))) {
    let mut counts = (0, 0);
    pack(&mut |datagram, parts| {
        let (sent, failed) = tally.count(parts, send(socket, datagram));
        counts = (counts.0 + sent, counts.1 + failed);
    });
    feed.count(counts.0, counts.1);
}

/// A capture that runs. Stopped when dropped.
#[derive(Debug)]
pub struct Capture {
    pub feed: Arc<Feed>,
    data: Data,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Sends the frames of a feed. If that fails, the control connection is shut down.
    pub fn start(subscription: Subscription, mut data: Data, control: TcpStream) -> io::Result<Self> {
        let (feed, own) = (Arc::clone(&subscription.feed), data.try_clone()?);
        let thread = thread::spawn(move || {
            if let Err(error) = data.send(&subscription.feed)
                && !subscription.feed.is_over()
            {
                warn!(%error, "frames cannot be sent");
                let _ = control.shutdown(Shutdown::Both);
            }
        });
        Ok(Self { feed, data: own, thread: Some(thread) })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.feed.stop();
        self.data.shut_down();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_not_lost_because_nothing_listened_to_an_earlier_one() {
        let bind = |port: u16| UdpSocket::bind(("127.0.0.1", port)).expect("the port is free");
        let (socket, receiver) = (bind(0), bind(0));
        let address = receiver.local_addr().expect("an address");
        drop(receiver);
        socket.connect(address).expect("it has an address");
        assert!(send(&socket, b"lost"));
        // An error of the socket wakes without being asked for.
        let is_refused = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::empty())], PollTimeout::from(10_000_u16));
        assert_eq!(is_refused, Ok(1));
        let receiver = bind(address.port());
        receiver.set_read_timeout(Some(CONNECT)).expect("it can be set");
        assert!(send(&socket, b"next"));
        let mut datagram = [0; 8];
        assert_eq!(receiver.recv(&mut datagram).expect("it comes"), 4);
        assert_eq!(datagram[..4], *b"next");
    }
}
