//! `podtap-collector stream` without capabilities, and what its client gets, read by tshark and capinfos.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, IoSlice, Read as _, Write as _},
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
};

use nix::sys::signal::Signal;
use podtap_model::PACKET_SOCKET_ADDRESS;
use podtap_tests::{
    capture::{injector, locked},
    child::{self, Killed},
    collector::binary,
    frames::{connection, udp},
    net::Network,
    pcap,
    wait::{PATIENCE, until},
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};

use crate::views::identity;

const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const CART: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// How the receiver of a tap is called.
const RECEIVER: &str = "ptap4096";

/// The network namespace of a pod, with receivers whose frames a test writes.
struct Pod {
    network: Network,
}

impl Pod {
    fn new() -> Self {
        let pod = Self { network: Network::new() };
        pod.add(RECEIVER);
        pod
    }

    fn add(&self, receiver: &str) {
        let tap = format!("x{receiver}");
        self.network.ip(&format!("link add {receiver} type veth peer name {tap}\n"));
        for device in [receiver, &tap] {
            self.network.set(&format!("ipv6/conf/{device}/disable_ipv6"), "1");
            self.network.ip(&format!("link set {device} mtu 65535 up\n"));
        }
    }

    fn injector(&self, receiver: &str) -> Injector {
        Injector(injector(&self.network, &format!("x{receiver}")))
    }

