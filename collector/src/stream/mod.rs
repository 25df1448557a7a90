//! Frames as they come, for `kubectl podtap capture`: a stream of pcapng for one client.
//!
//! It runs in a pod that is the destination of a tap, without capabilities: [`handover`] gets packet sockets from the tap-helper. This thread
//! captures, and appends to a [`Window`] in memory; [`server`] writes to the client. Capturing never waits for the client: frames without
//! room in the window are dropped, and counted in the stream. With `--keep`, the window is emptied into a [`Spool`], also without a client.

mod handover;
mod server;
mod spool;

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use nix::{errno::Errno, sys::signalfd::SignalFd};
use podtap_flow::{
    EtherType, Source, Timestamp,
    metadata::{Metadata, MetadataFrame},
    names::{Names, Objects},
    packet,
};
use podtap_model::{InterfaceName, PacketSocket};
use tracing::{info, warn};

use self::{
    handover::{Connection, Listener, Received},
    server::{End, Server},
    spool::{LEAST, Spool},
};
use crate::{
    analysis::{Frame, has_ether_type},
    capture::{self, BLOCKS, LAST_BLOCK, Ring, poll_all},
    clock::now,
    ether_type,
    output::{
        pcapng::{Format, Writer},
        window::Window,
    },
};

/// Interfaces that are captured from at once. Each has a ring.
const MOST_INTERFACES: usize = 4;
/// Connections of the tap-helper from which no socket has come.
const MOST_WAITING: usize = 16;
/// Seconds within which a client has to come, unless what comes is kept for one.
const FIRST_CLIENT: u32 = 60;
/// How often pods that ended long ago are forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// `podtap-collector stream`.
#[derive(Args)]
#[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
pub struct Arguments {
    /// Address on which a client gets the stream, over TCP. Anyone who reaches it can read the frames
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Interface to capture from, as soon as it exists, instead of sockets that the tap-helper hands over. Needs the capability NET_RAW
    #[arg(long, value_name = "NAME")]
    interface: Option<InterfaceName>,
    /// EtherType of the probes of the taps, as in the PodTapPolicy (probeEtherType). Frames that have it are not in the stream
    #[arg(long, value_name = "NUMBER", default_value = "0x88b5", value_parser = ether_type)]
    ether_type: EtherType,
    /// Form of the stream
    #[arg(long, value_enum, default_value_t = Format::Pcapng)]
    format: Format,
    /// Seconds within which a client has to come. Default: 60, and with --keep none has to come
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    first_client: Option<u32>,
    /// Directory in which to keep what no client has received, while there is none as well: the program does not end without a client, unless --first-client asks for it
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["max_bytes", "packets"])]
    keep: Option<PathBuf>,
    /// Bytes that are kept at most, without a client the newest ones
    #[arg(long, value_name = "BYTES", requires = "keep", default_value_t = 1 << 30, value_parser = clap::value_parser!(u64).range(LEAST..))]
    keep_bytes: u64,
    /// Seconds without a number from the client after which it is gone, and without --keep the program ends
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    abandoned_after: u32,
    /// End the stream so many seconds after the first interface is captured from
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// End the stream with the frame by which it reaches so many bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    max_bytes: Option<u64>,
    /// End the stream after so many frames
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    packets: Option<u64>,
}

/// Captures until the client has what it asked for or is gone, or a signal.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.keep.is_none() || arguments.format == Format::Pcapng,
        "--keep takes pcapng: of a pcap file, no part can be read alone"
    );
    let signals = capture::signals()?;
    let window = Arc::new(Window::new()?);
    let spool = arguments.keep.as_deref().map(|directory| Spool::new(directory, arguments.keep_bytes));
    let spool = spool.transpose().context("frames cannot be kept")?;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let first = arguments.first_client.or_else(|| arguments.keep.is_none().then_some(FIRST_CLIENT)).map(seconds);
    let patience = seconds(arguments.abandoned_after);
    let server = Server::bind(arguments.listen, Arc::clone(&window), spool, first, patience)?;
    let sockets = match &arguments.interface {
        Some(name) => Sockets::Own(name.clone()),
        None => Sockets::HandedOver { listener: Listener::bind()?, waiting: Vec::new() },
    };
    let mut stream = Stream::new(arguments, Arc::clone(&window));
    eprintln!("podtap-collector: streaming to a client at {}", server.address()?);
    let server = thread::spawn(|| server.run());
    let capture = Capture { sockets, inputs: Vec::new(), lost: 0, started: None };
    let lost = capture.run(arguments.seconds.map(seconds), &signals, &server, &mut stream)?;
    stream.writer.finish()?;
    wait(&signals, &server, &window)?;
    let end = server.join().map_err(|_| io::Error::other("the thread that writes to the client has panicked"))??;
    let (written, dropped) = stream.writer.counts();
    let why = match end {
        End::Complete => "the client has all",
        End::Abandoned => "there was no client, or it was silent",
        End::Left => "the client had left",
    };
    eprintln!(
        "podtap-collector: {written} frames streamed, {dropped} dropped because the client was too slow, {lost} dropped by the kernel; {why}"
    );
    Ok(())
}

