//! `podtap-agent try-paths`: which packets pass between nodes, for `kubectl podtap doctor --network`.
//!
//! It runs on several nodes at once, each sending to all others at the port of receivers, and reports what arrives.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    str::FromStr,
    time::Duration,
};

use podtap_model::PathEvent;
use podtap_runtime::shutdown::Shutdown;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use tokio::time::{MissedTickBehavior, interval};

/// Each size is sent that often: some may be lost.
const INTERVAL: Duration = Duration::from_millis(500);
/// Sizes of IP packets that are tried besides the MTU: what networks usually carry, and a small one that all do.
const SIZES: [u32; 7] = [128, 1280, 1350, 1400, 1450, 1500, 8950];
/// The source ports of mirrored frames. With the port of receivers on both sides, a packet would be taken for the answer to one of the
/// other direction by firewalls that keep state, and would pass although the port is blocked.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 50_000..=50_015;
/// What packets begin with.
const MAGIC: &str = "podtap-path";

#[derive(clap::Args)]
pub struct Args {
    /// Name of the node that this runs on.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// UDP port of the receivers.
    #[arg(long)]
    port: u16,
    /// Name of this run: packets of others are ignored.
    #[arg(long)]
    run: String,
    /// NAME=ADDRESS of each node, with this one.
    #[arg(long = "peer", value_name = "NAME=ADDRESS", required = true)]
    peers: Vec<Peer>,
    /// Largest IP packet to send, if not the MTU of the routes.
    #[arg(long)]
    mtu: Option<u32>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    name: String,
    address: IpAddr,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once('=').ok_or("not NAME=ADDRESS")?;
        let address = address.parse().map_err(|_| format!("{address} is not an address"))?;
        Ok(Self { name: name.to_owned(), address })
    }
}

