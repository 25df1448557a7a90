//! Cutoffs and exempt beginnings of flows, frame by frame, compared with the fields that tshark reads.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use podtap_model::{Limit, MirrorOptions, Truncate};
use podtap_tests::{
    cores::Confined,
    pcap::{File, fields},
};
use tap_helper::bpf::{ProgramKind, Programs};

use crate::{
    bpf_flows::{End, fragments, frame, load, mirrored},
    bpf_frames::Random,
    bpf_scene::with,
};

const SYN: u8 = 2;
const FIN: u8 = 1;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Types of SCTP chunks.
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SHUTDOWN: u8 = 7;

/// How often a header of a flow that is cut off is mirrored: each second, by a clock that ticks each 10 ms at most.
const HEADER_INTERVAL: Duration = Duration::from_millis(990);

fn cutoff(bytes: u64) -> MirrorOptions {
    let limit = Limit { bytes_per_flow: Some(bytes.into()), ..Limit::default() };
    MirrorOptions { limit: Some(limit), ..MirrorOptions::default() }
}

/// What arrives of a frame, if anything does.
fn sent(programs: &Programs, kind: ProgramKind, frame: &[u8]) -> Option<Vec<u8>> {
    // As mirred sets skb_iif: `ingress_ifindex` is the tenth word.
    let mut context = [0; 40];
    context[36] = 1;
    mirrored(programs, kind, frame).then(|| {
        let (verdict, sent) = programs.test_run(ProgramKind::Clamp, frame, &context).expect("the program runs");
        assert_eq!(verdict, 0, "it leaves");
        sent
    })
}

/// A random frame of one of some flows of a pod, and its direction: with options, padding, fragments.
fn random_frame(random: &mut Random, id: u8) -> (ProgramKind, Vec<u8>) {
    let pod = End { address: [10, 0, 0, 1], port: random.of(&[40_000, 40_001]) };
    let other = End { address: random.of(&[[10, 9, 0, 1], [10, 9, 0, 2]]), port: random.of(&[53, 443]) };
    // TCP, UDP, SCTP, ICMP, ESP.
    let (protocol, ipv6) = (random.of(&[6, 6, 6, 17, 132, 1, 50]), random.one_in(3));
    let (kind, from, to) = random.of(&[(ProgramKind::Egress, pod, other), (ProgramKind::Ingress, other, pod)]);
    if protocol == 17 && random.one_in(4) {
        return (kind, fragments(id, other.port, ipv6)[random.below(2)].clone());
    }
    let flags = if random.one_in(8) { random.of(&[SYN, SYN | ACK, FIN | ACK, RST, RST | ACK]) } else { ACK };
    let mut frame = frame(protocol, from, to, flags, ipv6);
    if protocol == 132 {
        // The first chunk follows the common header of 12 bytes.
        let chunk = frame.len() - 8;
        frame[chunk] = if random.one_in(6) { random.of(&[INIT, INIT_ACK, SHUTDOWN]) } else { DATA };
    }
    let options = if protocol == 6 && random.one_in(2) { 12 } else { 0 };
    if options > 0 {
        let offset = frame.len() - 8;
        frame[offset] = 0x80;
        frame.extend([1; 12]);
    }
    let payload = random.of(&[0, 0, 1, 500, 1400]);
    frame.resize(frame.len() + payload, 0xee);
    let length = u16::try_from(frame.len() - if ipv6 { 54 } else { 14 }).expect("frames are short");
    let at = if ipv6 { 18 } else { 16 };
    frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
    if protocol == 17 {
        let at = if ipv6 { 58 } else { 38 };
        let datagram = length - if ipv6 { 0 } else { 20 };
        frame[at..at + 2].copy_from_slice(&datagram.to_be_bytes());
    }
    // Padding, and a VLAN tag.
    if random.one_in(4) {
        frame.extend([0; 6]);
    }
    if random.one_in(6) {
        frame.splice(12..12, [0x81, 0, 0, 5]);
    }
    (kind, frame)
}

/// What tshark reads of a frame.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says something else")]
struct Read {
    /// Local and remote end, with ports where they are known, and the protocol.
    flow: (String, String, String, String, String),
    length: usize,
    headers: usize,
    payload: usize,
    is_tcp: bool,
    starts: bool,
    control: bool,
    is_dns: bool,
    is_known: bool,
}

const FIELDS: [&str; 23] = [
    "frame.len",
    "vlan.id",
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "ip.proto",
    "ipv6.nxt",
    "ipv6.fraghdr.nxt",
    "ip.hdr_len",
    "ip.len",
    "ipv6.plen",
    "ip.frag_offset",
    "ipv6.fraghdr.offset",
    "tcp.srcport",
    "tcp.dstport",
    "udp.srcport",
    "udp.dstport",
    "sctp.srcport",
    "sctp.dstport",
    "tcp.hdr_len",
    "tcp.flags",
    "sctp.chunk_type",
];

