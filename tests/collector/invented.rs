//! A cluster that exists only in a capture file and a file of names.

use std::{
    collections::BTreeSet,
    env, fs,
    net::Ipv4Addr,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use podtap_tests::shop::CALLS;
use serde_json::{Value, json};

use podtap_tests::frames::{ACK, End, FIN, SYN};

/// 2026-01-01 10:00:00 UTC, in microseconds.
const START: u64 = 1_767_261_600_000_000;
const SERVICE_PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;
/// Payload in a frame at most.
const SEGMENT: u64 = 60_000;

const RST: u8 = 4;

/// Who is in it, and what was captured.
pub struct Cluster {
    names: Value,
    workloads: Vec<Party>,
    frames: Vec<(u64, u32, Vec<u8>)>,
    now: u64,
    connections: u32,
    datagrams: u16,
    /// What was called: names of clients and servers.
    pub calls: BTreeSet<(String, String)>,
}

/// Someone who calls or is called.
#[derive(Clone, Debug)]
pub struct Party {
    pub name: String,
    pub address: Ipv4Addr,
    /// The address of its service.
    service: Option<Ipv4Addr>,
}

/// A TCP connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub sent: u64,
    pub received: u64,
    /// In microseconds.
    pub handshake: u64,
}

impl Cluster {
    pub fn new() -> Self {
        let names = json!({"pods": [], "services": [], "nodes": [], "networks": []});
        Self {
            names,
            workloads: Vec::new(),
            frames: Vec::new(),
            now: START,
            connections: 0,
            datagrams: 0,
            calls: BTreeSet::new(),
        }
    }

    fn list(&mut self, kind: &str) -> &mut Vec<Value> {
        self.names[kind].as_array_mut().expect("a list")
    }

    /// A Deployment with a pod and a Service.
    pub fn workload(&mut self, namespace: &str, name: &str) -> Party {
        let number = u32::try_from(self.list("pods").len()).expect("few");
        let [address, service] =
            [10 << 24 | 1 << 16, 10 << 24 | 96 << 16].map(|net| Ipv4Addr::from(net + 256 + number));
        self.list("pods")
            .push(json!({"namespace": namespace, "name": format!("{name}-{number}"), "uid": number.to_string(),
            "addresses": [address], "node": "n1", "workload": {"kind": "Deployment", "name": name}}));
        self.list("services").push(json!({"namespace": namespace, "name": name, "addresses": [service],
            "ports": [{"port": SERVICE_PORT, "targetPort": TARGET_PORT}, {"port": 53, "protocol": "UDP", "targetPort": 53}],
            "backends": [{"address": address}]}));
        let party = Party { name: name.to_owned(), address, service: Some(service) };
        self.workloads.push(party.clone());
        party
    }

    pub fn node(&mut self, name: &str) -> Party {
        let address = Ipv4Addr::new(192, 168, 0, u8::try_from(1 + self.list("nodes").len()).expect("few"));
        self.list("nodes").push(json!({"name": name, "addresses": [address]}));
        Party { name: name.to_owned(), address, service: None }
    }

    /// Something outside of the cluster, in a network with a name.
    pub fn external(&mut self, name: &str) -> Party {
        let address = Ipv4Addr::new(203, 0, 113, u8::try_from(1 + self.list("networks").len()).expect("few"));
        self.list("networks").push(json!([format!("{address}/32"), name]));
        Party { name: name.to_owned(), address, service: None }
    }

    /// A workload by its name.
    pub fn party(&self, name: &str) -> Party {
        self.workloads.iter().find(|party| party.name == name).unwrap_or_else(|| panic!("there is no {name}")).clone()
    }

    fn called(&mut self, client: &Party, server: &Party) {
        self.calls.insert((client.name.clone(), server.name.clone()));
    }

