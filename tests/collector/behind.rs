//! A collector that does not keep up: it is stopped while frames come.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
};

use nix::sys::signal::Signal;
use podtap_tests::{
    collector::Collector,
    frames::{connection, udp},
    http,
    net::Network,
    wait::{PATIENCE, until},
};
use serde_json::Value;

use crate::network::{CLIENT, Path, SERVER_PORT, servers};

const API: &str = "127.0.0.1:9090";
/// Fills the ring of an interface, which has 16 MiB, several times.
const FLOOD: usize = 60_000;
const PAYLOAD: u32 = 100_000;

fn status(network: &Network) -> Result<Value, String> {
    let api: SocketAddr = API.parse().expect("an address");
    let (_, body) = network.within(|| http::get(api, "/status")).map_err(|error| error.to_string())?;
    serde_json::from_str(&body).map_err(|error| error.to_string())
}

/// Waits until it captures this, with the steps before that.
fn until_captured(network: &Network, expected: &str) -> Value {
    until(&format!("it captures {expected}"), 2 * PATIENCE, || {
        let status = status(network)?;
        if status["captured"] == expected { Ok(status) } else { Err(status.to_string()) }
    })
}

/// Sends datagrams to a port where nothing listens.
fn flood(path: &Path, count: usize) {
    let socket = path.client.within(|| UdpSocket::bind((CLIENT, 0))).expect("a socket");
    for _ in 0..count {
        // The kernel tells of ports where nothing listens.
        let _ = socket.send_to(&[0; 1400], (servers()[0], 9));
    }
}

fn overload(collector: &Collector, traffic: impl FnOnce()) {
    collector.signal(Signal::SIGSTOP);
    traffic();
    collector.signal(Signal::SIGCONT);
}

/// The flows of a connection, by the client's port and the server, in the direction of the client. Of two servers, the port may be the
/// same.
fn of_server(flows: &[Value], (port, server): (u16, Ipv4Addr)) -> Vec<&Value> {
    let is_it = |flow: &&Value| {
        flow["DstPort"] == port && flow["SrcPort"] == SERVER_PORT && flow["SrcAddr"] == server.to_string()
    };
    flows.iter().filter(is_it).collect()
}

fn sum(flows: &[&Value], field: &str) -> u64 {
    flows.iter().filter_map(|flow| flow[field].as_u64()).sum()
}

#[test]
fn every_connection_is_seen_and_counted_to_the_byte_and_the_rest_comes_back() {
    let path = Path::new();
    path.serve();
    let collector = Collector::start(path.client.path(), &["--interface", "eth0", "--listen", API]);
    assert_eq!(until_captured(&path.client, "whole")["framesDropped"], 0);
    overload(&collector, || flood(&path, FLOOD));
    let before = until_captured(&path.client, "filtered");
    assert!(before["framesDropped"].as_u64().is_some_and(|dropped| dropped > 0), "{before}");
    let connections: Vec<(u16, Ipv4Addr)> =
        (0..50).map(|number| path.request((servers()[number % 3], SERVER_PORT), PAYLOAD)).collect();
    flood(&path, 64 * 200);
    let after = until_captured(&path.client, "whole");
    let left_out = after["framesLeftOut"].as_u64().expect("a number");
    // A sample of 200 datagrams, at least, of which the standard deviation is 14.
    assert!((64 * 100..).contains(&left_out), "{after}");
    let last = path.request((servers()[0], SERVER_PORT), PAYLOAD);
    let (lines, errors) = collector.end();
    assert!(errors.contains("does not keep up") && errors.contains("keeps up: all frames"), "{errors}");
    let flows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    for connection in connections {
        let received = of_server(&flows, connection);
        assert_eq!(sum(&received, "PayloadBytes"), u64::from(PAYLOAD) + 4, "{received:?}");
        assert!(received.iter().all(|flow| flow["Degraded"] == true && flow["Opener"] == "syn"), "{received:?}");
        assert_eq!(sum(&received, "MirrorMissingBytes"), 0, "the collector lost them: {received:?}");
        // But for those in the frame with the FIN.
        assert!(sum(&received, "CollectorMissingBytes") > u64::from(PAYLOAD) / 2, "{received:?}");
        assert!(received.iter().all(|flow| flow["Failure"].is_null()), "{received:?}");
    }
    let of_last = of_server(&flows, last);
    assert_eq!((sum(&of_last, "PayloadBytes"), sum(&of_last, "CollectorMissingBytes")), (u64::from(PAYLOAD) + 4, 0));
    assert!(of_last.iter().all(|flow| flow["Degraded"].is_null()), "{of_last:?}");
}

