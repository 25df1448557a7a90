//! Random frames and filters, and the same filters in the languages of tcpdump and tshark.

use std::{net::IpAddr, process::Command};

use podtap_model::{Filter, Instruction, IpNet, Match, PortRange, Protocol};
use podtap_tests::pcap::output;

/// xorshift64: every run with the same seed gets the same frames and filters.
pub struct Random(u64);

impl Random {
    /// Prints the seed. `PODTAP_SEED` sets another one, to repeat a run.
    pub fn new(default: u64) -> Self {
        let seed = std::env::var("PODTAP_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        println!("seed {seed}");
        Self(seed)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits fit") % limit
    }

    pub fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    pub fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// The kinds of frames to generate.
#[derive(Clone, Copy, PartialEq)]
pub struct Kinds {
    /// With VLAN tags and extension headers.
    pub encapsulated: bool,
    /// Truncated at a random length.
    pub truncated: bool,
}

const ADDRESSES: [&str; 8] =
    ["10.1.2.3", "10.1.9.9", "10.200.0.1", "192.168.7.7", "fd00::1", "fd00:0:1::5", "2001:db8::1", "2001:db8:1::1"];
const PORTS: [u16; 8] = [22, 79, 80, 81, 443, 8443, 40_000, 65_535];

/// A random frame. Its headers follow RFC 791, 8200, 9293, 768 and 9260, except for checksums.
pub fn frame(random: &mut Random, kinds: Kinds) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..if kinds.encapsulated { random.below(3) } else { 0 } {
        let tag = random.of(&[[0x81, 0x00, 0x00, 0x05], [0x88, 0xa8, 0x20, 0x06]]);
        frame.extend_from_slice(&tag);
    }
    match random.below(12) {
        0 => {
            frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend_from_slice(&[0; 36]);
        }
        1..=6 => ipv4(random, &mut frame),
        _ => ipv6(random, kinds, &mut frame),
    }
    if kinds.truncated && random.one_in(3) {
        let length = frame.len();
        // Newer kernels reject test runs on frames with an incomplete IP header.
        let least = match frame[12..14] {
            [8, 0] => 34,
            [0x86, 0xdd] => 54,
            _ => 14,
        };
        frame.truncate(least + random.below(length - least));
    }
    frame
}

fn address(random: &mut Random, ipv6: bool) -> Vec<u8> {
    let text = ADDRESSES[random.below(4) + if ipv6 { 4 } else { 0 }];
    match text.parse().expect("an address") {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ipv4(random: &mut Random, frame: &mut Vec<u8>) {
    let (protocol, segment) = transport(random, false);
    let options = random.of(&[0, 0, 4, 40]);
    let length = u16::try_from(20 + options + segment.len()).expect("the frame is short").to_be_bytes();
    frame.extend_from_slice(&[
        8,
        0,
        0x45 + u8::try_from(options / 4).expect("the options are short"),
        0,
        length[0],
        length[1],
    ]);
    // A first fragment contains the ports.
    let fragment = if random.one_in(5) { 0x20 } else { 0x40 };
    frame.extend_from_slice(&[0x12, 0x34, fragment, 0, 64, protocol, 0, 0]);
    frame.extend_from_slice(&address(random, false));
    frame.extend_from_slice(&address(random, false));
    frame.extend_from_slice(&vec![1; options]);
    frame.extend_from_slice(&segment);
}

fn ipv6(random: &mut Random, kinds: Kinds, frame: &mut Vec<u8>) {
    let (mut next, mut payload) = transport(random, true);
    for _ in 0..if kinds.encapsulated { random.below(4) } else { 0 } {
        let (header, mut bytes) = match random.below(4) {
            // Padding, RFC 8200, 4.2
            0 => (60, vec![next, 0, 1, 4, 0, 0, 0, 0]),
            1 => (60, [vec![next, 1, 1, 12], vec![0; 12]].concat()),
            // Routing with no segment left
            2 => (43, vec![next, 0, 253, 0, 0, 0, 0, 0]),
            // Authentication: 4 + 2 words
            _ => (51, [vec![next, 4], vec![0; 22]].concat()),
        };
        bytes.extend_from_slice(&payload);
        (next, payload) = (header, bytes);
    }
    if kinds.encapsulated && random.one_in(3) {
        let bytes = if random.one_in(2) { vec![next, 0, 0, 1, 1, 2, 3, 4] } else { vec![next, 0, 1, 4, 0, 0, 0, 0] };
        next = if bytes[2] == 0 { 44 } else { 0 };
        payload = [bytes, payload].concat();
    }
    let length = u16::try_from(payload.len()).expect("the frame is short").to_be_bytes();
    frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, length[0], length[1], next, 64]);
    frame.extend_from_slice(&address(random, true));
    frame.extend_from_slice(&address(random, true));
    frame.extend_from_slice(&payload);
}

/// The number of a random transport protocol, and a segment of it.
fn transport(random: &mut Random, ipv6: bool) -> (u8, Vec<u8>) {
    let ports = [random.of(&PORTS).to_be_bytes(), random.of(&PORTS).to_be_bytes()].concat();
    match random.below(6) {
        0 | 1 => {
            let flags = random.of(&[0x10, 0x18, 0x02, 0x12, 0x11]);
            (6, [ports, vec![0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0], vec![0; 9]].concat())
        }
        2 | 3 => (17, [ports, vec![0, 12, 0, 0], vec![0; 4]].concat()),
        4 => (132, [ports, vec![0; 8], vec![10, 0, 0, 4]].concat()),
        // Echo
        _ if ipv6 => (58, [vec![128, 0, 0, 0, 0, 1, 0, 1], vec![0; 8]].concat()),
        _ => (1, [vec![8, 0, 0, 0, 0, 1, 0, 1], vec![0; 8]].concat()),
    }
}

/// A random filter; with `one`, a single rule.
pub fn filter(random: &mut Random, one: bool) -> Filter {
    let mut rules = |limit| (0..random.below(limit)).map(|_| rule(random)).collect::<Vec<_>>();
    let (mut include, mut exclude) = (rules(4), rules(3));
    if one {
        // With several ranges, tcpdump rejects the frame at the first port beyond its end, even if another range would match.
        let mut rule = rule(random);
        rule.ports.truncate(1);
        (include, exclude) = (vec![rule], vec![]);
    }
    Filter { include, exclude, expression: None }
}

fn rule(random: &mut Random) -> Match {
    use Protocol::{Icmp, Icmpv6, Sctp, Tcp, Udp};
    let protocol = random.of(&[None, Some(Tcp), Some(Udp), Some(Sctp), Some(Tcp), Some(Icmp), Some(Icmpv6)]);
    let port = |random: &mut Random| PortRange { port: random.of(&PORTS), end_port: Some(random.of(&PORTS)) };
    let mut ports: Vec<_> = (0..random.of(&[0, 1, 2])).map(|_| port(random)).collect();
    for range in &mut ports {
        let (first, last) = (range.port, range.last());
        *range = PortRange { port: first.min(last), end_port: Some(first.max(last)).filter(|_| !random.one_in(2)) };
    }
    let cidrs = (0..random.of(&[0, 0, 1, 2]))
        .map(|_| {
            let address: IpAddr = random.of(&ADDRESSES).parse().expect("an address");
            let prefixes: &[u8] = if address.is_ipv6() { &[0, 1, 16, 47, 48, 64, 128] } else { &[0, 1, 8, 15, 24, 32] };
            IpNet::new(address, random.of(prefixes)).expect("a prefix of the family")
        })
        .collect();
    Match { protocol, ports, cidrs }
}

/// The syntax of a filter language.
pub struct Language {
    protocol: fn(Protocol) -> &'static str,
    ports: fn(u16, u16) -> String,
    network: fn(&IpNet, &str) -> String,
    everything: &'static str,
}

/// pcap-filter(7). `net` allows no host bits.
pub const PCAP: Language = Language {
    protocol: name,
    ports: |first, last| format!("portrange {first}-{last}"),
    network: |network, side| {
        let family = if network.addr().is_ipv6() { "ip6" } else { "ip" };
        format!("{family} {side} net {}/{}", network.network(), network.prefix_len())
    },
    everything: "greater 1",
};

/// Wireshark's display filters.
pub const DISPLAY: Language = Language {
    protocol: |protocol| if protocol == Protocol::Icmpv6 { "icmpv6" } else { name(protocol) },
    ports: |first, last| {
        let of = |protocol| format!("{protocol}.port in {{{first}..{last}}}");
        format!("({} or {} or {})", of("tcp"), of("udp"), of("sctp"))
    },
    network: |network, side| {
        let family = if network.addr().is_ipv6() { "ipv6" } else { "ip" };
        // Wireshark does not accept a prefix of length 0.
        match network.prefix_len() {
            0 => family.to_owned(),
            prefix => format!("{family}.{side} == {}/{prefix}", network.addr()),
        }
    },
    everything: "frame",
};

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
        Protocol::Icmp => "icmp",
        Protocol::Icmpv6 => "icmp6",
    }
}

