//! `podtap-collector stream` without capabilities, and what its client gets, read by tshark and capinfos.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use podtap_tests::{
    capture::locked,
    child::{self, Killed},
    collector::binary,
    frames::{connection, udp},
    pcap,
    wait::{PATIENCE, uninterrupted, until},
};

use crate::{
    pod::{CART, OUTSIDE, Pod, RECEIVER, WEB, probe},
    views::identity,
    written::statistics,
};

/// `podtap-collector stream` as it runs in a restricted pod.
pub struct Stream {
    child: Killed,
    network: PathBuf,
    address: SocketAddr,
    errors: Option<JoinHandle<String>>,
}

impl Stream {
    pub fn start(pod: &Pod, arguments: &[&str]) -> Self {
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
    pub fn client(&self, received: u64) -> Client {
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

    pub fn end(&self) {
        child::signal(&self.child.0, Signal::SIGTERM);
    }

    /// Waits until it ends. Returns what it says.
    #[track_caller]
    pub fn wait(mut self) -> String {
        let errors = self.errors.take().expect("it is waited for once").join().expect("it does not panic");
        assert!(self.child.0.wait().expect("it ends").success(), "{errors}");
        errors
    }

    /// Has it end. Returns what the client has then, and what it says.
    #[track_caller]
    pub fn finish(self, mut client: Client) -> (Capture, String) {
        self.end();
        client.read_to_end();
        (Capture::new(&client.bytes), self.wait())
    }
}

/// A client, and what it has received.
pub struct Client {
    socket: TcpStream,
    pub from: u64,
    pub bytes: Vec<u8>,
}

impl Client {
    pub fn received(&self) -> u64 {
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
    pub fn read_what_waits(&mut self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("it can be set");
        while self.try_read().is_ok_and(|is_open| is_open) {
            self.confirm();
        }
        self.socket.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    }

    pub fn read_to_end(&mut self) {
        while self.read() {
            self.confirm();
        }
    }

    /// Reads until this is in it.
    pub fn read_until(&mut self, text: &[u8]) {
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
pub struct Capture(pub PathBuf);

impl Capture {
    pub fn new(bytes: &[u8]) -> Self {
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

/// The payloads of the datagrams that tshark finds, by their first eight bytes.
pub fn payloads(capture: &Capture) -> Vec<String> {
    let rows = pcap::fields(&capture.0, ["udp.payload"]).into_iter();
    rows.filter(|[payload]| !payload.is_empty()).map(|[payload]| payload.chars().take(16).collect()).collect()
}

/// Datagrams with different payloads, and these.
pub fn datagrams(count: usize, length: usize) -> (Vec<Vec<u8>>, Vec<String>) {
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
    let file = || OwnedFd::from(fs::File::open("/dev/null").expect("it exists"));
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
