//! Memory, whatever arrives: every table of the collector is filled beyond its bound.

use std::{
    fs,
    io::{BufWriter, Write as _},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use nix::sys::signal::Signal;
use podtap_tests::{
    child::{Killed, signal},
    collector::binary,
    http,
    net::Network,
    wait::{PATIENCE, until},
};
use serde_json::json;

use podtap_tests::frames::{ACK, SYN, tcp, udp};

/// The memory limit of the chart's Deployment.
const MEMORY_KIB: u64 = 256 << 10;
const PORT: u16 = 4789;
const API: &str = "127.0.0.1:9090";
const PROBES: &str = "127.0.0.1:8080";

const PODS: u32 = 20_000;
const FLOWS: u32 = 200_000;
/// Edges between pods, and the ports of each.
const EDGES: u32 = 3500;
const PORTS: u16 = 70;
/// Longest name of DNS and TLS.
const NAME: usize = 253;

fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + 1 + number % PODS)
}

/// A name of the longest kind, which no other number has.
fn name(number: u32) -> String {
    let mut name = format!("host{number}");
    while name.len() < NAME {
        let missing = NAME - name.len();
        name.push('.');
        name.push_str(&"x".repeat(missing.saturating_sub(1).min(60)));
    }
    name.truncate(NAME);
    if name.ends_with('.') {
        name.pop();
        name.push('x');
    }
    name
}

/// A DNS message with a question, and the addresses of an answer.
fn dns(id: u16, name: &str, addresses: &[Ipv4Addr]) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    let flags: u16 = if addresses.is_empty() { 0x0100 } else { 0x8180 };
    let count = u16::try_from(addresses.len()).expect("few");
    for word in [flags, 1, count, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    for address in addresses {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4]);
        message.extend(address.octets());
    }
    message
}

/// A TLS handshake that asks for a server.
fn hello(name: &str) -> Vec<u8> {
    let word = |length: usize| u16::try_from(length).expect("short").to_be_bytes();
    let entry = [&[0][..], &word(name.len()), name.as_bytes()].concat();
    let extension = [&[0, 0][..], &word(entry.len() + 2), &word(entry.len()), &entry].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &word(extension.len()), &extension].concat();
    let handshake = [&[1, 0][..], &word(body.len()), &body].concat();
    [&[22, 3, 1][..], &word(handshake.len()), &handshake].concat()
}

/// Frames for each table, one after the other.
fn flood(mut send: impl FnMut(&[u8])) {
    let outside = |number: u32| Ipv4Addr::from_bits(Ipv4Addr::new(192, 0, 0, 0).to_bits() + number);
    // Ports of edges.
    for edge in 0..EDGES {
        for port in 0..PORTS {
            send(&udp((pod(edge), 5000), (pod(edge + 1), 10_000 + port), b"x"));
        }
    }
    // Names from DNS: each answer is of 64 addresses.
    for number in 0..1200_u32 {
        let (client, server) = ((pod(number), 6000), (Ipv4Addr::new(8, 8, 8, 8), 53));
        let name = name(number);
        let addresses: Vec<Ipv4Addr> = (0..64).map(|last| outside(number * 64 + last)).collect();
        send(&udp(client, server, &dns(1, &name, &[])));
        send(&udp(server, client, &dns(1, &name, &addresses)));
    }
    // Beginnings of TLS streams.
    let beginning = &hello(&name(0))[..300];
    let beginning = [&[22, 3, 1, 16, 0, 1, 0, 15, 252][..], &beginning[9..], &[0; 1000]].concat();
    for number in 0..16_000_u32 {
        let (client, server) = ((pod(number), 7000), (outside(number), 443));
        send(&tcp(client, server, SYN, (number, 0), b""));
        send(&tcp(client, server, ACK, (number + 1, 0), &beginning));
    }
    // Flows with names, and edges to what they name. Half of the flows ask many questions.
    for number in 0..FLOWS {
        let source = 20_000 + u16::try_from(number / PODS).expect("few");
        if number % 2 == 0 {
            let (client, server) = ((pod(number), source), (outside(number), 443));
            send(&tcp(client, server, SYN, (number, 0), b""));
            send(&tcp(server, client, SYN | ACK, (!number, number + 1), b""));
            send(&tcp(client, server, ACK, (number + 1, (!number).wrapping_add(1)), &hello(&name(number))));
        } else {
            for question in 0..3 {
                let message = dns(question, &name(number + u32::from(question)), &[]);
                send(&udp((pod(number), source), (Ipv4Addr::new(8, 8, 4, 4), 53), &message));
            }
        }
    }
    // What waits for the names of its ends: clients that could be pods.
    for number in 0..40_000_u32 {
        let client = Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + number);
        let message = dns(1, &name(number), &[]);
        send(&udp((client, 5000), (pod(number), 53), &message));
    }
}