/// Waits until the client has the rest, or is gone. A signal: not for one that has left.
fn wait(signals: &SignalFd, server: &JoinHandle<Result<End>>, window: &Window) -> Result<()> {
    while !server.is_finished() {
        poll_all([signals.as_fd()])?;
        if signals.read_signal()?.is_some() {
            window.hurry();
        }
    }
    Ok(())
}

/// Writes frames with the names that taps tell.
struct Stream {
    names: Names,
    writer: Writer,
    window: Arc<Window>,
    ether_type: EtherType,
    max_bytes: u64,
    packets: u64,
    forgot: Timestamp,
}

impl Stream {
    fn new(arguments: &Arguments, window: Arc<Window>) -> Self {
        Self {
            names: Names::new(Objects::default()),
            writer: Writer::stream(arguments.format, Arc::clone(&window)),
            window,
            ether_type: arguments.ether_type,
            max_bytes: arguments.max_bytes.unwrap_or(u64::MAX),
            packets: arguments.packets.unwrap_or(u64::MAX),
            forgot: now(),
        }
    }

    fn is_over(&self) -> bool {
        self.writer.counts().0 >= self.packets || self.window.progress().end >= self.max_bytes
    }

    fn observe(&mut self, frame: &Frame<'_>) {
        if has_ether_type(frame.bytes, self.ether_type) {
            if let Some(MetadataFrame { pod, metadata: Metadata::Pod(metadata), .. }) =
                MetadataFrame::decode(frame.bytes, self.ether_type.get())
            {
                self.names.identify(&pod, &metadata, frame.at);
            }
        } else if !self.is_over() {
            self.writer.frame(frame, packet::parse(frame.bytes, frame.length).as_ref(), &self.names);
        }
    }

    fn tick(&mut self, now: Timestamp, lost: u64) {
        self.writer.tick(now, lost);
        if now.since(self.forgot) >= FORGET {
            self.forgot = now;
            self.names.expire(now);
        }
        self.window.notify();
    }
}

/// Where packet sockets come from.
enum Sockets {
    /// The interface is opened when it exists.
    Own(InterfaceName),
    HandedOver {
        listener: Listener,
        waiting: Vec<Connection>,
    },
}

/// An interface that is captured from.
struct Input {
    interface: InterfaceName,
    source: Source,
    ring: Ring,
    /// Open, for the tap-helper to know that this program captures.
    connection: Option<Connection>,
    /// It went down, or was removed: when the kernel has passed on its last frames.
    ended: Option<Instant>,
}

impl Input {
    /// Whether frames still come. If not, the tap-helper may hand over another socket.
    fn is_up(&mut self) -> bool {
        if self.ended.is_none()
            && let Err(error) = self.ring.check()
        {
            warn!(interface = %self.interface, %error, "it went down, or was removed");
            self.connection = None;
            self.ended = Some(Instant::now() + LAST_BLOCK);
        }
        self.ended.is_none()
    }
}

/// What is captured.
struct Capture {
    sockets: Sockets,
    inputs: Vec<Input>,
    /// Frames that the kernel dropped.
    lost: u64,
    /// When the first interface was captured from.
    started: Option<Instant>,
}

