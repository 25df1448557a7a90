//! Traffic between two networks. Every function returns after all of it has arrived and was answered.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use super::Network;
use crate::wait::{PATIENCE, uninterrupted};

/// Sends pings over IPv4 or IPv6, after an ARP request or a neighbour solicitation.
///
/// # Panics
/// When one is lost.
#[track_caller]
pub fn ping(from: &Network, to: IpAddr, size: usize, count: usize) {
    from.run("ip neigh flush all");
    // A short interval instead of `-l`, which would not wait for replies.
    let output = from.run(&format!("ping -q -c {count} -i 0.002 -w 20 -s {size} {to}"));
    assert!(output.contains(&format!("{count} received")), "{output}");
}

/// Sends datagrams of several sizes to an address of `server`, which echoes each; at most 16 are in flight.
///
/// # Panics
/// When one is lost or changed.
#[track_caller]
pub fn udp(client: &Network, server: &Network, to: IpAddr, sizes: &[usize]) {
    let listening = server.within(|| UdpSocket::bind(SocketAddr::new(to, 0))).expect("the address exists");
    let target = listening.local_addr().expect("the socket is bound");
    let any: IpAddr = if to.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
    let sending = client.within(|| UdpSocket::bind(SocketAddr::new(any, 0))).expect("a socket can be created");
    for socket in [&listening, &sending] {
        socket.set_read_timeout(Some(PATIENCE)).expect("the option can be set");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 16];
            for _ in sizes {
                let (size, from) = uninterrupted(|| listening.recv_from(&mut buffer)).expect("a datagram arrives");
                listening.send_to(&buffer[..size], from).expect("the datagram can be sent");
            }
        });
        let mut buffer = vec![0; 1 << 16];
        for (number, sizes) in sizes.chunks(16).enumerate() {
            for (position, size) in sizes.iter().enumerate() {
                sending.send_to(&payload(*size, number * 16 + position), target).expect("the datagram can be sent");
            }
            let mut back: Vec<Vec<u8>> = Vec::new();
            for _ in sizes {
                let size = uninterrupted(|| sending.recv(&mut buffer)).expect("an answer arrives");
                back.push(buffer[..size].to_vec());
            }
            let mut sent: Vec<_> =
                sizes.iter().enumerate().map(|(position, size)| payload(*size, number * 16 + position)).collect();
            sent.sort();
            back.sort();
            assert!(sent == back, "the echoed datagrams are unchanged");
        }
    });
}

/// Opens a connection to an address of `server` and exchanges bytes on it.
///
/// # Panics
/// When they do not arrive, or are changed.
#[track_caller]
pub fn tcp(client: &Network, server: &Network, to: IpAddr, bytes: usize) {
    let mut connection = Connection::open(client, server, to);
    connection.exchange(bytes);
    connection.close();
}

/// An open connection to a server that echoes what it receives.
pub struct Connection {
    client: TcpStream,
    server: thread::JoinHandle<()>,
}

impl Connection {
    /// Opens one.
    ///
    /// # Panics
    /// When that takes longer than [`PATIENCE`].
    #[must_use]
    #[track_caller]
    pub fn open(client: &Network, server: &Network, to: IpAddr) -> Self {
        let listener = server.within(|| TcpListener::bind(SocketAddr::new(to, 0))).expect("the address exists");
        let target = listener.local_addr().expect("the socket is bound");
        let stream = client.within(|| TcpStream::connect_timeout(&target, PATIENCE)).expect("the server accepts");
        let (mut accepted, _) = listener.accept().expect("the client is connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("the option can be set");
        let server = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(size @ 1..) = uninterrupted(|| accepted.read(&mut buffer)) {
                accepted.write_all(&buffer[..size]).expect("the client reads");
            }
        });
        Self { client: stream, server }
    }

    /// Sends bytes, and waits until as many came back.
    ///
    /// # Panics
    /// When they do not arrive within [`PATIENCE`], or are changed.
    #[track_caller]
    pub fn exchange(&mut self, bytes: usize) {
        let sent = payload(bytes, bytes);
        let mut sending = self.client.try_clone().expect("a descriptor can be duplicated");
        let mut back = vec![0; bytes];
        thread::scope(|scope| {
            scope.spawn(|| sending.write_all(&sent).expect("the server reads"));
            self.client.read_exact(&mut back).expect("the server echoes");
        });
        assert!(sent == back, "the echoed bytes are unchanged");
    }

    /// Closes the connection.
    ///
    /// # Panics
    /// When the server has failed.
    pub fn close(self) {
        drop(self.client);
        self.server.join().expect("the server does not panic");
    }
}

/// Pseudo-random bytes that differ for each number.
fn payload(size: usize, number: usize) -> Vec<u8> {
    let seed = u64::try_from(number).expect("a count fits").wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
