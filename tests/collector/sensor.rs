//! `podtap-collector sensor`: its clients get the frames of a receiver by rpcap and udpstr, as tshark and tcpdump understand them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use podtap_tests::{
    capture::{Capture, FrameDirection},
    collector,
    frames::{connection, udp},
    http,
    pcap::{self, File},
    rpcap::{
        AUTHENTICATE, Client, DATAGRAMS, END, ERROR, FIND, OPEN, PACKET, Packed, REPLY, SERVER_OPENS, SET_SAMPLING,
        START, STATISTICS, UPDATE_FILTER, filter, packet, receive,
    },
    wait::{PATIENCE, uninterrupted, until},
};

use crate::pod::{OUTSIDE, Pod, RECEIVER, WEB, probe};

/// An instruction that passes all frames.
const ALL: [u8; 8] = [0, 6, 0, 0, 0xff, 0xff, 0xff, 0xff];
/// Where the metrics are.
const PROBES: &str = "127.0.0.1:8080";

/// `podtap-collector sensor`, which captures from the receiver of a pod.
struct Sensor<'a> {
    program: collector::Sensor,
    pod: &'a Pod,
}

impl<'a> Sensor<'a> {
    fn start(pod: &'a Pod, arguments: &[&str]) -> Self {
        let arguments = [&["--interface", RECEIVER, "--probes", PROBES], arguments].concat();
        Self { program: collector::Sensor::start(pod.network.path(), &arguments), pod }
    }

    fn passive(pod: &'a Pod, arguments: &[&str]) -> Self {
        Self::start(pod, &[&["--listen", "127.0.0.1:0"], arguments].concat())
    }

    /// Connects to it.
    fn client(&self) -> Client<'_> {
        let address = self.program.address.expect("it listens");
        Client::new(&self.pod.network, self.pod.network.within(|| TcpStream::connect(address)).expect("it listens"))
    }

    /// The value of a series.
    fn metric(&self, series: &str) -> u64 {
        let probes: SocketAddr = PROBES.parse().expect("an address");
        let (_, text) = self.pod.network.within(|| http::get(probes, "/metrics")).expect("it is served");
        let line = text.lines().find_map(|line| line.strip_prefix("podtap_")?.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().expect("a number")
    }

    fn end(self) {
        self.program.end();
    }
}

/// A filter as tcpdump compiles it.
fn compile(expression: &str) -> Vec<u8> {
    let text = pcap::output(Command::new("tcpdump").args(["-ddd", "-y", "EN10MB", expression]));
    let text = String::from_utf8(text).expect("it is text");
    let instructions = text.lines().skip(1).map(|line| {
        let mut numbers = line.split(' ').map(|number| number.parse::<u32>().expect("a number"));
        let mut next = || numbers.next().expect("four numbers").to_be_bytes();
        let ([_, _, high, low], [_, _, _, jt], [_, _, _, jf], [a, b, c, d]) = (next(), next(), next(), next());
        [high, low, jt, jf, a, b, c, d]
    });
    filter(&instructions.collect::<Vec<_>>())
}

/// The next so many frames of a stream, numbered from there on.
fn frames(stream: &mut TcpStream, from: u32, count: usize) -> Vec<Vec<u8>> {
    let frames = (from..).take(count).map(|expected| {
        let (kind, _, payload) = receive(stream).expect("a packet");
        let (number, frame) = packet(&payload);
        assert_eq!((kind, number), (PACKET, expected));
        frame.to_vec()
    });
    frames.collect()
}

/// Everything that a receiver may get.
fn everything() -> Vec<Vec<u8>> {
    let mut frames = connection((WEB, 40_000), (OUTSIDE, 443));
    frames.extend((0..20).map(|number| udp((WEB, number), (OUTSIDE, 53), &vec![7; 80 * usize::from(number)])));
    let mut tagged = udp((WEB, 1), (OUTSIDE, 2), b"with a tag");
    tagged.splice(12..12, [0x88, 0xa8, 0x20, 9]);
    frames.push(tagged.clone());
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    frames.push(tagged);
    let mut fragment = udp((WEB, 1), (OUTSIDE, 2), b"fragment");
    fragment[20] = 0x20;
    frames.push(fragment);
    frames
}