/// Reads frames with tshark. Later fragments have no ports: they are given those of the first one with the same addresses and identification,
/// which is the last byte of its field here.
fn read(frames: &[(ProgramKind, Vec<u8>)]) -> Vec<Read> {
    let bytes: Vec<Vec<u8>> = frames.iter().map(|(_, frame)| frame.clone()).collect();
    let file = File::of(&bytes);
    let mut ports: HashMap<Vec<u8>, [String; 2]> = HashMap::new();
    let one = |(values, (kind, frame)): ([String; 23], &(ProgramKind, Vec<u8>))| {
        let [
            length,
            tag,
            source,
            destination,
            source6,
            destination6,
            protocol,
            next,
            fragment_next,
            ip_header,
            ip_length,
            payload_length,
            offset,
            offset6,
            tcp_source,
            tcp_destination,
            udp_source,
            udp_destination,
            sctp_source,
            sctp_destination,
            tcp_header,
            tcp_flags,
            chunk,
        ] = values;
        let number = |text: &str| text.parse::<usize>().unwrap_or_default();
        let is_ipv6 = !source6.is_empty();
        let ethernet = if tag.is_empty() { 14 } else { 18 };
        let is_fragment =
            !fragment_next.is_empty() || (!is_ipv6 && frame[ethernet + 6] & 0x3f | frame[ethernet + 7] != 0);
        let is_later = number(&offset) + number(&offset6) > 0;
        let protocol = if !fragment_next.is_empty() {
            fragment_next
        } else if is_ipv6 {
            next
        } else {
            protocol
        };
        let ip = if is_ipv6 { 40 + if is_fragment { 8 } else { 0 } } else { number(&ip_header) };
        let end = if is_ipv6 { 40 + number(&payload_length) } else { number(&ip_length) };
        let transport = match protocol.as_str() {
            _ if is_later => 0,
            "6" => number(&tcp_header),
            "17" | "1" => 8,
            "132" => 12,
            _ => 0,
        };
        let mut own = [tcp_source + &udp_source + &sctp_source, tcp_destination + &udp_destination + &sctp_destination];
        if is_fragment {
            let (addresses, id) = if is_ipv6 { (&frame[22..54], frame[61]) } else { (&frame[26..34], frame[19]) };
            let datagram = [addresses, &[id, u8::from(is_ipv6)]].concat();
            if is_later {
                own = ports.get(&datagram).cloned().unwrap_or_default();
            } else {
                ports.insert(datagram, own.clone());
            }
        }
        let is_known = !own[1].is_empty();
        let [source_port, destination_port] = own;
        let is_chunk = |types: &[u8]| types.iter().any(|kind| chunk == kind.to_string());
        let (source, destination) = (source + &source6, destination + &destination6);
        let flags = u16::from_str_radix(tcp_flags.trim_start_matches("0x"), 16).unwrap_or_default().to_be_bytes()[1];
        let is_dns =
            ["6", "17"].contains(&&*protocol) && [&source_port, &destination_port].iter().any(|port| *port == "53");
        let flow = match kind {
            ProgramKind::Egress => (source, destination, source_port, destination_port, protocol.clone()),
            _ => (destination, source, destination_port, source_port, protocol.clone()),
        };
        Read {
            flow,
            length: number(&length),
            headers: ethernet + ip + transport,
            payload: (ethernet + end).min(number(&length)).saturating_sub(ethernet + ip + transport),
            is_tcp: protocol == "6",
            starts: flags & SYN != 0 || is_chunk(&[INIT, INIT_ACK]),
            control: flags & (SYN | FIN | RST) != 0 || is_chunk(&[INIT, INIT_ACK, SHUTDOWN]),
            is_dns,
            is_known: !["6", "17", "132"].contains(&&*protocol) || is_known,
        }
    };
    fields(file.path(), FIELDS).into_iter().zip(frames).map(one).collect()
}

/// What was seen of a flow.
#[derive(Default)]
struct Seen {
    bytes: [usize; 2],
    /// When a frame of each direction was mirrored last.
    at: [Option<Instant>; 2],
}

