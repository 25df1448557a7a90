//! What the kernel passes on to a program that does not keep up: a classic BPF program (`Documentation/networking/filter.rst`).
//!
//! It passes what begins and ends connections, what names their ends, and what taps tell: TCP segments with SYN, FIN or RST, TCP and UDP
//! of port 53, ICMP messages that a destination is unreachable, and frames of the taps' EtherType. IPv4, IPv6 with up to three extension
//! headers (hop-by-hop, routing, destination, fragment), below up to two VLAN tags; of fragments, the first one. What it cannot parse is
//! left out: frames that anyone can make must not get past it.

use nix::libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD,
    BPF_LDX, BPF_LSH, BPF_MEM, BPF_MISC, BPF_RET, BPF_ST, BPF_TAX, BPF_TXA, BPF_W, BPF_X, SKF_AD_OFF, SKF_AD_RANDOM,
};
use podtap_flow::{
    dns, packet,
    packet::{DESTINATION, FRAGMENT, HOP_BY_HOP, IPV4, IPV6, ROUTING, VLAN},
};
use socket2::SockFilter;

/// VLAN tags in a frame. Of one at a packet socket, the kernel has taken the outermost one out, and these are the ones behind that.
const TAGS: u32 = 2;
/// Extension headers whose length is in units of 8 bytes.
const OPTIONS: [u8; 3] = [HOP_BY_HOP, ROUTING, DESTINATION];
const EXTENSIONS: u32 = 3;
/// Destination unreachable, of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const UNREACHABLE: u32 = 3;
const UNREACHABLE_V6: u32 = 1;

/// Of so many frames that are left out, one is passed on as a sample.
pub const SAMPLED: u32 = 64;
/// Bytes of a sample: no frame is so short.
pub const SAMPLE_LENGTH: u32 = 1;
/// The whole frame.
const WHOLE: u32 = u32::MAX;

/// How frames that are left out are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// Nothing: the kernel counts them.
    Counted,
    /// One of [`SAMPLED`] is truncated to [`SAMPLE_LENGTH`], which tells how many they are: a packet socket does not count them.
    Sampled,
}

/// Where a jump leads. All jumps lead forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    /// The next instruction.
    Next,
    /// Behind so many VLAN tags.
    Tag(u32),
    EtherType,
    Ipv4,
    Ipv6,
    /// The length of the extension header with this number is in units of 8 bytes.
    Options(u32),
    Fragment(u32),
    /// The header behind it.
    Behind(u32),
    Transport,
    Tcp,
    Ports,
    Icmp,
    Icmpv6,
    Pass,
    LeaveOut,
    Drop,
}

/// Instructions whose jumps are still to be resolved.
#[derive(Default)]
struct Program {
    code: Vec<(u32, u32, [Label; 2])>,
    labels: Vec<(Label, usize)>,
}

