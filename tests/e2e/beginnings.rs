//! Taps that look at the beginnings of flows.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use podtap_tests::{
    capture::{Capture, Frame},
    cluster::{namespace_of_node, udp_socket},
    namespace::within,
    pcap::{File, fields},
    wait::{uninterrupted, until},
};

use crate::{
    options::tap,
    scene::{Scene, address, apply_example, as_on_the_wire, capture},
};

const SERVER: u16 = 7070;
const LIMIT: usize = 64 << 10;

/// Downloads bytes from `server` to `client`. The server ends the connection.
fn download(client: &Path, server: &Path, to: &str, bytes: usize) {
    let to = SocketAddrV4::new(to.parse::<Ipv4Addr>().expect("the lab's pods have IPv4"), SERVER);
    let listener = within(server, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, SERVER))).expect("the port is free");
    let mut stream = within(client, move || TcpStream::connect(to)).expect("it connects");
    let (mut accepted, _) = listener.accept().expect("it is accepted");
    let serving = thread::spawn(move || accepted.write_all(&vec![7; bytes]).expect("the client reads"));
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("it arrives");
    serving.join().expect("the server does not panic");
    assert_eq!(received.len(), bytes);
}

/// What tshark reads of TCP frames with a port: source port, sequence number, payload by the headers, captured payload, flags.
fn segments(frames: &[Frame], port: u16) -> Vec<(bool, u32, usize, usize, u32)> {
    let bytes: Vec<Vec<u8>> = frames.iter().map(|frame| frame.bytes.clone()).collect();
    let file = File::of(&bytes);
    let names =
        ["tcp.srcport", "tcp.dstport", "tcp.seq_raw", "tcp.hdr_len", "ip.len", "ip.hdr_len", "frame.len", "tcp.flags"];
    let one = |[source, destination, sequence, header, length, ip_header, frame, flags]: [String; 8]| {
        let number = |text: &str| text.parse::<usize>().unwrap_or_default();
        let from_server = number(&source) == usize::from(port);
        let headers = number(&ip_header) + number(&header);
        (from_server || number(&destination) == usize::from(port)).then(|| {
            let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).expect("flags");
            let sequence = sequence.parse().expect("a sequence number");
            (from_server, sequence, number(&length) - headers, number(&frame) - 14 - headers, flags)
        })
    };
    fields(file.path(), names).into_iter().filter_map(one).collect()
}

#[test]
fn a_download_is_cut_off() {
    const SIZE: usize = 50_000_000;
    let scene = Scene::new("cut-off");
    let (web, client) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client));
    scene.sandbox.apply(&tap("web", "web", "trt-cut-off", "limit: {bytesPerFlow: 64Ki}"));
    scene.sandbox.ready("web");
    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "trt-cut-off");
    download(&client, &web, &address(&scene.web), SIZE);
    let ended = |frames: &[Frame]| {
        let ends = segments(frames, SERVER).into_iter().filter(|(_, _, _, _, flags)| flags & 1 != 0);
        ends.map(|(from_server, ..)| from_server).collect::<std::collections::BTreeSet<_>>().len() == 2
    };
    until("both directions end", Duration::from_secs(10), || {
        let frames = receiver.so_far();
        if ended(&frames) { Ok(()) } else { Err(frames.len()) }
    });
    let frames = receiver.stop();
    let from_server: Vec<_> = segments(&frames, SERVER).into_iter().filter(|segment| segment.0).collect();
    let start = from_server.iter().find(|segment| segment.4 & 2 != 0).expect("the SYN-ACK").1.wrapping_add(1);
    let (_, sequence, length, ..) = *from_server.iter().find(|segment| segment.4 & 1 != 0).expect("a FIN");
    assert_eq!(sequence.wrapping_sub(start) as usize + length, SIZE, "its length, by the sequence numbers");
    let captured: usize = from_server.iter().map(|segment| segment.3).sum();
    // A GSO packet may cross the limit.
    assert!((LIMIT..=2 * LIMIT).contains(&captured), "{captured} bytes of payload");
    println!("{} frames of {SIZE} bytes, {captured} bytes of payload", frames.len());
}

/// The example: DNS, the names in requests, and which pod is behind a Service.
#[test]
fn names_and_services_are_known_although_only_headers_are_mirrored() {
    let scene = Scene::new("names");
    scene.sandbox.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports:\n  \
         - {port: 8080, targetPort: 80}\n",
    );
    let service =
        scene.sandbox.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"], "").expect("an address");
    let request = format!("wget -q -O /dev/null http://{service}:8080/f?secret=of-the-request");
    until("the service leads to the web server", Duration::from_secs(20), || scene.sandbox.in_pod("client", &request));
    let (web, client) = (scene.sandbox.network(&scene.web), scene.sandbox.network(&scene.client));
    for network in [&web, &client] {
        as_on_the_wire(network, "eth0");
    }
    apply_example(&scene.sandbox, "tap-names.yaml", "all-names", ["names", "trt-names"], 2);

    let receiver = capture(&namespace_of_node(scene.sandbox.lab(), "n2"), "trt-names");
    let at_client = Capture::start(&client, "eth0");
    scene.sandbox.in_pod("client", &request).expect("the service answers");
    // DNS responses of any length.
    let (server, socket) = (udp_socket(&web, 53).expect("the port is free"), udp_socket(&client, 0).expect("a socket"));
    for end in [&server, &socket] {
        end.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout can be set");
    }
    for _ in 0..6 {
        socket.send_to(b"question", (address(&scene.web).as_str(), 53)).expect("it can be sent");
        let (_, from) = uninterrupted(|| server.recv_from(&mut [0; 64])).expect("it arrives");
        server.send_to(&[9; 1200], from).expect("it can be answered");
        uninterrupted(|| socket.recv(&mut [0; 1500])).expect("the answer arrives");
    }
    let arrived = |what: &str, expected: usize, matches: &dyn Fn(&[u8]) -> bool| {
        until(what, Duration::from_secs(10), || {
            let count = receiver.count(|frame| matches(&frame.bytes));
            if count == expected { Ok(()) } else { Err(count) }
        });
    };
    let contains = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    arrived("the request", 1, &|bytes| contains(bytes, b"secret=of-the-request"));
    // Six, whole, at both ends.
    arrived("the answers", 12, &|bytes| bytes.len() == 42 + 1200 && bytes[34..36] == 53_u16.to_be_bytes());
    let (sent, frames) = (at_client.stop(), receiver.stop());
    let requests = frames.iter().filter(|frame| contains(&frame.bytes, b"secret=of-the-request")).count();
    assert_eq!(requests, 1, "none came later");
    let syn = |port: u16| {
        let syns = segments(&frames, port).into_iter().filter(|segment| !segment.0 && segment.4 & 0x12 == 2);
        syns.map(|segment| segment.1).collect::<Vec<u32>>()
    };
    let (at_service, at_pod) = (syn(8080), syn(80));
    assert!(at_service.len() == 1 && at_service == at_pod, "one SYN at each end: {at_service:?} {at_pod:?}");
    // Of the download of 2 MB, the first frames are whole; the rest has headers only, once.
    let payload = |frames: &[Frame]| segments(frames, 8080).iter().map(|segment| segment.3).sum::<usize>();
    let whole = payload(&sent);
    assert!(whole > 2_000_000 && (4096..70_000).contains(&payload(&frames)), "{} of {whole}", payload(&frames));
    assert_eq!(segments(&frames, 80).iter().map(|segment| segment.3).sum::<usize>(), 0, "once");
}