#[test]
fn tshark_understands_control_and_frames() {
    let pod = Pod::new();
    let sensor = Sensor::passive(&pod, &[]);
    let recording = Capture::start(pod.network.path(), "lo");
    let mut client = sensor.client();
    client.open();
    let (_, count, _) = client.ask(FIND, &[]);
    assert_eq!(count, 1);
    let mut data = client.capture(&filter(&[]));
    let sent = everything();
    let mut injector = pod.injector(RECEIVER);
    injector.frame(&probe());
    injector.frames(&sent);
    assert_eq!(frames(&mut data, 1, sent.len()), sent, "all but the probe");
    client.done(UPDATE_FILTER, &compile("tcp"));
    client.until_statistics([30, 0, 0, 30]);
    client.done(END, &[]);

    let recorded = recording.stop();
    let received: Vec<Vec<u8>> =
        recorded.into_iter().filter(|frame| frame.direction == FrameDirection::In).map(|frame| frame.bytes).collect();
    let file = File::of(&received);
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(file.path()).args(["-Y", "rpcap", "-T", "fields", "-e", "rpcap.type", "-e", "rpcap.number"]);
    tshark.args(["--enable-heuristic", "rpcap_tcp"]);
    let text = String::from_utf8(pcap::output(&mut tshark)).expect("it is text");
    let (mut kinds, mut numbers) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (types, packets) = line.split_once('\t').expect("two columns");
        let of_control = types.split(',').filter(|kind| *kind != "0x07");
        kinds.extend(of_control.filter(|kind| !kind.is_empty()).map(str::to_owned));
        numbers.extend(packets.split(',').filter_map(|number| number.parse::<u32>().ok()));
    }
    let replied = [AUTHENTICATE, OPEN, FIND, START, UPDATE_FILTER, STATISTICS, END];
    let expected = replied.map(|kind| [kind, kind | REPLY].map(|kind| format!("{kind:#04x}")));
    // Statistics may be asked for several times.
    let mut kinds: Vec<_> = kinds.chunks(2).collect();
    kinds.dedup();
    assert_eq!(kinds, expected);
    assert_eq!(numbers, (1..=30).collect::<Vec<_>>());
    sensor.end();
}

#[test]
fn filters_choose_the_frames_that_tcpdump_chooses() {
    let pod = Pod::new();
    let sensor = Sensor::passive(&pod, &[]);
    let sent = everything();
    let file = File::of(&sent);
    let mut injector = pod.injector(RECEIVER);
    let last = udp((OUTSIDE, 9), (OUTSIDE, 9), b"the end");
    for expression in [
        "tcp",
        "udp[0:2] > 7",
        "host 192.0.2.1 and not port 443",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
        "ip[6:2] & 0x3fff != 0 or vlan 9",
        "len > 500 and len <= 900",
        "udp[4:2] % 3 = 1 or (ip[2:2] - 20) / 2 > 500",
    ] {
        let mut client = sensor.client();
        client.open();
        // The last frame tells that there are no others. Behind `vlan`, expressions are about what is in the tag.
        let expression = format!("src port 9 or ({expression})");
        let mut data = client.capture(&compile(&expression));
        injector.frames(&sent);
        injector.frame(&last);
        let expected = pcap::tcpdump(file.path(), &expression);
        let expected: Vec<Vec<u8>> = expected.into_iter().map(|number| sent[number].clone()).collect();
        assert!(expected.len() > 1, "{expression}");
        let received = frames(&mut data, 1, expected.len() + 1);
        assert_eq!(received, [&expected[..], std::slice::from_ref(&last)].concat(), "{expression}");
    }
    sensor.end();
}