impl Language {
    /// Writes a filter, with `src` or `dst` for the remote side.
    pub fn write(&self, filter: &Filter, side: &str) -> String {
        let any = |parts: Vec<String>| format!("({})", parts.join(" or "));
        let rule = |rule: &Match| {
            let mut parts = vec![self.everything.to_owned()];
            parts.extend(rule.protocol.map(|protocol| (self.protocol)(protocol).to_owned()));
            if !rule.ports.is_empty() {
                parts.push(any(rule.ports.iter().map(|range| (self.ports)(range.port, range.last())).collect()));
            }
            if !rule.cidrs.is_empty() {
                parts.push(any(rule.cidrs.iter().map(|network| (self.network)(network, side)).collect()));
            }
            format!("({})", parts.join(" and "))
        };
        let mut parts = vec![self.everything.to_owned()];
        if !filter.include.is_empty() {
            parts.push(any(filter.include.iter().map(rule).collect()));
        }
        parts.extend(filter.exclude.iter().map(|exclude| format!("not {}", rule(exclude))));
        parts.join(" and ")
    }
}

/// Compiles an expression for Ethernet with libpcap.
pub fn compile(expression: &str) -> Vec<Instruction> {
    let text = output(Command::new("tcpdump").args(["-y", "EN10MB", "-ddd", expression]));
    let text = String::from_utf8(text).expect("the output is text");
    let line = |line: &str| {
        let words: Vec<u32> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
        let byte = |word: u32| u8::try_from(word).expect("a byte");
        let code = u16::try_from(words[0]).expect("16 bits");
        Instruction { code, jt: byte(words[1]), jf: byte(words[2]), k: words[3] }
    };
    text.lines().skip(1).map(line).collect()
}
