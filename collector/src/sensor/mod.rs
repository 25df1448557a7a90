//! Frames of taps, for sensors and rpcap clients: what ExtraHop's packet forwarder and libpcap's rpcapd do.
//!
//! This thread captures, and offers each frame to the [`feed`] of each capture; a client has a thread for its control connection
//! ([`session`]) and one for its frames ([`data`]). Capturing never waits for a client.

mod data;
mod datagrams;
mod feed;
mod figures;
mod filter;
mod rpcap;
mod session;

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::sys::signalfd::SignalFd;
use podtap_flow::EtherType;
use podtap_runtime::{
    backoff::Backoff,
    http::{Health, Metrics, Probes, Server},
    permit,
    telemetry::with_causes,
};
use tracing::{info, warn};

use self::{
    datagrams::Packer,
    feed::Feeds,
    figures::Figures,
    rpcap::{Refusal, code},
    session::{Session, Shared},
};
use crate::{
    analysis::has_ether_type,
    capture::{self, Captured, CapturedFrame, Input, LAST_BLOCK, poll_all},
    ether_type,
};

/// Clients that connect, at once.
const MOST_CLIENTS: i64 = 4;
/// Sensors to connect to.
const MOST_SENSORS: usize = 8;
/// What clients that connect are called in metrics.
const CLIENTS: &str = "clients";
/// From the first attempt to connect to a sensor to the second one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How long the frames that wait may take when the program ends.
const LAST: Duration = Duration::from_secs(5);
/// How long capturing may take for a tick before `/livez` fails.
const LIVENESS: Duration = Duration::from_secs(30);
/// Pause after an error of the socket that listens, as of too many open files.
const PAUSE: Duration = Duration::from_secs(1);

/// `podtap-collector sensor`.
#[derive(Args)]
#[group(id = "inputs", required = true, args = capture::Arguments::IDS)]
pub struct Arguments {
    /// Sensor to connect to, which then controls the capture by rpcap (active mode), for example 192.0.2.1:2003. Retried until it
    /// answers. Can be repeated
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "listen", value_parser = sensor)]
    connect: Vec<String>,
    /// Longest time in seconds from an attempt to connect to a sensor to the next one. The first is one second, and each is twice as long
    /// as the one before
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    retry_after: u32,
    /// Address on which rpcap clients are served, such as Wireshark (passive mode); the port of rpcap is 2002. Anyone who reaches it can
    /// read the frames
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Bytes of a UDP datagram of udpstr, for clients that ask for datagrams. 0: each frame in a datagram of its own (rpcap)
    #[arg(long, value_name = "BYTES", default_value_t = 1472, value_parser = payload)]
    udp_payload: u16,
    /// MiB of frames that wait for each client. What finds no room is dropped and counted
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    queue_size: u16,
    #[command(flatten)]
    capture: capture::Arguments,
    /// EtherType of the probes of the taps, as in the PodTapPolicy (probeEtherType). Frames that have it are not sent
    #[arg(long, value_name = "NUMBER", default_value = "0x88b5", value_parser = ether_type)]
    ether_type: EtherType,
    /// Unix socket of `podtap-collector names --policy-socket`: --connect connects only to addresses of the cluster, and to those that
    /// the PodTapPolicy allows
    #[arg(long, value_name = "PATH")]
    policy_socket: Option<PathBuf>,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS")]
    probes: Option<SocketAddr>,
}