#[test]
fn writing_is_what_is_done_without_first() {
    let path = Path::new();
    path.serve();
    let file = std::env::temp_dir().join(format!("podtap-behind-{}.pcapng", std::process::id()));
    let to = file.to_str().expect("text");
    let collector = Collector::start(path.client.path(), &["--interface", "eth0", "--listen", API, "--write", to]);
    overload(&collector, || flood(&path, FLOOD));
    until_captured(&path.client, "notWritten");
    let connection = path.request((servers()[0], SERVER_PORT), PAYLOAD);
    let (lines, errors) = collector.end();
    let flows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let received = of_server(&flows, connection);
    let complete = (u64::from(PAYLOAD) + 4, 0);
    assert_eq!((sum(&received, "PayloadBytes"), sum(&received, "CollectorMissingBytes")), complete, "it is captured");
    let written = podtap_tests::pcap::fields(&file, ["tcp.port"]);
    assert!(!written.iter().any(|[ports]| ports.contains(&connection.0.to_string())), "and not written: {errors}");
    fs::remove_file(file).expect("it exists");
}

#[test]
fn a_socket_for_vxlan_is_filtered_as_well() {
    let network = Network::new();
    let collector = Collector::start(network.path(), &["--vxlan-port", "4789", "--listen", API]);
    let socket = network.within(|| UdpSocket::bind("127.0.0.1:0")).expect("a socket");
    let send = |frame: &[u8]| {
        let datagram = [&[8, 0, 0, 0, 0, 19, 137, 0][..], frame].concat();
        socket.send_to(&datagram, "127.0.0.1:4789").expect("it can be sent");
    };
    let [client, server] = [2, 3].map(|last| ([10, 0, 0, last].into(), 40_000 + u16::from(last)));
    let other = udp(client, server, &[0; 1000]);
    // The kernel gives sockets up to net.core.rmem_max.
    overload(&collector, || (0..FLOOD).for_each(|_| send(&other)));
    let counted = |status: &Value, name: &str| status[name].as_u64().unwrap_or_default();
    let before = until("all of them are counted", PATIENCE, || {
        let status = status(&network)?;
        let all = counted(&status, "frames") + counted(&status, "framesDropped") + counted(&status, "framesLeftOut");
        if all == FLOOD as u64 { Ok(status) } else { Err(status.to_string()) }
    });
    assert!(counted(&before, "framesDropped") > 0 && before["captured"] == "filtered", "{before}");
    let frames = connection(client, server);
    frames.iter().chain([&other; 10]).for_each(|frame| send(frame));
    // Three of the connection's frames have neither SYN nor FIN.
    until("all are counted", PATIENCE, || {
        let now = status(&network)?;
        let left_out = counted(&now, "framesLeftOut") - counted(&before, "framesLeftOut");
        let captured = counted(&now, "frames") - counted(&before, "frames");
        if (left_out, captured) == (13, 4) { Ok(()) } else { Err(format!("{before} {now}")) }
    });
    let (lines, _) = collector.end();
    let flows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let of_client: Vec<_> = flows.iter().filter(|flow| flow["Proto"] == 6).collect();
    assert_eq!(of_client.len(), 2, "{flows:?}");
    assert!(of_client.iter().all(|flow| flow["Degraded"] == true && flow["FlowEndReason"] == "endOfFlow"));
    assert_eq!(sum(&of_client, "PayloadBytes"), 7 + 8, "a request and a response");
}
