//! `podtap-collector stream` without capabilities, and what its client gets, read by tshark and capinfos.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _},
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
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
    wait::{PATIENCE, uninterrupted, until},
};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};

use crate::{views::identity, written::statistics};

const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const CART: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// How the receiver of a tap is called.
pub const RECEIVER: &str = "ptap4096";

/// The network namespace of a pod, with receivers whose frames a test writes.
pub struct Pod {
    pub network: Network,
}

impl Pod {
    pub fn new() -> Self {
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

    pub fn injector(&self, receiver: &str) -> Injector {
        Injector(injector(&self.network, &format!("x{receiver}")))
    }

    /// Hands a socket over, as the tap-helper does, and returns when it is captured with. It ends with the connection.
    fn hand_over(&self, receiver: &str) -> OwnedFd {
        let connection = self.send(&format!(r#"{{"interface":"{receiver}"}}"#), &[locked(&self.network, receiver)]);
        self.until_captured(receiver);
        connection
    }

    pub fn until_captured(&self, receiver: &str) {
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
pub struct Injector(File);

impl Injector {
    pub fn frame(&mut self, frame: &[u8]) {
        // After an empty virtio_net_hdr.
        self.0.write_all(&[&[0; 10], frame].concat()).expect("the device takes it");
    }

    pub fn frames(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.frame(frame);
        }
    }
}

/// `podtap-collector stream` as it runs in a restricted pod.
struct Stream {
    child: Killed,
    network: PathBuf,
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
        // Where it begins.
        let mut from = [0; 8];
        client.socket.read_exact(&mut from).expect("it is answered");
        client.from = u64::from_le_bytes(from);
        client
    }

    fn end(&self) {
        child::signal(&self.child.0, Signal::SIGTERM);
    }

    /// Waits until it ends. Returns what it says.
    #[track_caller]
    fn wait(mut self) -> String {
        let errors = self.errors.take().expect("it is waited for once").join().expect("it does not panic");
        assert!(self.child.0.wait().expect("it ends").success(), "{errors}");
        errors
    }

    /// Has it end. Returns what the client has then, and what it says.
    #[track_caller]
    fn finish(self, mut client: Client) -> (Capture, String) {
        self.end();
        client.read_to_end();
        (Capture::new(&client.bytes), self.wait())
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

    /// Reads some bytes. Returns whether there were any before the end.
    fn read(&mut self) -> bool {
        self.try_read().expect("something comes, or the end")
    }

    fn try_read(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; 1 << 16];
        let count = uninterrupted(|| self.socket.read(&mut buffer))?;
        self.bytes.extend(&buffer[..count]);
        Ok(count > 0)
    }

    /// Reads and confirms until nothing comes.
    fn read_what_waits(&mut self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("it can be set");
        while self.try_read().is_ok_and(|is_open| is_open) {
            self.confirm();
        }
        self.socket.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    }

    fn read_to_end(&mut self) {
        while self.read() {
            self.confirm();
        }
    }

    /// Reads until this is in it.
    fn read_until(&mut self, text: &[u8]) {
        let (mut searched, start) = (0, Instant::now());
        while !self.bytes[searched..].windows(text.len()).any(|window| window == text) {
            searched = self.bytes.len().saturating_sub(text.len());
            // What is counted comes every ten seconds in any case.
            assert!(start.elapsed() < PATIENCE && self.read(), "it has not come");
            self.confirm();
        }
    }
}

/// What a client got, in a file that is removed when this is dropped.
struct Capture(PathBuf);

impl Capture {
    fn new(bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("podtap-stream-{}-{number}.pcapng", std::process::id()));
        fs::write(&path, bytes).expect("it can be written");
        Self(path)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A frame of a probe: of the EtherType, and no metadata.
pub fn probe() -> Vec<u8> {
    let mut probe = identity("web", WEB);
    probe[14] = 1;
    probe
}

/// The payloads of the datagrams that tshark finds, by their first eight bytes.
fn payloads(capture: &Capture) -> Vec<String> {
    let rows = pcap::fields(&capture.0, ["udp.payload"]).into_iter();
    rows.filter(|[payload]| !payload.is_empty()).map(|[payload]| payload.chars().take(16).collect()).collect()
}

/// Datagrams with different payloads, and these.
fn datagrams(count: usize, length: usize) -> (Vec<Vec<u8>>, Vec<String>) {
    let payload = |number: usize| [&number.to_be_bytes()[..], &vec![0; length - 8]].concat();
    let frames = (0..count).map(|number| udp((WEB, 1), (OUTSIDE, 2), &payload(number)));
    (frames.collect(), (0..count).map(|number| format!("{number:016x}")).collect())
}

#[test]
fn a_client_gets_the_frames_of_the_interface_with_names_and_directions() {
    let pod = Pod::new();
    pod.add("ptap4097");
    let stream = Stream::start(&pod, &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", stream.child.0.id())).expect("it runs");
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
    let (capture, _) = stream.finish(client);
    let (web, cart, receiver) = ("shop/web", "shop/cart", RECEIVER);
    let (inbound, outbound, unknown) = ("0x00000001", "0x00000002", "");
    let expected = [
        [web, outbound, "tcp"],
        [web, inbound, "tcp"],
        [web, outbound, "tcp"],
        [web, inbound, "tcp"],
        [web, outbound, "tcp"],
        [web, inbound, "tcp"],
        [web, outbound, "tcp"],
        [cart, outbound, "udp"],
        [receiver, unknown, "udp"],
    ];
    let fields = ["frame.interface_name", "frame.packet_flags_direction", "frame.protocols"];
    let rows = pcap::fields(&capture.0, fields).into_iter().map(|[interface, direction, protocols]| {
        let protocol = ["tcp", "udp"].into_iter().find(|name| protocols.split(':').any(|part| part == *name));
        [interface, direction, protocol.unwrap_or_default().to_owned()]
    });
    assert_eq!(rows.collect::<Vec<_>>(), expected.map(|row| row.map(str::to_owned)));
    assert_eq!(statistics(&capture.0), [(7, 0), (1, 0), (1, 0)]);
    // From a pipe, as Wireshark gets it.
    let mut tshark = Command::new("tshark");
    tshark.args(["-r", "-", "-N", "n", "-Y", "udp.port == 4", "-T", "fields", "-e", "ip.src_host"]);
    let names = pcap::output(tshark.stdin(fs::File::open(&capture.0).expect("it exists")));
    assert_eq!(String::from_utf8_lossy(&names), "cart.shop.pod\n");
}

#[test]
fn a_client_that_comes_back_continues_where_it_was() {
    let pod = Pod::new();
    let stream = Stream::start(&pod, &[]);
    let _connection = pod.hand_over(RECEIVER);
    let mut injector = pod.injector(RECEIVER);
    let (frames, expected) = datagrams(3000, 1000);
    let mut client = stream.client(0);
    let mut bytes = Vec::new();
    for (part, frames) in frames.chunks(1000).enumerate() {
        injector.frames(frames);
        // What is read beyond that is lost on the way, as far as the stream knows.
        let kept = 100_001 + part;
        while client.bytes.len() < kept {
            assert!(client.read(), "it ended");
        }
        bytes.extend(&client.bytes[..kept]);
        let next = stream.client(bytes.len() as u64);
        assert_eq!(next.from, bytes.len() as u64, "it continues there");
        // The stream does not know yet that its client is gone, and closes the earlier connection.
        while client.try_read().is_ok_and(|is_open| is_open) {}
        client = next;
    }
    client.read_until(&2999_usize.to_be_bytes());
    stream.end();
    client.read_to_end();
    stream.wait();
    bytes.extend(&client.bytes);
    let capture = Capture::new(&bytes);
    assert_eq!(payloads(&capture), expected);
    assert_eq!(statistics(&capture.0), [(3000, 0)]);
}

#[test]
fn a_client_that_does_not_read_costs_frames_which_are_counted() {
    let pod = Pod::new();
    let stream = Stream::start(&pod, &["--abandoned-after", "60"]);
    let _connection = pod.hand_over(RECEIVER);
    let mut injector = pod.injector(RECEIVER);
    let mut client = stream.client(0);
    // More than the window, buffers of sockets and the ring hold.
    let (frames, _) = datagrams(80_000, 1400);
    injector.frames(&frames);
    // It reads now, and what follows finds room.
    client.read_until(&8000_usize.to_be_bytes());
    let after = b"after it";
    let mut sent = frames.len() as u64;
    until("there is room", PATIENCE, || {
        injector.frame(&udp((WEB, 3), (OUTSIDE, 4), after));
        sent += 1;
        client.read_what_waits();
        let end = client.bytes.len().saturating_sub(1000);
        if client.bytes[end..].windows(after.len()).any(|window| window == after) { Ok(()) } else { Err("none came") }
    });
    let (capture, errors) = stream.finish(client);
    let [(received, dropped)] = statistics(&capture.0)[..] else { panic!("{errors}") };
    let rows = pcap::fields(&capture.0, ["frame.number", "frame.drop_count"]);
    let gaps: u64 = rows.iter().map(|[_, gap]| gap.parse().unwrap_or(0)).sum();
    assert!(dropped > 10_000, "{errors}");
    assert_eq!((rows.len() as u64 + dropped, gaps), (received, dropped), "{errors}");
    let lost: u64 = errors
        .split_once(" dropped by the kernel")
        .and_then(|(text, _)| text.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{errors}"));
    assert_eq!(received + lost, sent, "{errors}");
}

/// A directory that the program may write to, and that is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podtap-stream-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("it can be created");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("it is ours");
        Self(path)
    }

    /// Waits until the newest file has the datagram with this number.
    #[track_caller]
    fn until_kept(&self, number: usize) {
        until("it is kept", PATIENCE, || {
            let newest = fs::read_dir(&self.0).expect("it exists").flatten().map(|file| file.path()).max();
            let bytes = newest.and_then(|path| fs::read(path).ok()).unwrap_or_default();
            if bytes.windows(8).any(|window| window == number.to_be_bytes()) { Ok(()) } else { Err("not yet") }
        });
    }

    fn size(&self) -> u64 {
        let files = fs::read_dir(&self.0).expect("it exists");
        files.map(|file| file.and_then(|file| file.metadata()).map_or(0, |file| file.len())).sum()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_kept_without_a_client_can_be_read_alone() {
    const ROOM: u64 = 4 << 20;
    let pod = Pod::new();
    let directory = Directory::new("kept");
    let path = directory.0.to_str().expect("it is text");
    let room = ROOM.to_string();
    let stream =
        Stream::start(&pod, &["--keep", path, "--keep-bytes", &room, "--abandoned-after", "1", "--first-client", "60"]);
    let _connection = pod.hand_over(RECEIVER);
    let mut injector = pod.injector(RECEIVER);
    injector.frames(&[identity("web", WEB), identity("cart", CART), udp((CART, 3), (OUTSIDE, 4), &[1; 8])]);
    // A client that reads some frames, and vanishes.
    let (frames, expected) = datagrams(20_000, 1000);
    let (before, after) = frames.split_at(100);
    let mut first = stream.client(0);
    assert_eq!(first.from, 0);
    injector.frames(before);
    first.read_until(&99_usize.to_be_bytes());
    first.read_what_waits();
    drop(first);
    // What comes then is five times what is kept.
    for (part, frames) in after.chunks(1990).enumerate() {
        injector.frames(frames);
        directory.until_kept(100 + part * 1990 + frames.len() - 1);
        assert!(directory.size() <= ROOM, "{} bytes", directory.size());
    }
    // Another one gets what is there, and what comes.
    let mut second = stream.client(0);
    assert!(second.from > 10 << 20, "it begins at {}", second.from);
    injector.frame(&udp((CART, 5), (OUTSIDE, 6), b"comes now"));
    second.read_until(b"comes now");
    let begins = second.from;
    // Its connection breaks, and it is where it was.
    let again = stream.client(second.received());
    assert_eq!(again.from, second.received());
    let bytes = std::mem::take(&mut second.bytes);
    drop(second);
    injector.frame(&udp((CART, 5), (OUTSIDE, 6), b"the last one"));
    let mut again = again;
    again.read_until(b"the last one");
    stream.end();
    again.read_to_end();
    let errors = stream.wait();
    let capture = Capture::new(&[bytes, again.bytes].concat());
    let kept = payloads(&capture);
    let of_datagrams = &kept[..kept.len() - 2];
    assert_eq!(of_datagrams, &expected[expected.len() - of_datagrams.len()..], "the newest ones: {begins}, {errors}");
    assert!((3000..4000).contains(&of_datagrams.len()), "{}", of_datagrams.len());
    // The interfaces have their places of the whole stream, and what the first client has is not lost.
    let fields = ["frame.interface_name", "udp.dstport"];
    assert_eq!(pcap::fields(&capture.0, fields).last(), Some(&["shop/cart", "6"].map(str::to_owned)));
    let lost = (20_000 - 100 - of_datagrams.len()) as u64;
    assert!(statistics(&capture.0).ends_with(&[(3, 0), (20_000, lost)]), "{lost}: {errors}");
    assert!(errors.contains(&format!("{lost} dropped")), "{errors}");
    assert_eq!(directory.size(), 0, "nothing is left");
}

#[test]
fn a_slow_client_loses_no_frame_that_is_kept() {
    let pod = Pod::new();
    let directory = Directory::new("slow");
    let path = directory.0.to_str().expect("it is text");
    let stream = Stream::start(&pod, &["--keep", path, "--keep-bytes", "100000000", "--abandoned-after", "60"]);
    let _connection = pod.hand_over(RECEIVER);
    // It does not read while more comes than the window in memory has room for.
    let mut client = stream.client(0);
    let (frames, expected) = datagrams(40_000, 1400);
    let mut injector = pod.injector(RECEIVER);
    for (part, frames) in frames.chunks(2000).enumerate() {
        injector.frames(frames);
        directory.until_kept(part * 2000 + frames.len() - 1);
    }
    client.read_until(&39_999_usize.to_be_bytes());
    let (capture, errors) = stream.finish(client);
    assert_eq!(payloads(&capture), expected, "{errors}");
    assert_eq!(statistics(&capture.0).last(), Some(&(40_000, 0)), "{errors}");
}

#[test]
fn a_stream_ends_without_a_client() {
    let pod = Pod::new();
    let without = Stream::start(&pod, &["--first-client", "1"]);
    let errors = without.wait();
    assert!(errors.contains("there was no client"), "{errors}");

    let stream = Stream::start(&pod, &["--abandoned-after", "3"]);
    let mut client = stream.client(0);
    let start = Instant::now();
    until("numbers have come for longer than that", PATIENCE, || {
        client.confirm();
        if start.elapsed() > Duration::from_secs(4) { Ok(()) } else { Err("not yet") }
    });
    client.read_until(b"podtap-collector");
    let silent = Instant::now();
    let errors = stream.wait();
    assert!(errors.contains("there was no client") && silent.elapsed() > Duration::from_secs(2), "{errors}");
}

#[test]
fn a_signal_ends_a_stream_at_once_if_its_client_has_left() {
    let pod = Pod::new();
    let stream = Stream::start(&pod, &["--abandoned-after", "3600"]);
    let mut client = stream.client(0);
    // It does not say so.
    assert!(client.read());
    drop(client);
    stream.end();
    let errors = stream.wait();
    assert!(errors.contains("the client had left"), "{errors}");
}

#[test]
fn a_stream_ends_by_its_limits() {
    let pod = Pod::new();
    let (frames, expected) = datagrams(100, 1000);
    let limited = |limit: &[&str]| {
        let stream = Stream::start(&pod, limit);
        let _connection = pod.hand_over(RECEIVER);
        let mut client = stream.client(0);
        pod.injector(RECEIVER).frames(&frames);
        client.read_to_end();
        let errors = stream.wait();
        assert!(errors.contains("the client has all"), "{errors}");
        client.bytes
    };
    assert_eq!(payloads(&Capture::new(&limited(&["--packets", "7"]))), expected[..7]);
    // Five have less, six more.
    let bytes = limited(&["--max-bytes", "6000"]);
    assert_eq!(payloads(&Capture::new(&bytes)), expected[..6]);
    assert_eq!(payloads(&Capture::new(&limited(&["--for", "1"]))), expected);
    // Of classic pcap, tcpdump tells the form as well.
    let capture = Capture::new(&limited(&["--packets", "9", "--format", "pcap"]));
    assert_eq!(payloads(&capture), expected[..9]);
    let kind = pcap::output(Command::new("capinfos").args(["-t", "-I", "-c"]).arg(&capture.0));
    assert!(String::from_utf8_lossy(&kind).contains("nanosecond pcap"), "{}", String::from_utf8_lossy(&kind));
}

#[test]
fn what_is_no_packet_socket_is_refused() {
    let pod = Pod::new();
    let stream = Stream::start(&pod, &[]);
    let mut client = stream.client(0);
    let message = r#"{"interface":"ptap4096"}"#;
    let socket = || locked(&pod.network, RECEIVER);
    let file = || OwnedFd::from(File::open("/dev/null").expect("it exists"));
    let listener = || OwnedFd::from(pod.network.within(|| UdpSocket::bind("127.0.0.1:0")).expect("a socket"));
    let refused = [
        (message, vec![], "there is not one descriptor"),
        (message, vec![socket(), socket()], "there is not one descriptor"),
        (message, vec![file()], "is no packet socket"),
        (message, vec![listener()], "is no packet socket"),
        ("{}", vec![socket()], "missing field"),
        (r#"{"interface":"ptap1"}"#, vec![socket()], "ptap1 cannot be captured from"),
        (&"x".repeat(2000), vec![socket()], "is too long"),
    ];
    for (message, descriptors, reason) in &refused {
        let connection = pod.send(message, descriptors);
        // Its other end is closed.
        assert_eq!(rustix::io::read(&connection, &mut [0; 1]), Ok(0), "{reason}");
    }
    // And the next one is taken.
    let _connection = pod.hand_over(RECEIVER);
    let (frames, expected) = datagrams(1, 100);
    pod.injector(RECEIVER).frames(&frames);
    client.read_until(&[0; 92]);
    let (capture, errors) = stream.finish(client);
    assert_eq!(payloads(&capture), expected);
    let lines = errors.lines().filter(|line| line.contains("a packet socket is refused"));
    assert!(lines.zip(&refused).all(|(line, (_, _, reason))| line.contains(reason)), "{errors}");
    assert_eq!(errors.matches("a packet socket is refused").count(), refused.len(), "{errors}");
}

#[test]
fn a_tap_helper_and_a_receiver_may_be_replaced() {
    let pod = Pod::new();
    let stream = Stream::start(&pod, &[]);
    let mut client = stream.client(0);
    let (frames, expected) = datagrams(4, 100);
    let number = |frame: usize| frame.to_be_bytes();
    let first = pod.hand_over(RECEIVER);
    pod.injector(RECEIVER).frame(&frames[0]);
    client.read_until(&number(0));
    // The tap-helper is restarted: the stream continues, and no frame comes twice.
    drop(first);
    let second = pod.hand_over(RECEIVER);
    pod.injector(RECEIVER).frame(&frames[1]);
    client.read_until(&number(1));
    // Without the receiver, the connection ends, and another socket is needed. Its last frame is there all the same.
    pod.injector(RECEIVER).frame(&frames[2]);
    pod.network.ip(&format!("link del {RECEIVER}\n"));
    assert_eq!(rustix::io::read(&second, &mut [0; 1]), Ok(0));
    pod.add(RECEIVER);
    let _third = pod.hand_over(RECEIVER);
    pod.injector(RECEIVER).frame(&frames[3]);
    client.read_until(&number(3));
    let (capture, errors) = stream.finish(client);
    assert_eq!(payloads(&capture), expected, "{errors}");
    assert_eq!(statistics(&capture.0), [(4, 0)]);
}

#[test]
fn with_the_capability_an_interface_is_captured_from_when_it_exists() {
    let pod = Pod::new();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", pod.network.path().display()));
    let stream = Stream::spawn(&pod, command, &["--interface", "ptap5000"]);
    let mut client = stream.client(0);
    client.read_until(b"podtap-collector");
    pod.add("ptap5000");
    pod.until_captured("ptap5000");
    let (frames, expected) = datagrams(1, 100);
    pod.injector("ptap5000").frames(&frames);
    client.read_until(&[0; 92]);
    let (capture, _) = stream.finish(client);
    assert_eq!(payloads(&capture), expected);
    assert_eq!(pcap::fields(&capture.0, ["frame.interface_name"]), [["ptap5000"]]);
}