/// Serves sensors until a signal.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.connect.len() <= MOST_SENSORS, "--connect can be repeated up to {MOST_SENSORS} times");
    let signals = capture::signals()?;
    let mut inputs = arguments.capture.open()?;
    let (health, metrics) = (Health::new(LIVENESS), Metrics::new());
    let shared = Arc::new(Shared {
        feeds: Arc::new(Feeds::default()),
        figures: Figures::new(&metrics),
        payload: arguments.udp_payload,
        room: usize::from(arguments.queue_size) << 20,
    });
    if let Some(address) = arguments.listen {
        let listener = TcpListener::bind(address).with_context(|| format!("{address} cannot be listened on"))?;
        eprintln!("podtap-collector: rpcap clients are served on {}", listener.local_addr()?);
        let shared = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &shared));
    }
    for sensor in &arguments.connect {
        let (sensor, shared) = (sensor.clone(), Arc::clone(&shared));
        let longest = Duration::from_secs(arguments.retry_after.into());
        let policy = arguments.policy_socket.clone();
        thread::spawn(move || keep_connecting(&sensor, longest, policy.as_deref(), &shared));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let probes = Probes { health: health.clone(), metrics };
    let _server = arguments.probes.map(|address| runtime.block_on(Server::spawn(address, probes))).transpose()?;
    health.set_ready(true);
    eprintln!("podtap-collector: capturing");
    let captured = capture(&signals, &mut inputs, arguments.ether_type, &shared, &health)?;
    let not_sent = shared.feeds.finish(Instant::now() + LAST);
    let Captured { frames, dropped, .. } = captured;
    eprintln!(
        "podtap-collector: {frames} frames captured, {dropped} dropped by the kernel, {not_sent} not sent at the end"
    );
    Ok(())
}

/// Offers frames to all captures until a signal.
fn capture(
    signals: &SignalFd,
    inputs: &mut [Input],
    ether_type: EtherType,
    shared: &Shared,
    health: &Health,
) -> Result<Captured> {
    let Shared { feeds, figures, .. } = shared;
    let mut captured = Captured::default();
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        poll_all(inputs.iter().map(|input| input.as_fd()).chain([signals.as_fd()]))?;
        if end.is_none() && signals.read_signal()?.is_some() {
            // Blocks that the kernel has not passed on yet have frames from before.
            end = Some(Instant::now() + LAST_BLOCK);
        }
        let before = captured;
        for input in &mut *inputs {
            input.load(&mut captured)?;
            input.read(|frames| {
                let mirrored: Vec<CapturedFrame<'_>> =
                    frames.iter().filter(|frame| !has_ether_type(frame.bytes, ether_type)).copied().collect();
                captured.frames += mirrored.len() as u64;
                feeds.offer(&mirrored);
            })?;
            input.check()?;
        }
        figures.frames.inc_by(captured.frames - before.frames);
        figures.dropped.inc_by(captured.dropped - before.dropped);
        health.alive();
    }
    Ok(captured)
}

/// Serves clients that connect.
fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let figures = shared.figures.of(CLIENTS);
    loop {
        let (socket, client) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a client cannot be accepted");
                thread::sleep(PAUSE);
                continue;
            }
        };
        if figures.connected.get() >= MOST_CLIENTS {
            warn!(%client, "refused: there are {MOST_CLIENTS} clients already");
            let refusal = Refusal::new(code::NETWORK, format!("there are {MOST_CLIENTS} clients already"));
            // A few bytes, which the socket takes at once.
            let _ = io::Write::write_all(&mut &socket, &refusal.encode());
            continue;
        }
        match Session::new(Arc::clone(shared), socket, figures.clone(), false) {
            Ok(session) => drop(thread::spawn(move || serve(session, &client.to_string()))),
            Err(error) => warn!(%client, %error, "a client cannot be served"),
        }
    }
}

/// Connects to a sensor again whenever the connection has ended.
fn keep_connecting(sensor: &str, longest: Duration, policy: Option<&Path>, shared: &Arc<Shared>) {
    let figures = shared.figures.of(sensor);
    // What answers for the policy starts at the same time as this program, and takes a moment.
    let mut backoff = Backoff::new(FIRST_RETRY, longest);
    loop {
        let attempt = Instant::now();
        let connected = connect(policy, sensor).and_then(|socket| {
            let control = socket.try_clone()?;
            Ok((control, Session::new(Arc::clone(shared), socket, figures.clone(), true)?))
        });
        match connected {
            Ok((control, session)) => thread::scope(|scope| {
                let (ended, end) = mpsc::channel::<()>();
                scope.spawn(move || close_when_forbidden(policy, sensor, &control, &end));
                serve(session, sensor);
                drop(ended);
            }),
            Err(error) => {
                figures.failures.inc();
                warn!(sensor, %error, "the sensor cannot be connected to, retrying");
            }
        }
        if attempt.elapsed() > longest {
            backoff.reset();
        } else {
            thread::sleep(backoff.pause().saturating_sub(attempt.elapsed()));
        }
    }
}

