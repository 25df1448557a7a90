//! Frames as they come.

use std::{
    fs::{self, OpenOptions},
    net::UdpSocket,
    os::unix::fs::OpenOptionsExt as _,
};

use nix::{
    libc,
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use podtap_tests::{
    collector::Collector,
    net::Network,
    pcap,
    wait::{PATIENCE, until},
};

use crate::{
    network::{CLIENT, Path, Recording, SERVER_PORT, SERVICE, SERVICE_PORT, servers, until_read},
    peers::{directions, of_file},
    read,
    views::identity,
};

#[test]
fn an_interface_s_flows_are_those_of_a_file_that_tcpdump_wrote() {
    let path = Path::new();
    path.serve();
    let recording = Recording::start(&path.client, "live", 0);
    let collector = Collector::start(path.client.path(), &["--interface", "eth0"]);
    for (number, size) in [0, 1000, 50_000, 1_000_000].into_iter().cycle().take(40).enumerate() {
        let to = if number % 2 == 0 { (SERVICE, SERVICE_PORT) } else { (servers()[number % 3], SERVER_PORT) };
        path.request(to, size);
    }
    // Its last datagram is in both: frames are in order.
    let file = recording.end(&path);
    let (flows, errors) = collector.end();
    assert!(errors.contains(" 0 dropped by the kernel") && errors.contains(" 0 lines dropped"), "{errors}");
    let (live, read) = (directions(&flows), of_file(&file));
    assert!(live.len() >= 80, "{errors}");
    // The recording may end before the last of its datagrams.
    let of_tcp = |all: &crate::peers::Directions| -> Vec<_> {
        all.iter().filter(|(key, _)| key.4 == 6).map(|(key, counts)| (key.clone(), *counts)).collect()
    };
    assert_eq!(of_tcp(&live), of_tcp(&read));
    fs::remove_file(file).expect("it exists");
}

#[test]
fn a_capture_ends_with_its_interface() {
    let network = Network::new();
    network.ip("link add mirror0 type veth peer name peer0\nlink set mirror0 up\nlink set peer0 up\n");
    let mut collector = Collector::start(network.path(), &["--interface", "mirror0"]);
    network.ip("link del mirror0\n");
    let (status, errors) = collector.wait();
    assert!(!status.success() && errors.contains("mirror0 went down, or was removed"), "{errors}");
}

#[test]
fn the_map_is_saved_while_frames_cannot_be_written() {
    let path = Path::new();
    path.serve();
    let directory = std::env::temp_dir().join(format!("podtap-collector-{}-hangs", std::process::id()));
    fs::create_dir_all(&directory).expect("it can be made");
    let [pipe, state] = ["frames.pcapng", "map.json"].map(|name| directory.join(name));
    mkfifo(&pipe, Mode::S_IRWXU).expect("it can be made");
    // Takes what a pipe holds, 64 KiB, and reads nothing.
    let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).expect("it can be opened");
    let [write, kept] = [&pipe, &state].map(|path| path.to_str().expect("text"));
    let collector = Collector::start(path.client.path(), &["--interface", "eth0", "--write", write, "--state", kept]);
    path.request((servers()[0], SERVER_PORT), 1_000_000);
    collector.signal(Signal::SIGTERM);
    until("the map is saved", PATIENCE, || {
        let map = fs::read_to_string(&state).map_err(|error| error.to_string())?;
        if map.contains("\"sent\":4,\"received\":1000004,") { Ok(()) } else { Err(map) }
    });
    drop(collector);
    fs::remove_dir_all(directory).expect("it exists");
}

#[test]
fn an_external_destination_of_a_tap_needs_no_capability() {
    let path = Path::new();
    path.serve();
    let recording = Recording::start(&path.client, "vxlan", 66);
    for _ in 0..10 {
        path.request((SERVICE, SERVICE_PORT), 10_000);
    }
    let file = recording.end(&path);
    let network = Network::new();
    let collector = Collector::start(network.path(), &["--vxlan-port", "4789"]);
    let socket = network.within(|| UdpSocket::bind("127.0.0.1:0")).expect("a socket");
    let frames = pcap::frames(&fs::read(&file).expect("it was written")).into_iter().map(|frame| frame.bytes);
    // Its tap tells who the client is.
    for frame in [identity("client-1", CLIENT)].into_iter().chain(frames) {
        let datagram = [&[8, 0, 0, 0, 0, 19, 137, 0][..], &frame].concat();
        socket.send_to(&datagram, "127.0.0.1:4789").expect("it can be sent");
    }
    // No VXLAN: without the flag, and too short.
    for other in [&[0; 60][..], &[8, 0]] {
        socket.send_to(other, "127.0.0.1:4789").expect("it can be sent");
    }
    until_read(&network, 4789);
    let (flows, _) = collector.end();
    assert_eq!(directions(&flows), of_file(&file));
    let of_client = read::parse(&flows).into_iter().filter(|flow| flow["SrcK8S_Name"] == "client-1");
    assert_eq!(of_client.filter(|flow| flow["DstPort"] == SERVICE_PORT).count(), 10, "{flows}");
    fs::remove_file(file).expect("it exists");
}
