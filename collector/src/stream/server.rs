//! The client of a stream, by TCP. It may come back: see [`Window`], and [`Spool`] for one that is gone for long.
//!
//! A client sends how many bytes of the stream it has received, as 64-bit numbers in little-endian byte order: the first one at once, which
//! tells where it continues, and others while it receives, at least so often that it is not taken for gone. It gets such a number, too: where
//! what follows begins.

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

use super::spool::{Section, Spool};
use crate::output::window::{Progress, ROOM, Window};

/// Bytes of one write.
const CHUNK: usize = 256 << 10;
/// How long the files of the spool are left alone after an error.
const RETRY: Duration = Duration::from_secs(1);
/// How long the client may take for what is left when the stream has ended, or of what a spool has kept, for each part that it confirms.
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
    kept: Kept,
    /// How long a client may be silent.
    patience: Duration,
    /// The client, once it has told where it continues.
    client: Option<Client>,
    /// One that has not told that yet.
    newcomer: Option<Client>,
    /// Whether it ends without a client.
    needs_client: bool,
    /// When the client is gone. None: it is not waited for.
    deadline: Option<Instant>,
    /// What it had confirmed of a stream that has ended, and by when it has to confirm more.
    last: Option<(u64, Instant)>,
}

impl Server {
    /// Listens for a client, which has to come within `first`. If there is a spool, it need not come back.
    pub fn bind(
        address: SocketAddr,
        window: Arc<Window>,
        spool: Option<Spool>,
        first: Option<Duration>,
        patience: Duration,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("{address} cannot be listened on"))?;
        listener.set_nonblocking(true)?;
        let deadline = first.map(|first| Instant::now() + first);
        let needs_client = spool.is_none() || first.is_some();
        let kept = Kept { window, spool, failed: None };
        Ok(Self { listener, kept, patience, client: None, newcomer: None, needs_client, deadline, last: None })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the client has all of the stream, or is gone.
    pub fn run(mut self) -> Result<End> {
        loop {
            let now = Instant::now();
            let has_more = self.kept.fill(self.deadline.is_none(), now);
            let progress = self.kept.progress();
            if progress.is_complete {
                let last = self.last(progress.start, now);
                self.deadline = Some(self.deadline.map_or(last, |deadline| deadline.min(last)));
            }
            if let Some(end) = self.end(progress, now) {
                return Ok(end);
            }
            self.wait(progress, now, has_more)?;
            self.kept.window.woken();
            self.accept()?;
            self.read();
            if let Some(client) = &mut self.client
                && let Err(error) = client.write(&self.kept)
            {
                self.lose(&error);
            }
        }
    }

    /// By when the client has to have what is left.
    fn last(&mut self, confirmed: u64, now: Instant) -> Instant {
        let has_spool = self.kept.spool.is_some();
        let earlier = self.last.filter(|(before, _)| !has_spool || *before == confirmed);
        self.last.insert(earlier.unwrap_or((confirmed, now + LAST))).1
    }

    fn end(&mut self, progress: Progress, now: Instant) -> Option<End> {
        let is_late = self.deadline.is_some_and(|deadline| now >= deadline);
        if progress.is_complete && progress.start == progress.end {
            Some(End::Complete)
        } else if progress.is_complete && progress.is_urgent && self.client.is_none() {
            Some(End::Left)
        } else if is_late && !self.needs_client && !progress.is_complete {
            // Another one may come at any time.
            (self.client, self.deadline) = (None, None);
            None
        } else {
            is_late.then_some(End::Abandoned)
        }
    }