/// Whether the policy allows an address. Without a socket to ask, it does.
fn check(policy: Option<&Path>, address: SocketAddr) -> io::Result<()> {
    let Some(socket) = policy else { return Ok(()) };
    let checked = permit::check(socket, &address.ip().to_string(), address.port());
    checked.map(drop).map_err(|refusal| io::Error::other(with_causes(&refusal).to_string()))
}

/// Asks again from time to time, until the session has ended.
fn close_when_forbidden(policy: Option<&Path>, sensor: &str, control: &TcpStream, end: &mpsc::Receiver<()>) {
    while end.recv_timeout(permit::AGE) == Err(mpsc::RecvTimeoutError::Timeout) {
        // The name of the sensor may have other addresses by now.
        if let Err(error) = control.peer_addr().and_then(|address| check(policy, address)) {
            warn!(sensor, %error, "the connection is closed");
            // It ends the session.
            let _ = control.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// To the first address that is allowed and answers.
fn connect(policy: Option<&Path>, sensor: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in sensor.to_socket_addrs()? {
        match check(policy, address).and_then(|()| TcpStream::connect_timeout(&address, data::CONNECT)) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn serve(session: Session, peer: &str) {
    info!(peer, "connected");
    match session.serve() {
        Ok(()) => info!(peer, "the connection was closed"),
        Err(error) => warn!(peer, error = format!("{error:#}"), "the connection has ended"),
    }
}

/// A host and a port.
fn sensor(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(text.to_owned()),
        _ => Err("it must be a host and a port, for example 192.0.2.1:2003 or [2001:db8::1]:2003".to_owned()),
    }
}

/// Bytes of a datagram.
fn payload(text: &str) -> Result<u16, String> {
    let (least, most) = (Packer::LEAST, Packer::MOST);
    let bytes = text.parse().ok().filter(|bytes| *bytes == 0 || (least..=most).contains(bytes));
    bytes.ok_or_else(|| format!("it must be 0, or {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead as _, BufReader, ErrorKind, Write as _},
        os::unix::net::UnixListener,
    };

    use super::*;

    #[test]
    fn an_address_is_not_connected_to_before_the_policy_allows_it() {
        let path = std::env::temp_dir().join(format!("podtap-sensor-{}.sock", std::process::id()));
        let policy = UnixListener::bind(&path).expect("the path is free");
        let answers = thread::spawn(move || {
            ["no, because\n", "yes\n"].map(|answer| {
                let (mut stream, _) = policy.accept().expect("a question");
                let mut question = String::new();
                BufReader::new(&stream).read_line(&mut question).expect("a question");
                stream.write_all(answer.as_bytes()).expect("it waits");
                question
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("it can be set");
        let sensor = listener.local_addr().expect("an address").to_string();
        let connect = || connect(Some(&path), &sensor).map_err(|error| error.to_string());
        assert_eq!(connect().expect_err("it is forbidden"), "127.0.0.1: no, because");
        assert_eq!(listener.accept().expect_err("nothing has come").kind(), ErrorKind::WouldBlock);
        let socket = connect().expect("it is allowed");
        assert_eq!(socket.peer_addr().expect("it is connected").to_string(), sensor);
        assert_eq!(answers.join().expect("no panic"), ["127.0.0.1\n"; 2]);
        fs::remove_file(&path).expect("it exists");
    }

    #[test]
    fn a_sensor_has_a_host_and_a_port() {
        for valid in ["192.0.2.1:2003", "[2001:db8::1]:2003", "sensor.example:1"] {
            assert_eq!(sensor(valid).as_deref(), Ok(valid));
        }
        for invalid in ["", "sensor", ":2003", "sensor:", "sensor:0", "sensor:65536"] {
            assert!(sensor(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn a_datagram_has_room_for_a_frame() {
        assert_eq!(["0", "64", "1472", "65507"].map(payload), [Ok(0), Ok(64), Ok(1472), Ok(65_507)]);
        for invalid in ["-1", "1", "63", "65508", "x"] {
            assert!(payload(invalid).is_err(), "{invalid}");
        }
    }
}