/// Why it cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no --peer has the name of this node, {0}")]
    Unlisted(String),
    #[error("cannot receive UDP packets")]
    Receive(#[source] io::Error),
    #[error("cannot send UDP packets to {0}")]
    Send(String, #[source] io::Error),
    #[error("cannot wait for signals")]
    Signal(#[source] io::Error),
    #[error("cannot report")]
    Report(#[source] io::Error),
}

/// Sends, and reports what arrives, until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<(), Error> {
    let mut shutdown = Shutdown::new().map_err(Error::Signal)?;
    tokio::select! {
        result = try_paths(&args, report) => result,
        () = shutdown.requested() => Ok(()),
    }
}

fn report(event: &PathEvent) -> io::Result<()> {
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, event)?;
    output.write_all(b"\n")?;
    output.flush()
}

/// Never returns but with an error.
async fn try_paths(args: &Args, mut report: impl FnMut(&PathEvent) -> io::Result<()>) -> Result<(), Error> {
    let own = args.peers.iter().find(|peer| peer.name == args.node).map(|peer| peer.address);
    let own = own.ok_or_else(|| Error::Unlisted(args.node.clone()))?;
    let mut paths = Vec::new();
    for peer in args.peers.iter().filter(|peer| peer.name != args.node) {
        let path = Path::new(own, peer, args).map_err(|error| Error::Send(peer.name.clone(), error))?;
        report(&PathEvent::Sends { to: peer.name.clone(), mtu: path.mtu }).map_err(Error::Report)?;
        paths.push(path);
    }
    let listener = match tokio::net::UdpSocket::bind((own, args.port)).await {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            report(&PathEvent::PortInUse).map_err(Error::Report)?;
            None
        }
        Err(error) => return Err(Error::Receive(error)),
    };
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut buffer, mut known) = (vec![0; 65_536], BTreeSet::new());
    loop {
        let received = async {
            match &listener {
                Some(listener) => listener.recv_from(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ticks.tick() => paths.iter().for_each(Path::send),
            received = received => {
                // An error is about a packet.
                let Ok((length, from)) = received else { continue };
                if let Some(event) = event(&buffer[..length], from.ip(), args)
                    && known.insert(event.clone())
                {
                    report(&event).map_err(Error::Report)?;
                }
            }
        }
    }
}

/// The way to another node.
struct Path {
    socket: UdpSocket,
    mtu: u32,
    packets: Vec<Vec<u8>>,
}

impl Path {
    fn new(own: IpAddr, peer: &Peer, args: &Args) -> io::Result<Self> {
        let socket = bind(own)?;
        socket.connect((peer.address, args.port))?;
        socket.set_nonblocking(true)?;
        // Neither fragmented nor limited to what was learned of the path.
        let mtu = if own.is_ipv4() {
            sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
            sockopt::ip_mtu(&socket)?
        } else {
            sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
            sockopt::ipv6_mtu(&socket)?
        };
        let mtu = args.mtu.map_or(mtu, |limit| limit.min(mtu));
        let sizes = SIZES.into_iter().filter(|size| *size < mtu).chain([mtu]);
        let packets = sizes.map(|size| packet(args, size, own)).collect();
        Ok(Self { socket, mtu, packets })
    }

    fn send(&self) {
        for packet in &self.packets {
            // A full queue, or a node that refuses: what does not arrive is what counts.
            let _ = self.socket.send(packet);
        }
    }
}

/// A socket at one of the source ports, or at another one if all are in use.
fn bind(own: IpAddr) -> io::Result<UdpSocket> {
    let mut ports = SOURCE_PORTS.chain([0]).map(|port| UdpSocket::bind(SocketAddr::new(own, port)));
    let is_final =
        |bound: &io::Result<UdpSocket>| !bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    ports.find(is_final).unwrap_or_else(|| Err(io::ErrorKind::AddrInUse.into()))
}

/// Bytes of the headers of IP and UDP.
fn headers(address: IpAddr) -> u32 {
    if address.is_ipv4() { 28 } else { 48 }
}

/// The payload of an IP packet of this size.
fn packet(args: &Args, size: u32, own: IpAddr) -> Vec<u8> {
    let mut packet = format!("{MAGIC} {} {} {size} ", args.run, args.node).into_bytes();
    let length = usize::try_from(size.saturating_sub(headers(own))).unwrap_or_default();
    packet.resize(length.max(packet.len()), 0);
    packet
}

/// What a packet tells, if it is one of this run, from the address of the node that it names.
fn event(packet: &[u8], from: IpAddr, args: &Args) -> Option<PathEvent> {
    // Longer than the longest name of a node (253 characters) with the rest.
    let start = &packet[..packet.len().min(512)];
    let mut words = start.split(|byte| *byte == b' ').map(str::from_utf8);
    let mut word = || words.next()?.ok();
    let (magic, run, name, size) = (word()?, word()?, word()?, word()?.parse::<u32>().ok()?);
    let peer = args.peers.iter().find(|peer| peer.name == name && peer.name != args.node && peer.address == from)?;
    let is_whole = u32::try_from(packet.len()).ok()? + headers(from) == size;
    (magic == MAGIC && run == args.run && is_whole).then(|| PathEvent::Received { from: peer.name.clone(), size })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::timeout;

    use super::*;

    fn args(node: &str, port: u16) -> Args {
        let peers = ["a=127.0.0.2", "b=127.0.0.3"].map(|text| text.parse().expect("it is one")).to_vec();
        Args { node: node.to_owned(), port, run: "r1".to_owned(), peers, mtu: Some(1500) }
    }

    /// A port that is free at the address.
    fn free(address: Ipv4Addr) -> u16 {
        let socket = UdpSocket::bind((address, 0)).expect("loopback has the address");
        socket.local_addr().expect("it is bound").port()
    }

    #[tokio::test]
    async fn two_nodes_hear_each_other_in_every_size() {
        let port = free(Ipv4Addr::new(127, 0, 0, 2));
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        let (a, b) = (args("a", port), args("b", port));
        let one = try_paths(&a, |event| {
            of_a.push(event.clone());
            // What is sent, five sizes below the MTU, and the MTU.
            if of_a.len() == 7 { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        });
        let other = try_paths(&b, |event| {
            of_b.push(event.clone());
            Ok(())
        });
        let end = timeout(Duration::from_secs(20), async {
            tokio::select! { end = one => end, end = other => end }
        });
        assert!(matches!(end.await, Ok(Err(Error::Report(_)))), "{of_b:?}");
        assert_eq!(of_a[0], PathEvent::Sends { to: "b".to_owned(), mtu: 1500 });
        let sizes: Vec<_> =
            [128, 1280, 1350, 1400, 1450, 1500].map(|size| PathEvent::Received { from: "b".to_owned(), size }).to_vec();
        assert_eq!(of_a[1..], sizes);
    }

    #[tokio::test]
    async fn a_port_in_use_is_reported() {
        let taken = UdpSocket::bind("127.0.0.2:0").expect("loopback has the address");
        let port = taken.local_addr().expect("it is bound").port();
        let (args, mut events) = (args("a", port), Vec::new());
        let end = try_paths(&args, |event| {
            events.push(event.clone());
            if *event == PathEvent::PortInUse { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        });
        assert!(matches!(end.await, Err(Error::Report(_))), "{events:?}");
    }

    #[test]
    fn other_packets_are_ignored() {
        let (args, from) = (args("a", 1), "127.0.0.3".parse().expect("an address"));
        let good = packet(&Args { node: "b".to_owned(), ..self::args("b", 1) }, 400, from);
        let received = Some(PathEvent::Received { from: "b".to_owned(), size: 400 });
        assert_eq!(event(&good, from, &args), received);
        assert_eq!(event(&good, "127.0.0.9".parse().expect("an address"), &args), None, "from elsewhere");
        assert_eq!(event(&good[..300], from, &args), None, "shortened");
        assert_eq!(event(&good, from, &Args { run: "r2".to_owned(), ..self::args("a", 1) }), None, "of another run");
        assert_eq!(event(b"", from, &args), None);
        assert_eq!(event(&[0xff; 372], from, &args), None);
    }
}
