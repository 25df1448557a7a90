//! Traffic between two networks. Every function returns when all of it has arrived and has been answered.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use super::Network;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Pings, answered by the kernel: IPv4 or IPv6, preceded by an ARP request or a neighbour solicitation.
///
/// # Panics
/// If one is lost.
#[track_caller]
pub fn ping(from: &Network, to: IpAddr, size: usize, count: usize) {
    from.run("ip neigh flush all");
    // The least interval at which `ping` still waits for each answer, which it does not with `-l`.
    let output = from.run(&format!("ping -q -c {count} -i 0.002 -w 20 -s {size} {to}"));
    assert!(output.contains(&format!("{count} received")), "{output}");
}

/// Datagrams of several sizes to an address of `server`, each sent back; at most 16 in flight at once.
///
/// # Panics
/// If one is lost or changed.
#[track_caller]
pub fn udp(client: &Network, server: &Network, to: IpAddr, sizes: &[usize]) {
    let listening = server.within(|| UdpSocket::bind(SocketAddr::new(to, 0))).expect("the address is there");
    let target = listening.local_addr().expect("it is bound");
    let any: IpAddr = if to.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
    let sending = client.within(|| UdpSocket::bind(SocketAddr::new(any, 0))).expect("a socket can be made");
    for socket in [&listening, &sending] {
        socket.set_read_timeout(Some(TIMEOUT)).expect("it can be set");
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 16];
            for _ in sizes {
                let (size, from) = retried(|| listening.recv_from(&mut buffer)).expect("a datagram arrives");
                listening.send_to(&buffer[..size], from).expect("it can be sent back");
            }
        });
        let mut buffer = vec![0; 1 << 16];
        for (number, sizes) in sizes.chunks(16).enumerate() {
            for (position, size) in sizes.iter().enumerate() {
                sending.send_to(&payload(*size, number * 16 + position), target).expect("it can be sent");
            }
            let mut back: Vec<Vec<u8>> = Vec::new();
            for _ in sizes {
                let size = retried(|| sending.recv(&mut buffer)).expect("an answer arrives");
                back.push(buffer[..size].to_vec());
            }
            let mut sent: Vec<_> =
                sizes.iter().enumerate().map(|(position, size)| payload(*size, number * 16 + position)).collect();
            sent.sort();
            back.sort();
            assert!(sent == back, "datagrams were changed");
        }
    });
}

/// Repeats a call that a signal interrupted: the kernel does not, if the socket has a timeout (signal(7)).
fn retried<T>(mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A connection to an address of `server`, over which bytes are sent and echoed.
///
/// # Panics
/// If they do not come back, or come back changed.
#[track_caller]
pub fn tcp(client: &Network, server: &Network, to: IpAddr, bytes: usize) {
    let mut connection = Connection::open(client, server, to);
    connection.exchange(bytes);
    connection.close();
}

/// An open connection whose other end sends back what it receives.
pub struct Connection {
    near: TcpStream,
    far: thread::JoinHandle<()>,
}

impl Connection {
    /// Opens one.
    ///
    /// # Panics
    /// If that takes longer than ten seconds.
    #[must_use]
    #[track_caller]
    pub fn open(client: &Network, server: &Network, to: IpAddr) -> Self {
        let listener = server.within(|| TcpListener::bind(SocketAddr::new(to, 0))).expect("the address is there");
        let target = listener.local_addr().expect("it is bound");
        let near = client.within(|| TcpStream::connect_timeout(&target, TIMEOUT)).expect("the other end accepts");
        let (mut end, _) = listener.accept().expect("it is connected");
        near.set_read_timeout(Some(TIMEOUT)).expect("it can be set");
        let far = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(size @ 1..) = retried(|| end.read(&mut buffer)) {
                end.write_all(&buffer[..size]).expect("the near end reads");
            }
        });
        Self { near, far }
    }

    /// Sends bytes, and waits until they have come back.
    ///
    /// # Panics
    /// If they do not within ten seconds, or come back changed.
    #[track_caller]
    pub fn exchange(&mut self, bytes: usize) {
        let sent = payload(bytes, bytes);
        let mut sending = self.near.try_clone().expect("a descriptor can be duplicated");
        let mut back = vec![0; bytes];
        thread::scope(|scope| {
            scope.spawn(|| sending.write_all(&sent).expect("the far end reads"));
            self.near.read_exact(&mut back).expect("the bytes come back");
        });
        assert!(sent == back, "bytes were changed");
    }

    /// Closes both ends.
    ///
    /// # Panics
    /// If the other end has failed.
    pub fn close(self) {
        drop(self.near);
        self.far.join().expect("the far end does not fail");
    }
}

/// Pseudo-random bytes, other ones for each number.
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
