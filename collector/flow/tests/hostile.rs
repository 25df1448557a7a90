//! Whatever arrives: no input makes the parsers or the table panic, nor the table grow beyond its limits.
//!
//! Each test takes 200,000 inputs, or `PODTAP_FUZZ` of them: frames, what taps tell, DNS messages and TLS streams that are valid, and
//! changed at random places. `PODTAP_FUZZ_SEED` repeats a run.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use podtap_flow::{
    Event, Limits, Table, Timestamp, Waiting, dns,
    map::{Bounds, Map},
    metadata::{Metadata, MetadataFrame, PodMetadata, Translation, Tuple},
    named::NamedRecord,
    names::{Names, Update},
    packet, tls,
};

/// Numbers that follow from a seed: xorshift64* (Marsaglia 2003, Vigna 2016).
struct Random(u64);

impl Random {
    /// Prints the seed, which a failure shows.
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        let seed = env::var("PODTAP_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::try_from(now.as_micros()).expect("64 bits")).max(1);
        println!("PODTAP_FUZZ_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).expect("32 bits") % end
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// Changes some bytes, and sometimes the length.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(8) {
            if !bytes.is_empty() {
                let at = self.below(bytes.len());
                // Lengths and counts break at their ends.
                bytes[at] = [self.byte(), 0, 1, 0x7f, 0x80, 0xc0, 0xff][self.below(7)];
            }
        }
        match self.below(8) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 => {
                for _ in 0..self.below(64) {
                    let byte = self.byte();
                    bytes.push(byte);
                }
            }
            _ => {}
        }
    }
}

fn inputs() -> usize {
    env::var("PODTAP_FUZZ").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000)
}

/// An answer with a CNAME and two addresses, by compressed names.
const ANSWER: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x03\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01\
    \xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x06\x03web\xc0\x10\xc0\x2d\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01\
    \xc0\x2d\0\x1c\0\x01\0\0\0\x3c\0\x10\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01";

/// A TLS record with a `ClientHello` that has a server name.
fn hello() -> Vec<u8> {
    let name = b"www.example.com";
    let mut list = vec![0, 0, u8::try_from(name.len()).expect("short")];
    list.extend(name);
    let mut server_name = vec![0, 0];
    server_name.extend(u16::try_from(list.len() + 2).expect("short").to_be_bytes());
    server_name.extend(u16::try_from(list.len()).expect("short").to_be_bytes());
    server_name.extend(&list);
    let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
    extensions.extend(&server_name);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(u16::try_from(extensions.len()).expect("short").to_be_bytes());
    body.extend(&extensions);
    let mut handshake = vec![1, 0];
    handshake.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
    handshake.extend(&body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(handshake.len()).expect("short").to_be_bytes());
    record.extend(&handshake);
    record
}