    /// Waits until there is something to do, or only looks what there is if more can be kept.
    fn wait(&self, progress: Progress, now: Instant, has_more: bool) -> Result<()> {
        let mut waiting = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.kept.window.as_fd(), PollFlags::POLLIN),
        ];
        for client in self.client.iter().chain(&self.newcomer) {
            let write = if client.has_to_write(progress) { PollFlags::POLLOUT } else { PollFlags::empty() };
            waiting.push(PollFd::new(client.socket.as_fd(), PollFlags::POLLIN | write));
        }
        // Rounded up, so that it does not wake before the time.
        let timeout = |deadline: Instant| PollTimeout::try_from(deadline - now + Duration::from_millis(1)).ok();
        let timeout = self.deadline.and_then(timeout).unwrap_or(PollTimeout::NONE);
        match poll(&mut waiting, if has_more { PollTimeout::ZERO } else { timeout }) {
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
            match newcomer.number() {
                Ok(None) => self.newcomer = Some(newcomer),
                Ok(Some(received)) => match self.kept.begin(received) {
                    Ok(Section { preamble, at }) => {
                        info!(received, at, "a client reads the stream");
                        newcomer.begin(&preamble, at);
                        // An earlier one, whose end did not get here, is closed.
                        self.client = Some(newcomer);
                        self.needs_client = self.kept.spool.is_none();
                        self.deadline = Some(Instant::now() + self.patience);
                    }
                    Err(error) => warn!(%error, "a client is refused"),
                },
                Err(error) => warn!(%error, "a client is refused"),
            }
        }
        while let Some(client) = &mut self.client {
            let confirmed = client.number().and_then(|number| match number {
                Some(received) => client.confirm(received, &mut self.kept).map(Some),
                None => Ok(None),
            });
            match confirmed {
                Ok(Some(())) => self.deadline = Some(Instant::now() + self.patience),
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

/// What is kept of the stream.
#[derive(Debug)]
struct Kept {
    window: Arc<Window>,
    /// What is in the window gets there at once.
    spool: Option<Spool>,
    /// When the spool could not be filled.
    failed: Option<Instant>,
}

impl Kept {
    fn progress(&self) -> Progress {
        let progress = self.window.progress();
        self.spool.as_ref().map_or(progress, |spool| spool.progress(progress))
    }

    /// Has the spool take what waits. While it cannot, the window fills up, and frames are dropped. Returns whether it can take more at once.
    fn fill(&mut self, may_lose: bool, now: Instant) -> bool {
        let Some(spool) = &mut self.spool else { return false };
        if self.failed.is_some_and(|failed| now - failed < RETRY) {
            return false;
        }
        let filled = spool.fill(&self.window, may_lose);
        self.failed = filled.as_ref().err().map(|error| {
            warn!(%error, "frames cannot be kept; retrying in {} seconds", RETRY.as_secs());
            now
        });
        filled.unwrap_or(false)
    }

    /// Where a client begins that has received so many bytes, and what it needs before.
    fn begin(&mut self, received: u64) -> io::Result<Section> {
        let Progress { start, end, .. } = self.progress();
        if (start..=end).contains(&received) {
            // It may not have written all of that yet.
            return Ok(Section { preamble: Vec::new(), at: received });
        }
        self.spool.as_mut().map_or_else(|| Err(not_received(received, start, end)), Spool::section)
    }

    fn confirm(&mut self, until: u64) -> io::Result<()> {
        if let Some(spool) = &mut self.spool {
            return spool.confirm(until);
        }
        self.window.confirm(until);
        Ok(())
    }

    fn read(&self, from: u64, most: usize, out: &mut Vec<u8>) -> io::Result<()> {
        if let Some(spool) = &self.spool {
            return spool.read(from, most, out);
        }
        self.window.read(from, most, out);
        Ok(())
    }
}

/// How far a client may be sent the stream: it has what it has not confirmed in memory.
fn until(progress: Progress) -> u64 {
    progress.end.min(progress.start + ROOM as u64)
}

fn not_received(received: u64, from: u64, to: u64) -> io::Error {
    let message = format!("it says that it has received {received} bytes, which must be {from} to {to}");
    io::Error::new(ErrorKind::InvalidData, message)
}

/// A connection.
#[derive(Debug)]
struct Client {
    socket: TcpStream,
    /// A number of which some bytes have come.
    number: [u8; 8],
    bytes: usize,
    /// Where it has begun, which it may confirm before anything was sent.
    first: u64,
    /// Where in the stream the bytes behind the chunk are. None: it has not told yet where it continues.
    next: Option<u64>,
    /// Bytes to be written, and how many of them are.
    chunk: Vec<u8>,
    written: usize,
    is_shut: bool,
}

impl Client {
    const fn new(socket: TcpStream) -> Self {
        Self { socket, number: [0; 8], bytes: 0, first: 0, next: None, chunk: Vec::new(), written: 0, is_shut: false }
    }

    /// The next number that it has sent.
    fn number(&mut self) -> io::Result<Option<u64>> {
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
        Ok(Some(u64::from_le_bytes(self.number)))
    }

    /// Gets the stream from there on. What precedes it are blocks of the stream from before, so that its place is no less than its length.
    fn begin(&mut self, preamble: &[u8], at: u64) {
        self.first = at - preamble.len() as u64;
        self.chunk = [&self.first.to_le_bytes(), preamble].concat();
        self.next = Some(at);
    }

    /// Has received so many bytes, if it can have.
    fn confirm(&self, received: u64, kept: &mut Kept) -> io::Result<()> {
        let unwritten = (self.chunk.len() - self.written) as u64;
        let sent = self.next.map_or(0, |next| next.saturating_sub(unwritten)).max(self.first);
        if received <= sent { kept.confirm(received) } else { Err(not_received(received, 0, sent)) }
    }

    fn has_to_write(&self, progress: Progress) -> bool {
        let has_end = |next| next == progress.end && progress.is_complete && !self.is_shut;
        self.written < self.chunk.len() || self.next.is_some_and(|next| next < until(progress) || has_end(next))
    }

    /// Writes as much as the socket takes at once, or ends the connection's stream if it has all of it.
    fn write(&mut self, kept: &Kept) -> io::Result<()> {
        let Some(next) = &mut self.next else { return Ok(()) };
        if self.written == self.chunk.len() {
            self.chunk.clear();
            self.written = 0;
            let progress = kept.progress();
            let most = usize::try_from(until(progress).saturating_sub(*next)).unwrap_or(CHUNK).min(CHUNK);
            kept.read(*next, most, &mut self.chunk)?;
            *next += self.chunk.len() as u64;
            if *next == progress.end && self.chunk.is_empty() && progress.is_complete && !self.is_shut {
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
    use std::{
        fs,
        path::PathBuf,
        thread::{self, JoinHandle},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A server of a window with 100 bytes, of which 40 are confirmed.
    fn serve(patience: Duration) -> (SocketAddr, Arc<Window>, JoinHandle<Result<End>>) {
        let window = Arc::new(Window::new().expect("a descriptor"));
        assert!(window.append(&[1; 100]));
        window.confirm(40);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(any, Arc::clone(&window), None, Some(PATIENCE), patience).expect("a port");
        (server.address().expect("it listens"), window, thread::spawn(|| server.run()))
    }

    fn connect(address: SocketAddr, received: u64) -> TcpStream {
        let mut client = TcpStream::connect(address).expect("it listens");
        client.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        client.write_all(&received.to_le_bytes()).expect("it is connected");
        client
    }

    /// A client that continues where it says.
    fn accepted(address: SocketAddr, received: u64) -> TcpStream {
        let mut client = connect(address, received);
        let mut begins = [0; 8];
        client.read_exact(&mut begins).expect("it is answered");
        assert_eq!(u64::from_le_bytes(begins), received);
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
        let mut client = accepted(address, 50);
        let mut bytes = [0; 50];
        client.read_exact(&mut bytes).expect("it is sent");
        assert_eq!(bytes, [1; 50]);
        // It cannot have received what was not sent, and the window stays as it is.
        client.write_all(&101_u64.to_le_bytes()).expect("it is connected");
        assert!(is_closed(&mut client));
        assert_eq!(window.progress().start, 40);
        let mut client = accepted(address, 100);
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
        let mut first = accepted(address, 40);
        first.read_exact(&mut [0; 60]).expect("it is sent");
        let silent = TcpStream::connect(address).expect("it listens");
        assert!(is_closed(&mut connect(address, 3)));
        assert!(window.append(&[2; 5]));
        window.notify();
        first.read_exact(&mut [0; 5]).expect("it is still served");
        let mut second = accepted(address, 100);
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

    /// A directory that is removed when this is dropped.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("podtap-server-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("it can be created");
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A block of a MiB.
    fn block() -> Vec<u8> {
        let length = 1_u32 << 20;
        let mut block = [6, length].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        block.resize(length as usize, 0);
        block
    }

    #[test]
    fn a_client_is_sent_no_more_than_it_has_room_for() {
        let directory = Directory::new("room");
        let window = Arc::new(Window::new().expect("a descriptor"));
        let mut spool = Spool::new(&directory.0, 32 << 20).expect("it can be written");
        for _ in 0..20 {
            assert!(window.append(&block()));
            spool.fill(&window, false).expect("it can be written");
        }
        let mut kept = Kept { window, spool: Some(spool), failed: None };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("it listens")).expect("it listens");
        let reader = thread::spawn(|| {
            let mut peer = peer;
            let mut bytes = Vec::new();
            peer.read_to_end(&mut bytes).map(|_| bytes.len())
        });
        let mut client = Client::new(listener.accept().expect("it is connected").0);
        client.begin(&[], 0);
        let sent = |client: &mut Client, kept: &Kept| {
            while client.has_to_write(kept.progress()) {
                client.write(kept).expect("it is read");
            }
            client.next
        };
        assert_eq!(sent(&mut client, &kept), Some(16 << 20));
        client.confirm(1 << 20, &mut kept).expect("it was sent");
        assert_eq!(sent(&mut client, &kept), Some(17 << 20));
        // The end, too, waits for what precedes it.
        kept.window.complete(&[]);
        assert!(!client.has_to_write(kept.progress()));
        client.confirm(17 << 20, &mut kept).expect("it was sent");
        assert_eq!(sent(&mut client, &kept), Some(20 << 20));
        assert_eq!(reader.join().expect("it does not panic").expect("it ends"), 8 + (20 << 20));
    }

    #[test]
    fn all_that_waits_is_kept_without_a_client() {
        let directory = Directory::new("waits");
        let window = Arc::new(Window::new().expect("a descriptor"));
        let spool = Spool::new(&directory.0, 32 << 20).expect("it can be written");
        for _ in 0..8 {
            assert!(window.append(&block()));
        }
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(any, Arc::clone(&window), Some(spool), None, PATIENCE).expect("a port");
        let server = thread::spawn(|| server.run());
        let start = Instant::now();
        while window.progress().start < 8 << 20 {
            assert!(start.elapsed() < PATIENCE, "{:?}", window.progress());
            thread::yield_now();
        }
        window.hurry();
        window.complete(&[]);
        assert_eq!(server.join().expect("it does not panic").expect("it serves"), End::Left);
    }

    #[test]
    fn what_is_kept_may_need_a_first_client() {
        let directory = Directory::new("first");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        for comes in [false, true] {
            let window = Arc::new(Window::new().expect("a descriptor"));
            let spool = Spool::new(&directory.0, 32 << 20).expect("it can be written");
            let first = Some(if comes { PATIENCE } else { Duration::ZERO });
            let server = Server::bind(any, Arc::clone(&window), Some(spool), first, Duration::ZERO).expect("a port");
            let address = server.address().expect("it listens");
            let server = thread::spawn(|| server.run());
            if comes {
                // It is gone at once, and another one may come.
                for _ in 0..2 {
                    accepted(address, 0);
                }
                window.hurry();
                window.complete(&[]);
            }
            let end = if comes { End::Complete } else { End::Abandoned };
            assert_eq!(server.join().expect("it does not panic").expect("it serves"), end);
        }
    }

    #[test]
    fn what_was_kept_may_take_long_in_the_end() {
        let directory = Directory::new("last");
        let spool = Spool::new(&directory.0, 32 << 20).expect("it can be written");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        for (spool, later) in [(Some(spool), LAST), (None, Duration::ZERO)] {
            let window = Arc::new(Window::new().expect("a descriptor"));
            let mut server = Server::bind(any, window, spool, Some(PATIENCE), PATIENCE).expect("a port");
            let now = Instant::now();
            assert_eq!(server.last(5, now), now + LAST);
            assert_eq!(server.last(5, now + LAST), now + LAST, "it confirms nothing");
            assert_eq!(server.last(6, now + LAST), now + LAST + later);
        }
    }

    #[test]
    fn a_silent_client_is_gone() {
        let (address, window, server) = serve(Duration::from_millis(50));
        let mut client = accepted(address, 40);
        assert_eq!(server.join().expect("it does not panic").expect("it serves"), End::Abandoned);
        client.read_exact(&mut [0; 60]).expect("it was sent");
        assert_eq!(window.progress().start, 40, "it has not confirmed them");
    }
}
