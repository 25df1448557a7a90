//! The client of a stream, by TCP. It may come back: see [`Window`].
//!
//! A client sends how many bytes of the stream it has received, as 64-bit numbers in little-endian byte order: the first one at once, which
//! tells where it continues, and others while it receives, at least so often that it is not taken for gone.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{info, warn};

use crate::output::window::{Progress, Window};

/// Bytes of one write.
const CHUNK: usize = 256 << 10;
/// How long the client may take for what is left when the stream has ended.
const LAST: Duration = Duration::from_secs(20);

/// Why a stream is no longer served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client has all of it.
    Complete,
    /// There was no client, or it was silent for too long.
    Abandoned,
    /// The client left while the stream ended.
    Left,
}

/// Serves a stream to one client at a time.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    window: Arc<Window>,
    /// How long a client may be silent.
    patience: Duration,
    /// The client, once it has told where it continues.
    client: Option<Client>,
    /// One that has not told that yet.
    newcomer: Option<Client>,
    /// When it is abandoned.
    deadline: Instant,
    /// By when the client has to have what is left.
    last: Option<Instant>,
}

impl Server {
    /// Listens for a client, which has to come within `first`.
    pub fn bind(address: SocketAddr, window: Arc<Window>, first: Duration, patience: Duration) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("{address} cannot be listened on"))?;
        listener.set_nonblocking(true)?;
        let deadline = Instant::now() + first;
        Ok(Self { listener, window, patience, client: None, newcomer: None, deadline, last: None })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the client has all of the stream, or is gone.
    pub fn run(mut self) -> Result<End> {
        loop {
            let progress = self.window.progress();
            let now = Instant::now();
            if progress.is_complete {
                let last = *self.last.get_or_insert(now + LAST);
                self.deadline = self.deadline.min(last);
            }
            if let Some(end) = self.end(progress, now) {
                return Ok(end);
            }
            self.wait(progress, now)?;
            self.window.woken();
            self.accept()?;
            self.read();
            if let Some(client) = &mut self.client
                && let Err(error) = client.write(&self.window)
            {
                self.lose(&error);
            }
        }
    }

    fn end(&self, progress: Progress, now: Instant) -> Option<End> {
        if progress.is_complete && progress.start == progress.end {
            Some(End::Complete)
        } else if progress.is_complete && progress.is_urgent && self.client.is_none() {
            Some(End::Left)
        } else if now >= self.deadline {
            Some(End::Abandoned)
        } else {
            None
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, progress: Progress, now: Instant) -> Result<()> {
        let mut waiting = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.window.as_fd(), PollFlags::POLLIN),
        ];
        for client in self.client.iter().chain(&self.newcomer) {
            let write = if client.has_to_write(progress) { PollFlags::POLLOUT } else { PollFlags::empty() };
            waiting.push(PollFd::new(client.socket.as_fd(), PollFlags::POLLIN | write));
        }
        // Rounded up, so that it does not wake before the time.
        let timeout = self.deadline - now + Duration::from_millis(1);
        match poll(&mut waiting, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("waiting for a client"),
        }
    }

    fn accept(&mut self) -> Result<()> {
        match self.listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                self.newcomer = Some(Client::new(socket));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
            Err(error) => return Err(error).context("accepting a client"),
        }
        Ok(())
    }

    /// Reads what clients have received.
    fn read(&mut self) {
        if let Some(mut newcomer) = self.newcomer.take() {
            match newcomer.number(&self.window) {
                Ok(Some(received)) => {
                    info!(received, "a client reads the stream");
                    self.window.confirm(received);
                    // An earlier one, whose end did not get here, is closed.
                    self.client = Some(newcomer);
                    self.deadline = Instant::now() + self.patience;
                }
                Ok(None) => self.newcomer = Some(newcomer),
                Err(error) => warn!(%error, "a client is refused"),
            }
        }
        while let Some(client) = &mut self.client {
            match client.number(&self.window) {
                Ok(Some(received)) => {
                    self.window.confirm(received);
                    self.deadline = Instant::now() + self.patience;
                }
                Ok(None) => return,
                Err(error) => self.lose(&error),
            }
        }
    }

    fn lose(&mut self, error: &io::Error) {
        warn!(%error, "the client is gone; it may come back within {} seconds", self.patience.as_secs());
        self.client = None;
    }
}

/// A connection.
#[derive(Debug)]
struct Client {
    socket: TcpStream,
    /// A number of which some bytes have come.
    number: [u8; 8],
    bytes: usize,
    /// Where in the stream the bytes behind the chunk are. None: it has not told that yet.
    next: Option<u64>,
    /// Bytes to be written, and how many of them are.
    chunk: Vec<u8>,
    written: usize,
    is_shut: bool,
}

impl Client {
    const fn new(socket: TcpStream) -> Self {
        Self { socket, number: [0; 8], bytes: 0, next: None, chunk: Vec::new(), written: 0, is_shut: false }
    }