#[test]
fn what_cannot_be_served_is_refused_by_a_message() {
    let pod = Pod::new();
    let sensor = Sensor::passive(&pod, &[]);
    let mut client = sensor.client();
    assert_eq!(client.refused(FIND, &[]).0, 3, "before authentication");
    let (code, text) = client.refused(AUTHENTICATE, &[0, 1, 0, 0, 0, 1, 0, 1, b'u', b'p']);
    assert_eq!((code, &*text), (3, "authentication of type 1 is not supported, only null authentication (0)"));
    client.done(AUTHENTICATE, &[0; 8]);
    assert_eq!(client.refused(START, &[&[0; 12][..], &filter(&[])].concat()).0, 12, "nothing is open");
    assert_eq!(client.refused(OPEN, b"eth9"), (6, "there is no interface \"eth9\", only \"podtap\"".to_owned()));
    client.done(OPEN, b"any");
    assert_eq!(client.refused(UPDATE_FILTER, &filter(&[])).0, 7, "there is no capture");
    assert_eq!(client.refused(END, &[]).0, 13);
    assert_eq!(client.refused(START, &[&[0; 12][..], &filter(&[[0, 5, 0, 0, 0, 0, 0, 9]])].concat()).0, 12);
    let (code, text) = client.refused(START, &[&[0; 12][..], &filter(&[ALL; 513])].concat());
    assert_eq!((code, &*text), (12, "the filter has 513 instructions, which must be at most 512"));
    assert_eq!(client.refused(SET_SAMPLING, &[1, 0, 0, 0, 0, 0, 0, 9]).0, 15);
    client.done(SET_SAMPLING, &[0; 8]);
    assert_eq!(client.refused(77, &[]).0, 16);
    assert_eq!(client.statistics(), [0; 4]);
    // More clients than there is room for.
    let mut others: Vec<Client<'_>> = (0..3).map(|_| sensor.client()).collect();
    others.iter_mut().for_each(Client::open);
    let (kind, code, text) = receive(&mut sensor.client().control).expect("a message");
    assert_eq!((kind, code, &text[..]), (ERROR, 1, &b"there are 4 clients already"[..]));
    drop(others);
    until("there is room", PATIENCE, || {
        let connected = sensor.metric("sensor_connected{sensor=\"clients\"}");
        if connected == 1 { Ok(()) } else { Err(format!("{connected} are connected")) }
    });
    sensor.client().open();
    // A message that is too long ends the connection.
    client.control.write_all(&[0, 2, 0, 0, 0xff, 0xff, 0xff, 0xff]).expect("it is connected");
    assert_eq!(receive(&mut client.control).expect("a message").1, 16);
    assert_eq!(client.control.read(&mut [0]).expect("its end"), 0);
    sensor.end();
}

#[test]
fn clients_choose_who_connects_and_how_much_of_each_frame_also_over_ipv6() {
    let pod = Pod::new();
    let sensor = Sensor::start(&pod, &["--listen", "[::1]:0", "--udp-payload", "0"]);
    let sent = everything();
    let mut injector = pod.injector(RECEIVER);
    let mut client = sensor.client();
    client.open();
    let listener = pod.network.within(|| TcpListener::bind("[::1]:0")).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    assert_eq!(client.start(SERVER_OPENS, port, 60, &filter(&[])), 0);
    let (mut data, _) = listener.accept().expect("it connects");
    data.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    injector.frames(&sent);
    let truncated: Vec<Vec<u8>> = sent.iter().map(|frame| frame[..frame.len().min(60)].to_vec()).collect();
    assert_eq!(frames(&mut data, 1, sent.len()), truncated);
    // By UDP, a frame in each datagram. The capture by TCP ends.
    let socket = pod.network.within(|| UdpSocket::bind("[::1]:0")).expect("a port");
    socket.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    client.start(DATAGRAMS, socket.local_addr().expect("an address").port(), 0, &filter(&[]));
    assert_eq!(data.read(&mut [0]).expect("its end"), 0);
    injector.frames(&sent);
    for (number, frame) in (1..).zip(&sent) {
        let mut datagram = vec![0; 65_536];
        let length = uninterrupted(|| socket.recv(&mut datagram)).expect("a datagram");
        assert_eq!(datagram[..4], [0, PACKET, 0, 0]);
        assert_eq!(packet(&datagram[8..length]), (number, &frame[..]));
    }
    sensor.end();
}