    /// Hands a socket over, as the tap-helper does, and returns when it is captured with. It ends with the connection.
    fn hand_over(&self, receiver: &str) -> OwnedFd {
        let connection = self.send(&format!(r#"{{"interface":"{receiver}"}}"#), &[locked(&self.network, receiver)]);
        self.until_captured(receiver);
        connection
    }

    fn until_captured(&self, receiver: &str) {
        until("the interface has a reader", PATIENCE, || {
            let links = self.network.json(&format!("ip -j -d link show dev {receiver}"));
            if links[0]["promiscuity"] == 1 { Ok(()) } else { Err(format!("{links:?}")) }
        });
    }

    /// Sends a message to where sockets are handed over.
    fn send(&self, message: &str, descriptors: &[OwnedFd]) -> OwnedFd {
        self.network.within(|| {
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
            let socket = socket.expect("a socket");
            let address = SocketAddrUnix::new_abstract_name(PACKET_SOCKET_ADDRESS.as_bytes()).expect("an address");
            connect(&socket, &address).expect("it listens");
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            sendmsg(&socket, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::empty())
                .expect("it is sent");
            socket
        })
    }
}

/// Writes frames that a receiver gets.
struct Injector(File);

impl Injector {
    fn frame(&mut self, frame: &[u8]) {
        // After an empty virtio_net_hdr.
        self.0.write_all(&[&[0; 10], frame].concat()).expect("the device takes it");
    }

    fn frames(&mut self, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| self.frame(frame));
    }
}

/// `podtap-collector stream` as it runs in a restricted pod.
struct Stream {
    child: Killed,
    network: std::path::PathBuf,
    address: SocketAddr,
    errors: Option<JoinHandle<String>>,
}

impl Stream {
    fn start(pod: &Pod, arguments: &[&str]) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", pod.network.path().display()));
        command.args(["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups", "--no-new-privs"]);
        command.args(["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]);
        Self::spawn(pod, command, arguments)
    }

    fn spawn(pod: &Pod, mut command: Command, arguments: &[&str]) -> Self {
        command.arg(binary()).args(["stream", "--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = Killed(command.stderr(Stdio::piped()).spawn().expect("it runs"));
        let mut errors = BufReader::new(child.0.stderr.take().expect("it is piped"));
        let mut text = String::new();
        let address = loop {
            assert!(errors.read_line(&mut text).expect("it can be read") > 0, "it ended: {text}");
            if let Some((_, address)) = text.trim_end().rsplit_once("to a client at ") {
                break address.parse().expect("an address");
            }
        };
        let errors = thread::spawn(move || {
            let _ = errors.read_to_string(&mut text);
            text
        });
        Self { child, network: pod.network.path().to_owned(), address, errors: Some(errors) }
    }

    /// A client that has received so many bytes.
    fn client(&self, received: u64) -> Client {
        let address = self.address;
        let socket = podtap_tests::namespace::within(&self.network, move || TcpStream::connect(address));
        let socket = socket.expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        let mut client = Client { socket, from: received, bytes: Vec::new() };
        client.confirm();
        client
    }

    fn end(&self) {
        child::signal(&self.child.0, Signal::SIGTERM);
    }

    /// Waits until it ends. Returns what it says.
    fn wait(&mut self) -> (ExitStatus, String) {
        let errors = self.errors.take().expect("it is waited for once").join().expect("it does not panic");
        (self.child.0.wait().expect("it ends"), errors)
    }

    /// Has it end, and returns what the client has then.
    fn finish(mut self, mut client: Client) -> Capture {
        self.end();
        client.read_to_end();
        let (status, errors) = self.wait();
        assert!(status.success(), "{errors}");
        Capture::new(&client.bytes)
    }
}

/// A client, and what it has received.
struct Client {
    socket: TcpStream,
    from: u64,
    bytes: Vec<u8>,
}

impl Client {
    fn received(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }

    fn confirm(&mut self) {
        let received = self.received();
        self.socket.write_all(&received.to_le_bytes()).expect("it is connected");
    }

    /// Reads some bytes, and confirms them. Returns whether there were any.
    fn read(&mut self) -> bool {
        let mut buffer = vec![0; 1 << 16];
        let count = self.socket.read(&mut buffer).expect("something comes, or the end");
        self.bytes.extend(&buffer[..count]);
        self.confirm();
        count > 0
    }

    fn read_to_end(&mut self) {
        while self.read() {}
    }

    /// Reads until this is in it.
    fn read_until(&mut self, text: &[u8]) {
        while !self.bytes.windows(text.len()).any(|window| window == text) {
            assert!(self.read(), "it ended");
        }
    }
}

/// What a client got, in a file that is removed when this is dropped.
struct Capture(std::path::PathBuf);

impl Capture {
    fn new(bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("podtap-stream-{}-{number}.pcapng", std::process::id()));
        std::fs::write(&path, bytes).expect("it can be written");
        Self(path)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A frame of a probe: of the EtherType, and no metadata.
fn probe() -> Vec<u8> {
    let mut probe = identity("web", WEB);
    probe[14] = 1;
    probe
}

#[test]
fn a_client_gets_the_frames_of_the_interface_with_names_and_directions() {
    let pod = Pod::new();
    pod.add("ptap4097");
    let stream = Stream::start(&pod, &[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", stream.child.0.id())).expect("it runs");
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    assert_eq!([line("CapEff:"), line("CapBnd:"), line("NoNewPrivs:")], ["0000000000000000", "0000000000000000", "1"]);
    let mut client = stream.client(0);
    client.read_until(b"podtap-collector");
    assert!(client.bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "the header comes before there is a frame");
    let _connection = pod.hand_over(RECEIVER);
    let (mut receiver, mut other) = (pod.injector(RECEIVER), pod.injector("ptap4097"));
    receiver.frames(&[probe(), identity("web", WEB)]);
    receiver.frames(&connection((WEB, 40_000), (OUTSIDE, 443)));
    other.frame(&udp((WEB, 1), (CART, 2), b"of another interface"));
    receiver.frames(&[identity("cart", CART), udp((CART, 3), (OUTSIDE, 4), b"from cart"), probe()]);
    receiver.frame(&udp((OUTSIDE, 5), (OUTSIDE, 6), b"of no pod"));
    client.read_until(b"of no pod");
    let capture = stream.finish(client);
    let rows = pcap::fields(&capture.0, ["frame.interface_name", "frame.packet_flags_direction", "frame.protocols"]);
    println!("{rows:?}");
}