impl Capture {
    /// Captures until the stream is over or not read, so much time has passed, or a signal. Returns how many frames the kernel dropped.
    fn run(
        mut self,
        limit: Option<Duration>,
        signals: &SignalFd,
        server: &JoinHandle<Result<End>>,
        stream: &mut Stream,
    ) -> Result<u64> {
        let mut end: Option<Instant> = None;
        loop {
            self.wait(signals)?;
            if signals.read_signal()?.is_some() {
                stream.window.hurry();
                // Blocks that the kernel has not passed on yet have frames from before.
                end.get_or_insert(Instant::now() + LAST_BLOCK);
            }
            self.take_sockets(stream)?;
            self.read(stream)?;
            stream.tick(now(), self.lost);
            let is_late = self.started.zip(limit).is_some_and(|(started, limit)| started.elapsed() >= limit);
            if is_late || stream.is_over() || server.is_finished() || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(self.lost);
            }
        }
    }

    fn wait(&self, signals: &SignalFd) -> Result<()> {
        let mut waiting = vec![signals.as_fd()];
        if let Sockets::HandedOver { listener, waiting: connections } = &self.sockets {
            waiting.push(listener.as_fd());
            waiting.extend(connections.iter().map(Connection::as_fd));
        }
        waiting.extend(self.inputs.iter().map(|input| input.ring.as_fd()));
        waiting.extend(self.inputs.iter().filter_map(|input| input.connection.as_ref()).map(Connection::as_fd));
        poll_all(waiting)
    }

    /// Captures from what can be captured from now.
    fn take_sockets(&mut self, stream: &mut Stream) -> Result<()> {
        match &mut self.sockets {
            Sockets::Own(interface) => {
                let interface = interface.clone();
                if !self.inputs.is_empty() {
                    return Ok(());
                }
                match Ring::open(&interface) {
                    Ok(ring) => self.add(interface, ring, None, stream),
                    Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => {}
                    Err(error) => return Err(error).with_context(|| capture::cannot_capture(&interface)),
                }
            }
            Sockets::HandedOver { listener, waiting } => {
                while let Some(connection) = listener.accept()? {
                    if waiting.len() < MOST_WAITING {
                        waiting.push(connection);
                    }
                }
                for connection in std::mem::take(waiting) {
                    self.take_socket(connection, stream);
                }
            }
        }
        Ok(())
    }

    /// Captures with the socket that has come by a connection, if one has. What is no packet socket is refused: the connection is closed.
    fn take_socket(&mut self, connection: Connection, stream: &mut Stream) {
        let taken = match connection.receive() {
            Ok(Received::Nothing) => {
                if let Sockets::HandedOver { waiting, .. } = &mut self.sockets {
                    waiting.push(connection);
                }
                return;
            }
            Ok(Received::End) => return,
            Ok(Received::Socket(PacketSocket { interface }, socket)) => {
                // The tap-helper was restarted. The ring of the earlier socket misses nothing.
                let of_interface = |input: &&mut Input| input.interface == interface;
                if let Some(input) =
                    self.inputs.iter_mut().filter(of_interface).find_map(|input| input.is_up().then_some(input))
                {
                    input.connection = Some(connection);
                    return;
                }
                if self.inputs.len() < MOST_INTERFACES {
                    let ring = Ring::of(socket, &interface);
                    ring.with_context(|| format!("{interface} cannot be captured from with it"))
                        .map(|ring| self.add(interface, ring, Some(connection), stream))
                } else {
                    Err(anyhow!("there are {MOST_INTERFACES} already"))
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            warn!(error = format!("{error:#}"), "a packet socket is refused");
        }
    }

    fn add(&mut self, interface: InterfaceName, ring: Ring, connection: Option<Connection>, stream: &mut Stream) {
        info!(%interface, "capturing");
        self.started.get_or_insert_with(Instant::now);
        let source = stream.writer.source(&interface);
        self.inputs.push(Input { interface, source, ring, connection, ended: None });
    }

    /// Takes the frames that wait.
    fn read(&mut self, stream: &mut Stream) -> Result<()> {
        for input in &mut self.inputs {
            self.lost += input.ring.dropped()?;
            for _ in 0..BLOCKS {
                let source = input.source;
                let is_block = input.ring.read(|frames| {
                    for frame in frames {
                        stream.observe(&Frame { source, at: frame.at, length: frame.length, bytes: frame.bytes });
                    }
                });
                if !is_block {
                    break;
                }
                stream.window.notify();
            }
            let is_open = |connection: &Connection| matches!(connection.receive(), Ok(Received::Nothing));
            input.connection = input.connection.take().filter(is_open);
        }
        let now = Instant::now();
        self.inputs.retain_mut(|input| input.is_up() || input.ended.is_some_and(|ended| now < ended));
        Ok(())
    }
}