/// Runs random frames, and compares what arrives of each with what the options say, by what tshark reads. Returns how many arrived whole,
/// were truncated, and did not arrive.
fn compare(random: &mut Random, options: &MirrorOptions) -> [usize; 3] {
    let programs = load(&with(options.clone()));
    let frames: Vec<(ProgramKind, Vec<u8>)> =
        (0..3000).map(|number| random_frame(random, u8::try_from(number % 7).expect("small"))).collect();
    let limit = Some(options.bytes_per_flow() as usize).filter(|bytes| *bytes > 0).unwrap_or(usize::MAX);
    let exempt = options.exempt_bytes() as usize;
    let mut flows: HashMap<_, Seen> = HashMap::new();
    let mut counts = [0; 3];
    for (read, (kind, frame)) in read(&frames).into_iter().zip(&frames) {
        let direction = usize::from(*kind == ProgramKind::Egress);
        let seen = flows.entry(read.flow.clone()).or_default();
        if read.starts {
            seen.bytes = [0; 2];
        }
        let before = seen.bytes[direction];
        seen.bytes[direction] += read.payload;
        let acknowledges = read.payload == 0 && read.is_tcp;
        let is_cut_off = read.is_known && (before >= limit || (acknowledges && seen.bytes[1 - direction] >= limit));
        let is_exempt = read.is_known && exempt > 0 && (before < exempt || read.is_dns);
        let expected = match options.truncate {
            _ if is_cut_off => read.headers,
            Some(Truncate { bytes: Some(bytes), .. }) if !is_exempt => bytes as usize,
            Some(Truncate { headers_only: true, .. }) if !is_exempt => read.headers,
            _ => read.length,
        };
        let expected = expected.min(read.length);
        let start = Instant::now();
        let arrived = sent(&programs, *kind, frame);
        let last =
            seen.at[direction].replace(if arrived.is_some() { start } else { seen.at[direction].unwrap_or(start) });
        let is_due = last.is_none_or(|at| at.elapsed() > HEADER_INTERVAL);
        match &arrived {
            None => {
                assert!(is_cut_off && !read.control, "nothing of {read:?}, {before} seen\n{options:?}\n{frame:02x?}");
            }
            Some(bytes) => {
                assert!(!is_cut_off || read.control || is_due, "{read:?} is cut off, {before} seen\n{options:?}");
                assert!(
                    bytes.len() == expected && *bytes == frame[..expected],
                    "{} of {expected} bytes of {read:?}, {before} seen\n{options:?}\n{frame:02x?}",
                    bytes.len()
                );
            }
        }
        counts[arrived.map_or(2, |bytes| usize::from(bytes.len() < frame.len()))] += 1;
    }
    counts
}

/// Whatever the flow: TCP with options, UDP, SCTP and ICMP, IPv4 and IPv6, in fragments, with padding.
#[test]
fn each_frame_arrives_as_much_as_its_flow_has_left() {
    // As the classifier and the clamp run for a frame.
    let _core = Confined::to(1);
    let mut random = Random::new(11);
    let truncate = |truncate: Truncate| Some(Truncate { exempt_bytes: Some(2500), ..truncate });
    let bytes = truncate(Truncate { bytes: Some(80), ..Truncate::default() });
    let headers_only = truncate(Truncate { headers_only: true, ..Truncate::default() });
    for (options, kinds) in [
        (cutoff(1), [true, true, true]),
        (cutoff(3000), [true, true, true]),
        (cutoff(1 << 30), [true, false, false]),
        (MirrorOptions { truncate: bytes, ..MirrorOptions::default() }, [true, true, false]),
        (MirrorOptions { truncate: headers_only, ..MirrorOptions::default() }, [true, true, false]),
        (MirrorOptions { truncate: bytes, ..cutoff(6000) }, [true, true, true]),
    ] {
        let counts = compare(&mut random, &options);
        println!("whole, truncated, not at all: {counts:?}");
        let has = |(count, expected): (usize, bool)| if expected { count > 20 } else { count == 0 };
        assert!(counts.into_iter().zip(kinds).all(has), "{counts:?} {options:?}");
    }
}

fn ends() -> [End; 2] {
    [End { address: [10, 0, 0, 1], port: 40_000 }, End { address: [10, 9, 0, 1], port: 443 }]
}

/// A segment from the pod, with payload.
fn segment(flags: u8) -> Vec<u8> {
    long(frame(6, ends()[0], ends()[1], flags, false))
}

/// With 1,000 bytes of payload.
fn long(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(1054, 0);
    frame[16..18].copy_from_slice(&1040_u16.to_be_bytes());
    frame
}