    /// A connection to the server's service, or without one to its own address.
    pub fn call(&mut self, client: &Party, server: &Party, connection: Connection) {
        self.called(client, server);
        let to = server.service.map_or((server.address, 443), |service| (service, SERVICE_PORT));
        self.connect(client.address, to, connection);
    }

    /// A connection to the server's own address, as probes and monitoring make them.
    pub fn probe(&mut self, client: &Party, server: &Party) {
        self.called(client, server);
        self.connect(
            client.address,
            (server.address, TARGET_PORT),
            Connection { sent: 120, received: 900, handshake: 200 },
        );
    }

    fn connect(&mut self, client: Ipv4Addr, (server, port): End, connection: Connection) {
        let (from, [mine, theirs]) = self.open();
        let (client, server) = ((client, from), (server, port));
        let half = connection.handshake / 2;
        self.segment(client, server, SYN, (mine, 0), 0);
        self.now += half;
        self.segment(server, client, SYN | ACK, (theirs, mine + 1), 0);
        self.now += connection.handshake - half;
        self.segment(client, server, ACK, (mine + 1, theirs + 1), 0);
        let (mine, theirs) = (mine + 1, theirs + 1);
        let sent = self.stream(client, server, (mine, theirs), connection.sent);
        let received = self.stream(server, client, (theirs, sent), connection.received);
        self.segment(client, server, FIN | ACK, (sent, received), 0);
        self.segment(server, client, FIN | ACK, (received, sent + 1), 0);
        self.segment(client, server, ACK, (sent + 1, received + 1), 0);
    }

    /// The server has no such port.
    pub fn refused(&mut self, client: &Party, server: &Party) {
        self.called(client, server);
        let (from, [mine, _]) = self.open();
        let to = (server.service.unwrap_or(server.address), SERVICE_PORT);
        self.segment((client.address, from), to, SYN, (mine, 0), 0);
        self.segment(to, (client.address, from), RST | ACK, (0, mine + 1), 0);
    }

    /// A port of the client, and both initial sequence numbers, which no other connection has.
    fn open(&mut self) -> (u16, [u32; 2]) {
        self.connections += 1;
        self.now += 1000;
        let port = u16::try_from(20_000 + self.connections % 40_000).expect("16 bits");
        (port, [self.connections << 8, self.connections << 8 | 1 << 30])
    }

    fn stream(&mut self, from: End, to: End, (mut at, ack): (u32, u32), bytes: u64) -> u32 {
        let mut left = bytes;
        while left > 0 {
            let length = left.min(SEGMENT);
            self.segment(from, to, ACK, (at, ack), u16::try_from(length).expect("16 bits"));
            at = at.wrapping_add(u32::try_from(length).expect("short"));
            left -= length;
        }
        at
    }

    fn segment(&mut self, from: End, to: End, flags: u8, (at, ack): (u32, u32), payload: u16) {
        let mut header =
            [&from.1.to_be_bytes()[..], &to.1.to_be_bytes(), &at.to_be_bytes(), &ack.to_be_bytes()].concat();
        header.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self.packet(from.0, to.0, 6, &header, payload);
    }