/// Passes all pods on, and keeps the connection.
fn serve_names(path: &Path) -> mpsc::Sender<()> {
    let listener = UnixListener::bind(path).expect("a socket");
    let (keep, ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the collector connects");
        let mut out = BufWriter::new(stream);
        writeln!(out, "\"listing\"").expect("it reads");
        for number in 0..PODS {
            let name = format!("pod-{number}-with-a-long-name-7c9f8d6b5-x2x4z");
            let labels: serde_json::Map<_, _> = (0..4)
                .map(|label| (format!("example.com/label-{label}"), json!(format!("value-{label}-{number}"))))
                .collect();
            let pod = json!({"pod": {"namespace": format!("namespace-{}", number % 100), "name": name,
                "uid": format!("6d0c4ae2-0000-4000-8000-{number:012}"), "addresses": [pod(number)], "node": "node-1",
                "started": 1, "labels": labels,
                "workload": {"kind": "Deployment", "name": format!("workload-{number}"), "apiVersion": "apps/v1"}}});
            writeln!(out, "{pod}").expect("it reads");
        }
        writeln!(out, "\"listed\"").and_then(|()| out.flush()).expect("it reads");
        let _ = ended.recv();
    });
    keep
}

/// Of a process, in KiB.
fn memory(child: &Child, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).expect("it has it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Bytes that wait at a UDP port of the network namespace of this thread.
pub fn waiting(port: u16) -> u64 {
    let sockets =
        ["udp", "udp6"].map(|kind| fs::read_to_string(format!("/proc/thread-self/net/{kind}")).unwrap_or_default());
    let end = format!(":{port:04X}");
    let queues = sockets.iter().flat_map(|text| text.lines()).filter_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next().filter(|local| local.ends_with(&end))?;
        u64::from_str_radix(columns.nth(2)?.split(':').nth(1)?, 16).ok()
    });
    queues.sum()
}

/// The values of metrics, by their names.
fn gauge(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

#[test]
fn memory_is_bounded_whatever_arrives() {
    let network = Network::new();
    let directory = std::env::temp_dir().join(format!("podtap-flood-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let path = |name: &str| -> String { PathBuf::from(&directory).join(name).to_str().expect("text").to_owned() };
    let _names = serve_names(Path::new(&path("names.sock")));
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network.path().display())).arg(binary());
    command.args(["--vxlan-port", &PORT.to_string(), "--names-socket", &path("names.sock"), "--state", &path("map")]);
    command.args(["--listen", API, "--probes", PROBES, "--print", "flows"]);
    command.args(["--write", &path("frames.pcapng"), "--write-size", "16", "--write-files", "2"]);
    // Its flows are never read.
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Killed(child.expect("it runs"));
    let get = |server: &str, path: &str| {
        let server: SocketAddr = server.parse().expect("an address");
        network.within(|| http::body(server, path))
    };
    until("names are known", PATIENCE, || get(PROBES, "/readyz"));
    let empty = memory(&child.0, "VmHWM");
    let sent = network.within(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let mut sent = 0_u64;
        flood(|frame| {
            if sent.is_multiple_of(64) {
                // A pause as `until` makes would take longer than what waits.
                let start = Instant::now();
                while waiting(PORT) > 64 << 10 {
                    assert!(start.elapsed() < PATIENCE, "the collector reads nothing");
                    thread::yield_now();
                }
            }
            let datagram = [&[8, 0, 0, 0, 0, 19, 137, 0][..], frame].concat();
            socket.send_to(&datagram, ("127.0.0.1", PORT)).expect("it can be sent");
            sent += 1;
        });
        std::io::Result::Ok(sent)
    });
    let sent = sent.expect("a socket");
    // Flows wait for names from a second after their first frame.
    let is_full = |health: &str| gauge(health, "podtap_collector_events_waiting") == 8192;
    let health = until("all frames are read", PATIENCE, || match get(PROBES, "/metrics") {
        Ok(health) if gauge(&health, "podtap_collector_frames_total") == sent && is_full(&health) => Ok(health),
        other => Err(format!("{other:?}")),
    });
    let after = memory(&child.0, "VmHWM");
    println!("{sent} frames; {empty} KiB with names, {after} KiB after the flood");
    for line in health.lines().filter(|line| !line.starts_with('#')) {
        println!("{line}");
    }
    assert_eq!(gauge(&health, "podtap_collector_pods"), u64::from(PODS));
    assert!(gauge(&health, "podtap_collector_edges") >= 10_000, "the map is full");
    for dropped in ["flows_evicted_total", "flows_names_dropped_total", "flows_folded", "details_dropped"] {
        assert!(gauge(&health, &format!("podtap_collector_{dropped}")) > 0, "{dropped}: its table is full");
    }
    get(API, "/metrics").expect("metrics");
    println!("{} KiB after /metrics", memory(&child.0, "VmHWM"));
    // Of so many namespaces that two thirds of the edges between pods have an end in one of them.
    let namespaces: Vec<String> = (0..32).map(|number| format!("namespace-{}", 2 * number)).collect();
    let namespaces = format!("/namespaces/{}", namespaces.join(","));
    for format in [
        "map",
        "list",
        "dot",
        "mermaid",
        "client-intents",
        "client-intents-v1",
        "client-intents-json",
        "network-policy",
    ] {
        for prefix in ["", &namespaces] {
            get(API, &format!("{prefix}/map?format={format}")).expect("the map");
            println!("{} KiB after {}/map?format={format}", memory(&child.0, "VmHWM"), &prefix[..prefix.len().min(11)]);
        }
    }
    let peak = memory(&child.0, "VmHWM");
    // It ends, also with flows that are not read.
    signal(&child.0, Signal::SIGTERM);
    assert!(child.0.wait().expect("it ends").success());
    assert!(fs::metadata(path("map")).is_ok_and(|file| file.len() > 1 << 20), "and has saved its map");
    fs::remove_dir_all(&directory).expect("it exists");
    assert!(peak <= MEMORY_KIB, "{peak} KiB");
}