impl Program {
    fn label(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    fn add(&mut self, operations: &[(u32, u32)]) {
        self.code.extend(operations.iter().map(|(operation, value)| (*operation, *value, [Label::Next; 2])));
    }

    /// Compares the accumulator.
    fn jump(&mut self, condition: u32, value: u32, then: Label, otherwise: Label) {
        self.code.push((BPF_JMP | condition | BPF_K, value, [then, otherwise]));
    }

    fn go_to(&mut self, label: Label) {
        self.jump(BPF_JEQ, 0, label, label);
    }

    /// Chooses by the accumulator.
    fn switch(&mut self, cases: &[(u32, Label)], otherwise: Label) {
        for (number, (value, label)) in cases.iter().enumerate() {
            let is_last = number + 1 == cases.len();
            self.jump(BPF_JEQ, *value, *label, if is_last { otherwise } else { Label::Next });
        }
    }

    fn resolve(&self) -> Vec<SockFilter> {
        let distance = |at: usize, label: Label| {
            let target = self.labels.iter().find(|(name, _)| *name == label).map_or(at + 1, |(_, target)| *target);
            u8::try_from(target - at - 1).unwrap_or(u8::MAX)
        };
        let resolved = self.code.iter().enumerate().map(|(at, (operation, value, [then, otherwise]))| {
            let operation = u16::try_from(*operation).unwrap_or(u16::MAX);
            SockFilter::new(operation, distance(at, *then), distance(at, *otherwise), *value)
        });
        resolved.collect()
    }
}

// X is the offset of the header that is parsed, less the length of an Ethernet header.
const BYTE: u32 = BPF_LD | BPF_B | BPF_IND;
const HALF: u32 = BPF_LD | BPF_H | BPF_IND;
const SET_X: u32 = BPF_LDX | BPF_W | BPF_IMM;
const ADD: u32 = BPF_ALU | BPF_ADD | BPF_K;
const ADD_X: (u32, u32) = (BPF_ALU | BPF_ADD | BPF_X, 0);
const TO_X: (u32, u32) = (BPF_MISC | BPF_TAX, 0);
const FROM_X: (u32, u32) = (BPF_MISC | BPF_TXA, 0);
/// The IP protocol, or the next header.
const KEEP_PROTOCOL: (u32, u32) = (BPF_ST, 0);
const PROTOCOL: (u32, u32) = (BPF_LD | BPF_W | BPF_MEM, 0);
const RETURN: u32 = BPF_RET | BPF_K;
/// Length of an Ethernet header.
const HEADER: u32 = 14;

/// The program for a socket whose data has the Ethernet header at `start`. `ether_type`: that of the taps' probes and metadata.
pub fn program(start: u32, ether_type: u16, left_out: LeftOut) -> Vec<SockFilter> {
    let mut program = Program::default();
    ethernet(&mut program, start, ether_type);
    ipv4(&mut program);
    ipv6(&mut program);
    transport(&mut program);
    program.label(Label::Pass);
    program.add(&[(RETURN, WHOLE)]);
    program.label(Label::LeaveOut);
    if left_out == LeftOut::Sampled {
        let random = (SKF_AD_OFF + SKF_AD_RANDOM).cast_unsigned();
        program.add(&[(BPF_LD | BPF_W | BPF_ABS, random)]);
        program.jump(BPF_JSET, SAMPLED - 1, Label::Drop, Label::Next);
        program.add(&[(RETURN, SAMPLE_LENGTH)]);
    }
    program.label(Label::Drop);
    program.add(&[(RETURN, 0)]);
    program.resolve()
}

fn ethernet(program: &mut Program, start: u32, ether_type: u16) {
    program.add(&[(SET_X, start), (HALF, 12)]);
    program.jump(BPF_JEQ, ether_type.into(), Label::Pass, Label::Next);
    for tag in 1..=TAGS {
        program.switch(&VLAN.map(|vlan| (vlan.into(), Label::Tag(tag))), Label::EtherType);
        program.label(Label::Tag(tag));
        program.add(&[(SET_X, start + 4 * tag), (HALF, 12)]);
    }
    program.label(Label::EtherType);
    program.switch(&[(IPV4.into(), Label::Ipv4), (IPV6.into(), Label::Ipv6)], Label::LeaveOut);
}

fn ipv4(program: &mut Program) {
    program.label(Label::Ipv4);
    program.add(&[(HALF, HEADER + 6)]);
    // The offset of a fragment.
    program.jump(BPF_JSET, 0x1fff, Label::LeaveOut, Label::Next);
    program.add(&[(BYTE, HEADER + 9), KEEP_PROTOCOL]);
    // Its length, in units of 4 bytes.
    program.add(&[(BYTE, HEADER), (BPF_ALU | BPF_AND | BPF_K, 0xf), (BPF_ALU | BPF_LSH | BPF_K, 2)]);
    program.add(&[ADD_X, TO_X, PROTOCOL]);
    program.go_to(Label::Transport);
}

fn ipv6(program: &mut Program) {
    program.label(Label::Ipv6);
    program.add(&[(BYTE, HEADER + 6), KEEP_PROTOCOL, FROM_X, (ADD, 40), TO_X]);
    for number in 0..EXTENSIONS {
        program.add(&[PROTOCOL]);
        let options = OPTIONS.map(|kind| (kind.into(), Label::Options(number)));
        program.jump(BPF_JEQ, FRAGMENT.into(), Label::Fragment(number), Label::Next);
        program.switch(&options, Label::Transport);
        program.label(Label::Fragment(number));
        program.add(&[(HALF, HEADER + 2)]);
        // Its offset.
        program.jump(BPF_JSET, 0xfff8, Label::LeaveOut, Label::Next);
        program.add(&[(BYTE, HEADER), KEEP_PROTOCOL, FROM_X, (ADD, 8), TO_X]);
        program.go_to(Label::Behind(number));
        program.label(Label::Options(number));
        program.add(&[(BYTE, HEADER), KEEP_PROTOCOL, (BYTE, HEADER + 1), (ADD, 1), (BPF_ALU | BPF_LSH | BPF_K, 3)]);
        program.add(&[ADD_X, TO_X]);
        program.label(Label::Behind(number));
    }
    program.add(&[PROTOCOL]);
}

/// The protocol is in the accumulator.
fn transport(program: &mut Program) {
    program.label(Label::Transport);
    let protocols = [
        (packet::TCP, Label::Tcp),
        (packet::UDP, Label::Ports),
        (packet::ICMP, Label::Icmp),
        (packet::ICMPV6, Label::Icmpv6),
    ];
    program.switch(&protocols.map(|(protocol, label)| (protocol.into(), label)), Label::LeaveOut);
    program.label(Label::Tcp);
    program.add(&[(BYTE, HEADER + 13)]);
    let flags = packet::Flags::SYN | packet::Flags::FIN | packet::Flags::RST;
    program.jump(BPF_JSET, flags.into(), Label::Pass, Label::Ports);
    program.label(Label::Ports);
    let port = dns::PORT.into();
    program.add(&[(HALF, HEADER)]);
    program.jump(BPF_JEQ, port, Label::Pass, Label::Next);
    program.add(&[(HALF, HEADER + 2)]);
    program.jump(BPF_JEQ, port, Label::Pass, Label::LeaveOut);
    for (label, unreachable) in [(Label::Icmp, UNREACHABLE), (Label::Icmpv6, UNREACHABLE_V6)] {
        program.label(label);
        program.add(&[(BYTE, HEADER)]);
        program.jump(BPF_JEQ, unreachable, Label::Pass, Label::LeaveOut);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use etherparse::{PacketBuilder, VlanId};
    use socket2::SockRef;

    use super::*;

    const ETHER_TYPE: u16 = 0x88b5;

    /// A socket of this kernel with the program, and one that sends to it.
    struct Filtered(UnixDatagram, UnixDatagram);

    impl Filtered {
        fn new(start: u32, left_out: LeftOut) -> Self {
            let (from, to) = UnixDatagram::pair().expect("sockets");
            SockRef::from(&to).attach_filter(&program(start, ETHER_TYPE, left_out)).expect("the kernel accepts it");
            to.set_nonblocking(true).expect("it can be set");
            Self(from, to)
        }

        /// How many bytes it passes of what is sent.
        fn passes(&self, bytes: &[u8]) -> usize {
            self.0.send(bytes).expect("it can be sent");
            self.1.recv(&mut [0; 4096]).unwrap_or_default()
        }
    }

    fn vlan(id: u16) -> VlanId {
        VlanId::try_new(id).expect("a valid ID")
    }

    /// Frames with this transport header and what follows: below each kind of header, and whether that is one that is parsed.
    fn below(protocol: u8, transport: &[u8]) -> Vec<(String, bool, Vec<u8>)> {
        let written = |builder: etherparse::PacketBuilderStep<etherparse::IpHeaders>| {
            let mut frame = Vec::new();
            builder.write(&mut frame, protocol.into(), transport).expect("a short frame");
            frame
        };
        let ethernet = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let (v4, v6) = (([10, 0, 0, 1], [10, 0, 0, 2]), ([0xfd; 16], [0xfe; 16]));
        let plain_v4 = written(ethernet().ipv4(v4.0, v4.1, 64));
        let plain_v6 = written(ethernet().ipv6(v6.0, v6.1, 64));
        let mut long = plain_v4.clone();
        long[14] = 0x47;
        long.splice(34..34, [1; 8]);
        let mut frames = vec![
            ("IPv4".to_owned(), true, plain_v4.clone()),
            ("IPv4 with options".to_owned(), true, long),
            ("IPv6".to_owned(), true, plain_v6.clone()),
            ("VLAN".to_owned(), true, written(ethernet().single_vlan(vlan(7)).ipv4(v4.0, v4.1, 64))),
            ("QinQ".to_owned(), true, written(ethernet().double_vlan(vlan(7), vlan(8)).ipv6(v6.0, v6.1, 64))),
        ];
        for (name, fragment, is_parsed) in [("first", 0x2000_u16, true), ("later", 0x2001, false), ("last", 185, false)]
        {
            let mut frame = plain_v4.clone();
            frame[20..22].copy_from_slice(&fragment.to_be_bytes());
            frames.push((format!("IPv4, {name} fragment"), is_parsed, frame));
        }
        // Each is the header that follows, its length, and its content.
        let extended = |extensions: &[(u8, Vec<u8>)]| {
            let mut frame = plain_v6.clone();
            let kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).chain([protocol]).collect();
            frame[20] = kinds[0];
            let bytes =
                extensions.iter().zip(&kinds[1..]).flat_map(|((_, bytes), next)| [&[*next], &bytes[1..]].concat());
            frame.splice(54..54, bytes.collect::<Vec<u8>>());
            frame
        };
        let options = |kind: u8, units: u8| (kind, [vec![0, units], vec![0; 6 + 8 * usize::from(units)]].concat());
        let fragment = |offset: u8| (44, vec![0, 0, 0, offset, 0, 0, 0, 1]);
        let many = |count: usize| vec![options(60, 1); count];
        for (name, is_parsed, extensions) in [
            ("hop-by-hop options", true, vec![options(0, 0)]),
            ("options, routing and a fragment", true, vec![options(0, 2), options(43, 1), fragment(1)]),
            ("a later fragment", false, vec![fragment(8)]),
            ("three extension headers", true, many(3)),
            ("four extension headers", false, many(4)),
            ("an unknown header", false, vec![options(135, 0)]),
        ] {
            frames.push((format!("IPv6 with {name}"), is_parsed, extended(&extensions)));
        }
        frames
    }

    fn ports(source: u16, destination: u16, rest: &[u8]) -> Vec<u8> {
        [&source.to_be_bytes()[..], &destination.to_be_bytes(), rest].concat()
    }

    fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
        ports(source, destination, &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0, 1, 2, 3])
    }

    fn udp(source: u16, destination: u16) -> Vec<u8> {
        ports(source, destination, &[0, 9, 0, 0, 1])
    }

    /// Transport headers, and whether they are passed.
    fn transports() -> Vec<(u8, bool, Vec<u8>)> {
        const ACK: u8 = packet::Flags::ACK;
        let mut all: Vec<_> = [
            (ACK, false),
            (ACK | 8, false),
            (packet::Flags::SYN, true),
            (packet::Flags::SYN | ACK, true),
            (packet::Flags::FIN | ACK, true),
            (packet::Flags::RST, true),
        ]
        .map(|(flags, passes)| (packet::TCP, passes, tcp(40_000, 80, flags)))
        .into();
        all.extend([(53, 40_000), (40_000, 53)].map(|(from, to)| (packet::TCP, true, tcp(from, to, ACK))));
        for (from, to, passes) in [(53, 40_000, true), (40_000, 53, true), (40_000, 5353, false), (443, 40_000, false)]
        {
            all.push((packet::UDP, passes, udp(from, to)));
        }
        for (protocol, kind, passes) in [
            (packet::ICMP, 3, true),
            (packet::ICMP, 8, false),
            (packet::ICMP, 1, false),
            (packet::ICMPV6, 1, true),
            (packet::ICMPV6, 3, false),
            (packet::ICMPV6, 135, false),
        ] {
            all.push((protocol, passes, vec![kind, 0, 0, 0, 0, 0, 0, 0]));
        }
        all.push((packet::SCTP, false, ports(53, 53, &[0; 8])));
        all
    }

    #[test]
    fn what_begins_and_ends_connections_is_passed_below_all_headers() {
        let [plain, behind] = [0, 16].map(|start| Filtered::new(start, LeftOut::Counted));
        for (protocol, is_passed, transport) in transports() {
            for (name, is_parsed, frame) in below(protocol, &transport) {
                let expected = if is_passed && is_parsed { frame.len() } else { 0 };
                assert_eq!(plain.passes(&frame), expected, "{name}, {protocol}: {transport:?}");
                // As in a datagram of VXLAN.
                let datagram = [&[0x45; 16][..], &frame].concat();
                let expected = if expected > 0 { datagram.len() } else { 0 };
                assert_eq!(behind.passes(&datagram), expected, "{name}, {protocol}: {transport:?}");
            }
        }
    }

    #[test]
    fn what_taps_tell_is_passed_and_other_frames_are_not() {
        let filtered = Filtered::new(0, LeftOut::Counted);
        let of_type = |ether_type: u16| [&[0; 12][..], &ether_type.to_be_bytes(), &[0; 46]].concat();
        assert_eq!(filtered.passes(&of_type(ETHER_TYPE)), 60);
        for other in [0x0806, ETHER_TYPE + 1] {
            assert_eq!(filtered.passes(&of_type(other)), 0, "{other:x}");
        }
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        let filtered = Filtered::new(0, LeftOut::Counted);
        let (_, _, frame) = &below(packet::TCP, &tcp(40_000, 80, packet::Flags::SYN))[0];
        // The flags are its last byte that is needed.
        for length in 1..frame.len() {
            assert_eq!(filtered.passes(&frame[..length]) > 0, length > 14 + 20 + 13, "{length}");
        }
    }

    #[test]
    fn a_sample_tells_how_many_are_left_out() {
        let filtered = Filtered::new(0, LeftOut::Sampled);
        let frame = |transport: &[u8]| below(packet::TCP, transport)[0].2.clone();
        let (data, syn) = (frame(&tcp(40_000, 80, packet::Flags::ACK)), frame(&tcp(40_000, 80, packet::Flags::SYN)));
        assert_eq!(filtered.passes(&syn), syn.len());
        let lengths: Vec<usize> =
            (0..100 * SAMPLED).map(|_| filtered.passes(&data)).filter(|length| *length > 0).collect();
        assert!(lengths.iter().all(|length| *length == SAMPLE_LENGTH as usize), "{lengths:?}");
        // The standard deviation is 10.
        assert!((30..170).contains(&lengths.len()), "{}", lengths.len());
    }
}