    /// The next number that it has sent, if it is one of bytes that it can have received and that were not forgotten.
    fn number(&mut self, window: &Window) -> io::Result<Option<u64>> {
        while self.bytes < self.number.len() {
            match self.socket.read(&mut self.number[self.bytes..]) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "it has closed the connection")),
                Ok(count) => self.bytes += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes = 0;
        let received = u64::from_le_bytes(self.number);
        let Progress { start, end, .. } = window.progress();
        let sent = self.next.map_or(end, |next| next - (self.chunk.len() - self.written) as u64);
        if !(start..=sent).contains(&received) {
            let message = format!("it says that it has received {received} bytes, which must be {start} to {sent}");
            return Err(io::Error::new(ErrorKind::InvalidData, message));
        }
        self.next.get_or_insert(received);
        Ok(Some(received))
    }

    fn has_to_write(&self, progress: Progress) -> bool {
        let has_bytes = self.written < self.chunk.len() || self.next.is_some_and(|next| next < progress.end);
        has_bytes || self.next.is_some() && progress.is_complete && !self.is_shut
    }

    /// Writes as much as the socket takes at once, or ends the connection's stream if it has all of it.
    fn write(&mut self, window: &Window) -> io::Result<()> {
        let Some(next) = &mut self.next else { return Ok(()) };
        if self.written == self.chunk.len() {
            self.chunk.clear();
            self.written = 0;
            // Before what is read: nothing is appended to a complete one.
            let is_complete = window.progress().is_complete;
            window.read(*next, CHUNK, &mut self.chunk);
            *next += self.chunk.len() as u64;
            if self.chunk.is_empty() && is_complete && !self.is_shut {
                self.socket.shutdown(Shutdown::Write)?;
                self.is_shut = true;
            }
        }
        if self.chunk.is_empty() {
            return Ok(());
        }
        match self.socket.write(&self.chunk[self.written..]) {
            Ok(count) => self.written += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{self, JoinHandle};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A server of a window with 100 bytes, of which 40 are confirmed.
    fn serve(patience: Duration) -> (SocketAddr, Arc<Window>, JoinHandle<Result<End>>) {
        let window = Arc::new(Window::new().expect("a descriptor"));
        assert!(window.append(&[1; 100]));
        window.confirm(40);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(any, Arc::clone(&window), PATIENCE, patience).expect("a port");
        (server.address().expect("it listens"), window, thread::spawn(|| server.run()))
    }

    fn connect(address: SocketAddr, received: u64) -> TcpStream {
        let mut client = TcpStream::connect(address).expect("it listens");
        client.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        client.write_all(&received.to_le_bytes()).expect("it is connected");
        client
    }

    fn is_closed(client: &mut TcpStream) -> bool {
        match client.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    #[test]
    fn a_client_continues_only_where_the_window_has_bytes() {
        let (address, window, server) = serve(PATIENCE);
        for outside in [0, 39, 101, u64::MAX] {
            assert!(is_closed(&mut connect(address, outside)), "{outside}");
        }
        let mut client = connect(address, 50);
        let mut bytes = [0; 50];
        client.read_exact(&mut bytes).expect("it is sent");
        assert_eq!(bytes, [1; 50]);
        // It cannot have received what was not sent, and the window stays as it is.
        client.write_all(&101_u64.to_le_bytes()).expect("it is connected");
        assert!(is_closed(&mut client));
        assert_eq!(window.progress().start, 50);
        let mut client = connect(address, 100);
        window.complete(b"the end");
        let mut rest = String::new();
        client.read_to_string(&mut rest).expect("it ends");
        assert_eq!(rest, "the end");
        // Also in two parts.
        let number = 107_u64.to_le_bytes();
        client.write_all(&number[..3]).expect("it is connected");
        client.write_all(&number[3..]).expect("it is connected");
        assert_eq!(server.join().expect("it does not panic").expect("it serves"), End::Complete);
    }

    #[test]
    fn a_newer_client_replaces_an_earlier_one_once_it_has_said_where_it_continues() {
        let (address, window, server) = serve(PATIENCE);
        let mut first = connect(address, 40);
        first.read_exact(&mut [0; 60]).expect("it is sent");
        let silent = TcpStream::connect(address).expect("it listens");
        assert!(is_closed(&mut connect(address, 3)));
        assert!(window.append(&[2; 5]));
        window.notify();
        first.read_exact(&mut [0; 5]).expect("it is still served");
        let mut second = connect(address, 100);
        assert!(is_closed(&mut first));
        window.complete(&[]);
        let mut rest = Vec::new();
        second.read_to_end(&mut rest).expect("it ends");
        assert_eq!(rest, [2; 5]);
        // It has not confirmed them, and might come back, but there is no time for that.
        drop((second, silent));
        window.hurry();
        assert_eq!(server.join().expect("it does not panic").expect("it serves"), End::Left);
    }

    #[test]
    fn a_silent_client_is_gone() {
        let (address, window, server) = serve(Duration::from_millis(50));
        let mut client = connect(address, 40);
        assert_eq!(server.join().expect("it does not panic").expect("it serves"), End::Abandoned);
        client.read_exact(&mut [0; 60]).expect("it was sent");
        assert_eq!(window.progress().start, 40, "it has not confirmed them");
    }
}