/// Ethernet, IPv4 or IPv6, and TCP, UDP, ICMP or SCTP, between some of 64 addresses.
fn frame(random: &mut Random) -> Vec<u8> {
    let protocol = [6, 6, 6, 17, 17, 1, 132][random.below(7)];
    let (client, server) =
        (u8::try_from(random.below(64)).expect("small"), u8::try_from(random.below(64)).expect("small"));
    let ports = [[0x9c, client], [0, [53, 80][random.below(2)]]];
    let ports = if random.below(2) == 0 { [ports[0], ports[1]] } else { [ports[1], ports[0]] };
    let payload = match random.below(4) {
        0 => ANSWER.to_vec(),
        1 => hello(),
        _ => vec![b'x'; random.below(100)],
    };
    let mut transport = ports.concat();
    match protocol {
        6 => {
            transport.extend(u32::try_from(random.next()).expect("32 bits").to_be_bytes());
            transport.extend(u32::try_from(random.next()).expect("32 bits").to_be_bytes());
            transport.extend([0x50, [2, 0x12, 0x10, 0x18, 0x11, 4][random.below(6)], 0xff, 0xff, 0, 0, 0, 0]);
        }
        17 => transport.extend([u16::try_from(payload.len() + 8).expect("short").to_be_bytes(), [0, 0]].concat()),
        1 => transport = vec![[0, 3, 8, 11][random.below(4)], 0, 0, 0, 0, 0, 0, 0],
        _ => transport.extend([0; 8]),
    }
    transport.extend(&payload);
    let mut frame = vec![2, 0, 0, 0, 0, server, 2, 0, 0, 0, 0, client];
    if random.below(2) == 0 {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(u16::try_from(transport.len() + 20).expect("short").to_be_bytes());
        let fragment = if random.below(8) == 0 { [0x20, 0] } else { [0, 0] };
        frame.extend([random.byte(), random.byte(), fragment[0], fragment[1], 64, protocol, 0, 0]);
        frame.extend([10, 0, 0, client, 10, 0, 0, server]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(u16::try_from(transport.len()).expect("short").to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend(
            [
                [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, client],
                [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, server],
            ]
            .concat(),
        );
    }
    frame.extend(transport);
    frame
}

/// The EtherType of probes.
const ETHER_TYPE: u16 = 0x88b5;

/// What a tap tells, of addresses and ports as those of [`frame`].
fn metadata(random: &mut Random) -> Vec<u8> {
    let is_ipv4 = random.below(2) == 0;
    let mut end = |is_client: bool| {
        let last = u8::try_from(random.below(64)).expect("small");
        let address: IpAddr = if is_ipv4 {
            Ipv4Addr::new(10, 0, 0, last).into()
        } else {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into()
        };
        (address, if is_client { 0x9c00 + u16::from(last) } else { [53, 80][random.below(2)] })
    };
    let tuple = |from: (IpAddr, u16), to: (IpAddr, u16)| Tuple {
        source: from.0,
        source_port: from.1,
        destination: to.0,
        destination_port: to.1,
    };
    let (client, server, pod) = (end(true), end(false), end(false));
    let client_after = if random.below(4) == 0 { (pod.0, client.1) } else { client };
    let metadata = if random.below(4) == 0 {
        Metadata::Pod(PodMetadata {
            namespace: "shop".into(),
            name: format!("web-{}", random.below(8)),
            addresses: [client.0, server.0].into(),
            mac: "02:00:00:00:00:01".into(),
            ..PodMetadata::default()
        })
    } else {
        Metadata::Translation(Translation {
            protocol: [6, 17, 132][random.below(3)],
            original: tuple(client, server),
            reply: tuple(pod, client_after),
            zone: 0,
        })
    };
    let uid = |text: String| text.parse().expect("a UID");
    let frame = MetadataFrame { tap: uid("tap".into()), pod: uid(format!("pod-{}", random.below(64))), metadata };
    frame.encode([2, 0, 0, 0, 0, 1], ETHER_TYPE).expect("it is not too long")
}

#[test]
fn frames() {
    let mut random = Random::new();
    let limits = Limits {
        flows: 1000,
        beginnings: 1 << 16,
        names: 100,
        handshakes: 100,
        translations: 1000,
        fragments: 16,
        ..Limits::default()
    };
    let mut table = Table::new(limits);
    let mut map = Map::new(Bounds { edges: 100, details: 4, ..Bounds::default() });
    let mut names = Names::default();
    let mut waiting = Waiting::new(Duration::from_secs(1), 10);
    let mut now = 0;
    let (mut parsed, mut told, mut identified, mut translated, mut records) = (0, 0, 0, 0, 0);
    for _ in 0..inputs() {
        let is_metadata = random.below(5) == 0;
        let mut bytes = if is_metadata { metadata(&mut random) } else { frame(&mut random) };
        random.damage(&mut bytes);
        // Time may go back, and stand still.
        now = (now + random.next() % 20_000_000).saturating_sub(random.next() % 1_000_000);
        let at = Timestamp(now);
        if is_metadata {
            match MetadataFrame::decode(&bytes, ETHER_TYPE) {
                Some(MetadataFrame { metadata: Metadata::Translation(translation), .. }) => {
                    told += usize::from(table.translate(0, at, &translation));
                }
                Some(MetadataFrame { metadata: Metadata::Pod(metadata), pod, .. }) => {
                    identified += usize::from(names.identify(&pod, &metadata, at));
                }
                None => {}
            }
            continue;
        }
        let mut count = |event: Event| {
            records += 1;
            let (Event::Opened(record) | Event::Record(record)) = &event;
            translated += usize::from(record.translated.is_some());
            match event {
                Event::Opened(record) => map.open(&NamedRecord::new(&record, &names)),
                Event::Record(record) => map.record(&NamedRecord::new(&record, &names)),
            }
        };
        let length = u32::try_from(bytes.len() + random.below(2000)).expect("short");
        if let Some(packet) = packet::parse(&bytes, length) {
            parsed += 1;
            table.observe(0, at, &packet, &mut |event| waiting.add(event, &names, at, &mut count));
        }
        if random.below(100) == 0 {
            table.expire(at, &mut |event| waiting.add(event, &names, at, &mut count));
            waiting.expire(&names, at, &mut count);
            names.expire(at);
        }
        assert!(table.len() <= 1000 && map.len() <= 120 && waiting.len() <= 10);
    }
    assert!(
        parsed > inputs() / 4 && told > inputs() / 50 && identified > 100 && records > 100 && translated > 100,
        "{parsed} were parsed, of {records} flows, {translated} of them translated by {told}, and {identified} pods: this tests nothing"
    );
}

#[test]
fn dns_messages() {
    let mut random = Random::new();
    assert!(dns::parse(ANSWER).is_some(), "it is valid until it is damaged");
    let parsed = (0..inputs()).filter(|_| {
        let mut bytes = ANSWER.to_vec();
        random.damage(&mut bytes);
        dns::parse(&bytes).is_some()
    });
    assert!(parsed.count() > inputs() / 20);
}

#[test]
fn tls_streams() {
    let mut random = Random::new();
    let hello = hello();
    assert!(matches!(tls::server_name(&hello), tls::Hello::Name(_)), "it is valid until it is damaged");
    let named = (0..inputs()).filter(|_| {
        let mut bytes = hello.clone();
        random.damage(&mut bytes);
        matches!(tls::server_name(&bytes), tls::Hello::Name(_))
    });
    assert!(named.count() > inputs() / 20);
}

#[test]
fn names() {
    let mut random = Random::new();
    let line = br#"{"pod":{"namespace":"shop","name":"web","uid":"1","addresses":["10.0.0.1","fd00::1"],"workload":{"kind":"Pod","name":"web"}}}"#;
    let mut names = Names::default();
    let applied = (0..inputs()).filter(|_| {
        let mut bytes = line.to_vec();
        random.damage(&mut bytes);
        let update: Option<Update> = serde_json::from_slice(&bytes).ok();
        update.is_some_and(|update| {
            names.apply(update, Timestamp(1));
            true
        })
    });
    assert!(applied.count() > inputs() / 20);
}