#[test]
fn a_flow_that_is_cut_off_shows_once_per_second_in_each_direction() {
    // As the classifier and the clamp run for a frame.
    let _core = Confined::to(1);
    let programs = load(&with(cutoff(1000)));
    let [pod, other] = ends();
    let (out, acknowledgement) = (segment(ACK), frame(6, other, pod, ACK, false));
    assert_eq!(sent(&programs, ProgramKind::Egress, &out).map(|bytes| bytes.len()), Some(out.len()));
    let (start, mut arrived) = (Instant::now(), [0; 2]);
    while start.elapsed() < Duration::from_millis(3500) {
        for (count, kind, frame) in [(0, ProgramKind::Egress, &out), (1, ProgramKind::Ingress, &acknowledgement)] {
            if let Some(bytes) = sent(&programs, kind, frame) {
                assert_eq!(bytes.len(), 54, "headers");
                arrived[count] += 1;
            }
        }
        // The rate of the frames.
        thread::sleep(Duration::from_millis(20));
    }
    // Without frames for a while, the next one is due.
    assert!(arrived.iter().all(|count| [2, 3].contains(count)), "{arrived:?}");
    let counted = programs.maps().counters(0).expect("the counters are readable");
    assert_eq!((counted.egress.mirrored.frames, counted.ingress.mirrored.frames), (arrived[0] + 1, arrived[1]));
    assert_eq!(counted.egress.truncated.frames, arrived[0]);
    assert!(counted.egress.cut_off.frames > 50, "{counted:?}");
    assert_eq!(counted.egress.cut_off.bytes, counted.egress.cut_off.frames * 1054);
}

/// The next connection of the same addresses and ports.
#[test]
fn a_handshake_starts_a_new_flow() {
    let programs = load(&with(cutoff(1000)));
    for (kind, from, to) in [(ProgramKind::Egress, 0, 1), (ProgramKind::Ingress, 1, 0)] {
        let data = long(frame(6, ends()[from], ends()[to], ACK, false));
        let runs = |count: usize| (0..count).filter(|_| mirrored(&programs, kind, &data)).count();
        assert_eq!(runs(5), 1);
        assert!(mirrored(&programs, ProgramKind::Egress, &frame(6, ends()[0], ends()[1], SYN, false)));
        assert_eq!(runs(5), 1, "after a SYN of the client");
        // A tap of one direction sees only this.
        assert!(mirrored(&programs, ProgramKind::Ingress, &frame(6, ends()[1], ends()[0], SYN | ACK, false)));
        assert_eq!(runs(5), 1, "after a SYN-ACK of the server");
    }
}

/// What falls out of the table starts again, and what has frames stays in it.
#[test]
fn a_flow_that_falls_out_of_the_table_starts_again() {
    // As the classifier and the clamp run for a frame.
    let _core = Confined::to(1);
    let programs = load(&with(cutoff(1000)));
    let [pod, other] = ends();
    let flow = |pod: End| long(frame(17, pod, other, 0, false));
    let is_whole =
        |frame: &[u8]| sent(&programs, ProgramKind::Egress, frame).is_some_and(|sent| sent.len() == frame.len());
    let (old, busy) = (flow(End { port: 1, ..pod }), flow(pod));
    assert!(is_whole(&old) && is_whole(&busy));
    let others = |numbers: std::ops::Range<u16>| {
        for port in numbers {
            assert!(is_whole(&flow(End { address: [10, 1, 1, 7], port })));
            assert!(port % 64 != 0 || !is_whole(&busy), "it has frames: {port}");
        }
    };
    // The lists of the kernel are approximate.
    others(0..12_000);
    assert!(!is_whole(&old), "the table has room for 16,384");
    others(12_000..40_000);
    assert!(is_whole(&old));
}

/// Otherwise they would be a way to evade the tap.
#[test]
fn frames_of_an_unknown_flow_are_not_cut_off() {
    let programs = load(&with(cutoff(1)));
    for ipv6 in [false, true] {
        for id in 0..10 {
            let [_, later] = fragments(id, 7000, ipv6);
            assert!(mirrored(&programs, ProgramKind::Egress, &later), "its first fragment was not seen");
        }
    }
}

/// Directions of a flow on two CPUs: neither starts it again, whichever clock is ahead.
#[test]
fn two_cpus_do_not_start_a_flow_again() {
    let programs = load(&with(cutoff(1000)));
    let [pod, other] = ends();
    let (out, back) = (long(frame(17, pod, other, 0, false)), long(frame(17, other, pod, 0, false)));
    let start = Instant::now();
    let counts = thread::scope(|scope| {
        let runs = [(ProgramKind::Egress, &out), (ProgramKind::Ingress, &back)].map(|(kind, frame)| {
            let programs = &programs;
            scope.spawn(move || (0..200_000).filter(|_| mirrored(programs, kind, frame)).count())
        });
        runs.map(|run| run.join().expect("no run panics"))
    });
    let headers = usize::try_from(start.elapsed().as_secs()).expect("few") + 1;
    assert!(counts.iter().all(|count| (1..=1 + headers).contains(count)), "{counts:?}, {headers}");
}