#[test]
fn libpcap_without_a_filter_sends_one_that_the_length_of_its_message_leaves_out() {
    let pod = Pod::new();
    let sensor = Sensor::passive(&pod, &[]);
    let mut client = sensor.client();
    client.open();
    // Its header counts 20 bytes: the start, and the header of the filter, which has one instruction.
    let start = [&[0, START, 0, 0, 0, 0, 0, 20, 0, 0, 0xff, 0xff, 0, 0, 3, 0xe8, 0, 0, 0, 0][..], &filter(&[ALL])];
    client.control.write_all(&start.concat()).expect("it is connected");
    let (kind, _, reply) = receive(&mut client.control).expect("a reply");
    assert_eq!(kind, START | REPLY, "{}", String::from_utf8_lossy(&reply));
    let port = u16::from_be_bytes([reply[4], reply[5]]);
    let mut data = client.connect(port);
    pod.injector(RECEIVER).frames(&everything());
    assert_eq!(frames(&mut data, 1, everything().len()), everything());
    let count = u32::try_from(everything().len()).expect("few");
    // The next request is understood.
    client.until_statistics([count, 0, 0, count]);
    sensor.end();
}

#[test]
fn a_client_that_does_not_read_loses_its_own_frames_and_they_are_counted() {
    let pod = Pod::new();
    let sensor = Sensor::passive(&pod, &["--queue-size", "1"]);
    let (mut slow, mut other) = (sensor.client(), sensor.client());
    slow.open();
    other.open();
    let slow_data = slow.capture(&filter(&[]));
    let mut data = other.capture(&filter(&[]));
    let mut injector = pod.injector(RECEIVER);
    let frame = udp((WEB, 1), (OUTSIDE, 2), &[7; 1400]);
    let (mut sent, start) = (0, Instant::now());
    // Sockets take some megabytes.
    let dropped = loop {
        for _ in 0..200 {
            injector.frame(&frame);
        }
        assert_eq!(frames(&mut data, sent + 1, 200), vec![frame.clone(); 200]);
        sent += 200;
        let [passed, by_interface, dropped, _] = slow.statistics();
        assert_eq!((passed, by_interface), (sent, 0));
        if dropped > 0 {
            break dropped;
        }
        assert!(start.elapsed() < PATIENCE, "nothing was dropped of {sent} frames");
    };
    let not_sent = "sensor_frames_not_sent_total{sensor=\"clients\",reason=\"noRoom\"}";
    assert_eq!(sensor.metric(not_sent), u64::from(dropped));
    other.until_statistics([sent, 0, 0, sent]);
    assert_eq!(sensor.metric("sensor_frames_total"), u64::from(sent));
    assert_eq!(sensor.metric("sensor_connected{sensor=\"clients\"}"), 2);
    // It ends, although one does not read.
    drop((slow_data, slow));
    sensor.end();
}

/// A sensor that is connected to, in the network of a pod.
fn accept<'a>(pod: &'a Pod, listener: &TcpListener) -> Client<'a> {
    let (control, _) = listener.accept().expect("it connects");
    Client::new(&pod.network, control)
}

#[test]
fn a_sensor_is_connected_to_again_until_it_answers() {
    let pod = Pod::new();
    let listener = pod.network.within(|| TcpListener::bind("127.0.0.1:0")).expect("a port");
    let address = listener.local_addr().expect("an address");
    // Nothing listens.
    drop(listener);
    let start = Instant::now();
    let sensor = Sensor::start(&pod, &["--connect", &address.to_string()]);
    let label = format!("{{sensor=\"{address}\"}}");
    until("an attempt fails", PATIENCE, || {
        let failures = sensor.metric(&format!("sensor_connection_failures_total{label}"));
        if failures > 0 { Ok(()) } else { Err("there was none") }
    });
    assert_eq!(sensor.metric(&format!("sensor_connected{label}")), 0);
    let listener = pod.network.within(|| TcpListener::bind(address)).expect("the port is free");
    for _ in 0..2 {
        let mut client = accept(&pod, &listener);
        client.open();
        assert_eq!(sensor.metric(&format!("sensor_connected{label}")), 1);
        // It opens the data connection, also without being asked for that.
        let data = pod.network.within(|| TcpListener::bind("127.0.0.1:0")).expect("a port");
        client.start(0, data.local_addr().expect("an address").port(), 0, &filter(&[]));
        let (mut data, _) = data.accept().expect("it connects");
        pod.injector(RECEIVER).frames(&everything());
        assert_eq!(frames(&mut data, 1, everything().len()), everything());
        // Without a word, as when a sensor restarts.
    }
    assert!(start.elapsed() < Duration::from_secs(20), "the longest pause is for a sensor that is away for longer");
    sensor.end();
}

