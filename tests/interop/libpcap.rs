//! libpcap and tcpdump with rpcap, which Debian's packages do not have, as clients of `podtap-collector sensor`.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Stdio},
};

use nix::sys::signal::Signal;
use podtap_tests::{
    capture::injector,
    child::{self, Killed},
    collector::Sensor,
    frames::{connection, udp},
    http,
    net::Network,
    pcap,
    wait::{PATIENCE, until},
};

const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PROBES: &str = "127.0.0.1:8080";
/// The port of active mode in these tests.
const ACTIVE: &str = "2003";

/// A program of `tests/interop/libpcap.sh`, in a network namespace.
fn program(network: &Network, name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/interop/libpcap").join(name);
    assert!(path.exists(), "{} does not exist: `make interop` builds it", path.display());
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network.path().display())).arg(path);
    command
}

/// A network namespace with an interface whose frames a test writes.
fn network() -> (Network, File) {
    let network = Network::new();
    network.ip("link add mirror type veth peer name tap\n");
    for device in ["mirror", "tap"] {
        network.set(&format!("ipv6/conf/{device}/disable_ipv6"), "1");
        network.ip(&format!("link set {device} up\n"));
    }
    let tap = injector(&network, "tap");
    (network, tap)
}

fn send(tap: &mut File, frames: &[Vec<u8>]) {
    for frame in frames {
        // After an empty virtio_net_hdr.
        tap.write_all(&[&[0; 10], &frame[..]].concat()).expect("the device takes it");
    }
}

fn sent() -> Vec<Vec<u8>> {
    let mut frames = connection((WEB, 40_000), (OUTSIDE, 443));
    frames.extend((0..500).map(|number| udp((WEB, number), (OUTSIDE, 53), &vec![7; usize::from(number)])));
    frames
}

/// A frame that tells whether there is a capture.
fn marker() -> Vec<u8> {
    udp((WEB, 9), (OUTSIDE, 9), b"marker")
}

/// Frames that were sent to clients.
fn count(network: &Network) -> usize {
    let probes: SocketAddr = PROBES.parse().expect("an address");
    let (_, text) = network.within(|| http::get(probes, "/metrics")).expect("it is served");
    let line = text.lines().find_map(|line| line.strip_prefix("podtap_sensor_frames_sent_total{sensor=\"clients\"} "));
    line.map_or(0, |number| number.parse().expect("a number"))
}

fn until_printed(errors: &mut BufReader<ChildStderr>, text: &str) {
    let mut printed = String::new();
    while !printed.contains(text) {
        assert!(errors.read_line(&mut printed).expect("it can be read") > 0, "it ended without {text}: {printed}");
    }
}

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("podtap-interop-{}-{name}.pcap", std::process::id()))
}

/// The frames of a file, which is removed.
fn frames(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).expect("it was written");
    fs::remove_file(path).expect("it exists");
    pcap::frames(&bytes).into_iter().map(|frame| frame.bytes).collect()
}

#[test]
fn tcpdump_captures_from_a_passive_one() {
    let (network, mut tap) = network();
    let sensor =
        Sensor::start(network.path(), &["--interface", "mirror", "--listen", "127.0.0.1:0", "--probes", PROBES]);
    let address = sensor.address.expect("it listens");
    let interfaces =
        pcap::output(program(&network, "tcpdump").arg(format!("--list-remote-interfaces=rpcap://{address}/")));
    let interfaces = String::from_utf8(interfaces).expect("it is text");
    assert!(interfaces.contains("/podtap (") && interfaces.contains("Frames of the taps"), "{interfaces}");

    let path = file("passive");
    let mut tcpdump = program(&network, "tcpdump");
    tcpdump.args(["-Z", "root", "-i", &format!("rpcap://{address}/podtap"), "-U", "-w"]).arg(&path);
    tcpdump.arg("tcp or udp src portrange 9-200");
    let mut tcpdump = Killed(tcpdump.stderr(Stdio::piped()).spawn().expect("it runs"));
    let mut errors = BufReader::new(tcpdump.0.stderr.take().expect("it is piped"));
    until_printed(&mut errors, "listening on");
    until("it captures", PATIENCE, || {
        send(&mut tap, &[marker()]);
        if count(&network) > 0 { Ok(()) } else { Err("nothing was sent") }
    });
    let sent = sent();
    send(&mut tap, &sent);
    // Of its filter: ports 9 to 200.
    let expected: Vec<Vec<u8>> = [&sent[..7], &sent[7 + 9..=7 + 200]].concat();
    until("all frames are in the file", PATIENCE, || {
        let written = pcap::frames(&fs::read(&path).unwrap_or_default());
        let written = written.iter().filter(|frame| frame.bytes != marker()).count();
        if written == expected.len() { Ok(()) } else { Err(format!("{written} of {}", expected.len())) }
    });
    child::signal(&tcpdump.0, Signal::SIGINT);
    let mut text = String::new();
    errors.read_to_string(&mut text).expect("it is text");
    assert!(tcpdump.0.wait().expect("it ends").success(), "{text}");
    assert!(text.contains("\n0 packets dropped by kernel"), "{text}");
    let mut received = frames(&path);
    received.retain(|frame| *frame != marker());
    assert_eq!(received, expected);
    sensor.end();
}

/// Has libpcap wait for a connection, and get all frames.
fn active(udp: bool) {
    let (network, mut tap) = network();
    let path = file(if udp { "active-udp" } else { "active" });
    let sent = sent();
    let mut peer = program(&network, "active");
    peer.args([ACTIVE, "podtap", &sent.len().to_string()]).arg(&path).args(udp.then_some("udp"));
    let mut peer = Killed(peer.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs"));
    let mut errors = BufReader::new(peer.0.stderr.take().expect("it is piped"));
    until_printed(&mut errors, "waiting");
    let connect = format!("127.0.0.1:{ACTIVE}");
    let sensor = Sensor::start(
        network.path(),
        &["--interface", "mirror", "--connect", &connect, "--retry-after", "1", "--udp-payload", "0"],
    );
    until_printed(&mut errors, "capturing");
    send(&mut tap, &sent);
    let mut output = String::new();
    peer.0.stdout.take().expect("it is piped").read_to_string(&mut output).expect("it is text");
    let mut rest = String::new();
    errors.read_to_string(&mut rest).expect("it is text");
    assert!(peer.0.wait().expect("it ends").success(), "{rest}");
    assert_eq!(output, format!("{0} frames, {0} passed, 0 dropped\n", sent.len()));
    assert_eq!(frames(&path), sent);
    sensor.end();
}

#[test]
fn libpcap_captures_from_one_that_has_connected() {
    active(false);
}

#[test]
fn libpcap_captures_by_udp_from_one_that_has_connected() {
    active(true);
}