    /// A question of a client to a DNS server, and its answer.
    pub fn lookup(&mut self, client: &Party, server: &Party, name: &str, address: Ipv4Addr) {
        self.called(client, server);
        let (from, _) = self.open();
        let mut question = Vec::new();
        for label in name.split('.') {
            question.push(u8::try_from(label.len()).expect("short"));
            question.extend_from_slice(label.as_bytes());
        }
        question.extend([0, 0, 1, 0, 1]);
        let message = |flags: u16, answers: u16, answer: &[u8]| {
            let words = [7, flags, 1, answers, 0, 0].map(u16::to_be_bytes).concat();
            [&words, &question[..], answer].concat()
        };
        let answer = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4][..], &address.octets()].concat();
        let to = (server.service.unwrap_or(server.address), 53);
        self.datagram((client.address, from), to, &message(0x0100, 0, &[]));
        self.now += 400;
        self.datagram(to, (client.address, from), &message(0x8180, 1, &answer));
    }

    fn datagram(&mut self, from: End, to: End, payload: &[u8]) {
        let length = u16::try_from(8 + payload.len()).expect("short").to_be_bytes();
        let header = [&from.1.to_be_bytes()[..], &to.1.to_be_bytes(), &length, &[0, 0], payload].concat();
        self.packet(from.0, to.0, 17, &header, 0);
    }

    /// A frame whose last bytes are cut off.
    fn packet(&mut self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, rest: &[u8], cut_off: u16) {
        self.datagrams = self.datagrams.wrapping_add(1);
        let length = u16::try_from(20 + rest.len()).expect("short") + cut_off;
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
        frame.extend(length.to_be_bytes());
        frame.extend(self.datagrams.to_be_bytes());
        frame.extend([0, 0, 64, protocol, 0, 0]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend_from_slice(rest);
        self.now += 50;
        self.frames.push((self.now, 14 + u32::from(length), frame));
    }

    /// The bytes of each frame that were captured.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(|(.., frame)| &**frame)
    }

    pub fn write(&self) -> Files {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("podtap-invented-{}-{number}", process::id()));
        fs::create_dir_all(&directory).expect("it can be made");
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 1 << 18, 1_u32] {
            file.extend(word.to_le_bytes());
        }
        for (at, length, frame) in &self.frames {
            let [seconds, fraction] =
                [at / 1_000_000, at % 1_000_000].map(|part| u32::try_from(part).expect("32 bits"));
            for word in [seconds, fraction, u32::try_from(frame.len()).expect("short"), *length] {
                file.extend(word.to_le_bytes());
            }
            file.extend_from_slice(frame);
        }
        let files = Files { directory };
        fs::write(files.frames(), file).expect("it can be written");
        fs::write(files.names(), self.names.to_string()).expect("it can be written");
        files
    }
}

/// Its files, deleted when dropped.
pub struct Files {
    directory: PathBuf,
}

impl Files {
    pub fn frames(&self) -> PathBuf {
        self.directory.join("frames.pcap")
    }

    pub fn names(&self) -> PathBuf {
        self.directory.join("names.json")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A shop with 16 calls between 12 workloads, two external peers, a DNS server, a node that probes, and Prometheus.
pub fn shop() -> Cluster {
    let mut cluster = Cluster::new();
    let names: BTreeSet<&str> = CALLS.iter().flat_map(|(client, server)| [*client, *server]).collect();
    let workloads: Vec<Party> = names.iter().map(|name| cluster.workload("boutique", name)).collect();
    let dns = cluster.workload("kube-system", "coredns");
    let prometheus = cluster.workload("monitoring", "prometheus");
    let node = cluster.node("n1");
    let externals = ["payments.example.com", "mail.example.net"].map(|name| cluster.external(name));
    for (number, (client, server)) in (1..).zip(CALLS) {
        let [client, server] = [client, server].map(|name| cluster.party(name));
        let service = server.service.expect("it has one");
        cluster.lookup(&client, &dns, &format!("{}.boutique", server.name), service);
        for repeated in 0..=number % 4 {
            let connection = Connection {
                sent: 300 * number,
                received: 1000 * number * number * (1 + repeated),
                handshake: 150 + 40 * number,
            };
            cluster.call(&client, &server, connection);
        }
    }
    let [checkout, email] = ["checkoutservice", "emailservice"].map(|name| cluster.party(name));
    for _ in 0..3 {
        cluster.refused(&checkout, &email);
    }
    for workload in &workloads {
        cluster.probe(&node, workload);
        cluster.probe(&prometheus, workload);
    }
    for (client, server) in ["paymentservice", "emailservice"].into_iter().zip(&externals) {
        let client = cluster.party(client);
        cluster.lookup(&client, &dns, &server.name, server.address);
        cluster.call(&client, server, Connection { sent: 5000, received: 20_000, handshake: 21_000 });
    }
    cluster
}