/// Sends frames to two sensors, one of which gets udpstr and the other one rpcap by TCP, so many a second. Both get all of them.
fn deliver(count: u32, per_second: Option<u32>) {
    let pod = Pod::new();
    let listeners = [2003, 2004].map(|port| pod.network.within(|| TcpListener::bind(("127.0.0.1", port))));
    let [packed, plain] = listeners.map(|listener| listener.expect("the port is free"));
    let sensor = Sensor::start(&pod, &["--connect", "127.0.0.1:2003", "--connect", "127.0.0.1:2004"]);
    let (mut packed, mut plain) = (accept(&pod, &packed), accept(&pod, &plain));
    packed.open();
    plain.open();
    let socket = pod.network.within(|| UdpSocket::bind("127.0.0.1:0")).expect("a port");
    socket.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    setsockopt(&socket, sockopt::RcvBufForce, &(256 << 20)).expect("root may");
    let data = pod.network.within(|| TcpListener::bind("127.0.0.1:0")).expect("a port");
    packed.start(DATAGRAMS, socket.local_addr().expect("an address").port(), 0, &filter(&[]));
    plain.start(0, data.local_addr().expect("an address").port(), 0, &filter(&[]));
    let (mut data, _) = data.accept().expect("it connects");
    data.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    // A quarter is as long as frames get.
    let frame = |number: u32| {
        let length = if number.is_multiple_of(4) { 1472 } else { 18 };
        udp((WEB, 1), (OUTSIDE, 2), &[&number.to_be_bytes()[..], &vec![7; length - 4]].concat())
    };
    thread::scope(|scope| {
        let mut injector = pod.injector(RECEIVER);
        let sender = scope.spawn(move || {
            let start = Instant::now();
            for number in 1..=count {
                injector.frame(&frame(number));
                if let Some(rate) = per_second {
                    while start.elapsed() < Duration::from_secs(1) * number / rate {
                        thread::yield_now();
                    }
                }
            }
            start.elapsed()
        });
        let streamed = scope.spawn(move || {
            for number in 1..=count {
                let (kind, _, payload) = receive(&mut data).expect("a packet");
                assert_eq!((kind, packet(&payload)), (PACKET, (number, &frame(number)[..])));
            }
        });
        let (mut packed, mut datagram) = (Packed::default(), vec![0; 65_536]);
        while packed.packets < count {
            let length = uninterrupted(|| socket.recv(&mut datagram)).expect("a datagram");
            packed.read(&datagram[..length], |number, received| assert_eq!(received, frame(number)));
        }
        streamed.join().expect("all frames come by TCP");
        let time = sender.join().expect("it sends").as_secs_f64();
        println!(
            "{count} frames in {time:.1} s, {:.0} a second; {} datagrams",
            f64::from(count) / time,
            packed.datagrams
        );
    });
    for client in [&mut packed, &mut plain] {
        client.until_statistics([count, 0, 0, count]);
    }
    assert_eq!(sensor.metric("sensor_frames_total"), u64::from(count));
    assert_eq!(sensor.metric("sensor_frames_dropped_total"), 0);
    sensor.end();
}

#[test]
fn two_sensors_get_every_frame() {
    deliver(20_000, None);
}

/// `cargo test -p podtap-tests --test collector -- --ignored sensor:: --nocapture` prints the rate.
#[test]
#[ignore = "a rate, which a busy machine does not reach"]
fn two_sensors_get_50_000_frames_a_second() {
    deliver(200_000, Some(50_000));
}
