//! The messages of rpcap, version 0 (`rpcap-protocol.h` of libpcap): big-endian, without padding.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use podtap_flow::Timestamp;

use super::filter::{MAX_INSTRUCTIONS, Program};

pub const HEADER: usize = 8;
pub const PACKET_HEADER: usize = 20;
/// Longest payload of a request: more than that of the longest filter.
pub const MAX_REQUEST: usize = 64 << 10;
const VERSION: u8 = 0;

pub const PACKET: u8 = 7;
const START: u8 = 4;
const ERROR: u8 = 1;
/// A reply has the type of its request and this.
const REPLY: u8 = 128;

/// Bytes of a start before its filter, of a filter before its instructions, and of an instruction.
const START_HEADER: usize = 12;
const FILTER_HEADER: usize = 8;
const INSTRUCTION: usize = 8;

const DATAGRAMS: u16 = 2;
const SERVER_OPENS: u16 = 4;

/// Codes of errors.
pub mod code {
    pub const NETWORK: u16 = 1;
    pub const INITIAL_TIMEOUT: u16 = 2;
    pub const AUTHENTICATION: u16 = 3;
    pub const FIND_INTERFACES: u16 = 4;
    pub const OPEN: u16 = 6;
    pub const UPDATE_FILTER: u16 = 7;
    pub const START: u16 = 12;
    pub const END: u16 = 13;
    pub const TIMEOUT: u16 = 14;
    pub const SET_SAMPLING: u16 = 15;
    pub const WRONG_MESSAGE: u16 = 16;
    pub const WRONG_VERSION: u16 = 17;
}

/// Ethernet (`LINKTYPE_ETHERNET`).
const ETHERNET: u32 = 1;
/// Up and running (`PCAP_IF_UP`, `PCAP_IF_RUNNING`).
const FLAGS: u32 = 2 | 4;
/// As Windows numbers it.
const IPV6: u16 = 23;
const IPV4: u16 = 2;
/// Bytes of a socket address.
const ADDRESS: usize = 128;

/// Why a request is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: u16,
    pub message: String,
}

impl Refusal {
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As a message.
    pub fn encode(&self) -> Vec<u8> {
        message(ERROR, self.code, self.message.as_bytes())
    }
}

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: u8,
    /// Of the payload.
    pub length: usize,
}

impl Header {
    pub fn decode(bytes: [u8; HEADER]) -> Result<Self, Refusal> {
        let [version, kind, _, _, length @ ..] = bytes;
        let length = u32::from_be_bytes(length);
        if version != VERSION {
            return Err(Refusal::new(code::WRONG_VERSION, format!("version {version} is not spoken, only {VERSION}")));
        }
        if length as usize > MAX_REQUEST {
            let message = format!("a message has {length} bytes, which must be at most {MAX_REQUEST}");
            return Err(Refusal::new(code::WRONG_MESSAGE, message));
        }
        Ok(Self { kind, length: length as usize })
    }

    /// The reply to the request.
    pub fn reply(self, payload: &[u8]) -> Vec<u8> {
        self.list(0, payload)
    }

    /// A reply with so many elements.
    pub fn list(self, count: u16, payload: &[u8]) -> Vec<u8> {
        message(self.kind | REPLY, count, payload)
    }
}

/// Where the data of a capture goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Bytes of a frame that are sent.
    pub snapshot: u32,
    pub flags: u16,
    /// Of the client.
    pub port: u16,
}

impl Start {
    pub const fn has_datagrams(self) -> bool {
        self.flags & DATAGRAMS != 0
    }

    /// Whether this end opens the data connection.
    pub const fn opens(self) -> bool {
        self.flags & (SERVER_OPENS | DATAGRAMS) != 0
    }
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    FindInterfaces,
    Open(String),
    Start(Start, Program),
    UpdateFilter(Program),
    Close,
    /// With this type.
    Authenticate(u16),
    Statistics,
    End,
    /// With this method.
    SetSampling(u8),
}

impl Request {
    pub fn decode(header: Header, payload: &[u8]) -> Result<Self, Refusal> {
        let short = |code| Refusal::new(code, "the message is too short");
        match header.kind {
            2 => Ok(Self::FindInterfaces),
            3 => Ok(Self::Open(String::from_utf8_lossy(payload).trim_end_matches('\0').to_owned())),
            START => {
                let (start, filter) = payload.split_first_chunk::<START_HEADER>().ok_or_else(|| short(code::START))?;
                let word = |at: usize| u16::from_be_bytes([start[at], start[at + 1]]);
                let snapshot = u32::from(word(0)) << 16 | u32::from(word(2));
                let program = filter_of(filter).map_err(|message| Refusal::new(code::START, message))?;
                Ok(Self::Start(Start { snapshot, flags: word(8), port: word(10) }, program))
            }
            5 => {
                let program = filter_of(payload).map_err(|message| Refusal::new(code::UPDATE_FILTER, message))?;
                Ok(Self::UpdateFilter(program))
            }
            6 => Ok(Self::Close),
            8 => {
                let kind = payload.first_chunk().ok_or_else(|| short(code::AUTHENTICATION))?;
                Ok(Self::Authenticate(u16::from_be_bytes(*kind)))
            }
            9 => Ok(Self::Statistics),
            10 => Ok(Self::End),
            11 => Ok(Self::SetSampling(*payload.first().ok_or_else(|| short(code::SET_SAMPLING))?)),
            kind => Err(Refusal::new(code::WRONG_MESSAGE, format!("{kind} is not the type of a request"))),
        }
    }
}

/// Bytes of a request that follow those that its header counts: libpcap without a filter sends one that passes all frames, but counts its
/// instructions only as those of a filter that was set (`pcap_startcapture_remote`).
pub fn uncounted(header: Header, payload: &[u8]) -> usize {
    match (header.kind, payload) {
        (START, [.., 0, 1, _, _, a, b, c, d]) if payload.len() == START_HEADER + FILTER_HEADER => {
            let count = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            if count > MAX_INSTRUCTIONS { 0 } else { count * INSTRUCTION }
        }
        _ => 0,
    }
}

/// A filter, behind its type and the number of its instructions.
fn filter_of(payload: &[u8]) -> Result<Program, String> {
    let Some(([0, 1, _, _, count @ ..], instructions)) = payload.split_first_chunk::<FILTER_HEADER>() else {
        return Err("the filter is not a BPF program".to_owned());
    };
    let (instructions, rest) = instructions.as_chunks::<INSTRUCTION>();
    let count = u32::from_be_bytes(*count);
    if !rest.is_empty() || instructions.len() != count as usize {
        return Err(format!("the filter does not have {count} instructions, as it claims"));
    }
    Program::decode(instructions).map_err(|error| error.to_string())
}

/// What a capture has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that passed the filter.
    pub passed: u64,
    /// Frames that the kernel dropped before.
    pub dropped_by_kernel: u64,
    /// Frames that passed the filter, and were not sent.
    pub dropped: u64,
    pub sent: u64,
}

impl Statistics {
    pub fn encode(self) -> Vec<u8> {
        let Self { passed, dropped_by_kernel, dropped, sent } = self;
        // Interfaces drop none. As `ps_drop` of libpcap, those that found no room anywhere are one number.
        let dropped = dropped_by_kernel.wrapping_add(dropped);
        // They wrap.
        let low = |count: u64| u32::try_from(count & u64::from(u32::MAX)).unwrap_or_default();
        [passed, 0, dropped, sent].map(low).map(u32::to_be_bytes).concat()
    }
}

/// The payload of the reply to [`Request::Open`].
pub fn opened() -> Vec<u8> {
    // Times are UTC.
    [ETHERNET, 0].map(u32::to_be_bytes).concat()
}

/// The payload of the reply to [`Request::Start`]. `port`: where the client opens the data connection, or 0.
pub fn started(buffer: usize, port: u16) -> Vec<u8> {
    let buffer = u32::try_from(buffer).unwrap_or(u32::MAX);
    [&buffer.to_be_bytes()[..], &port.to_be_bytes(), &[0; 2]].concat()
}

/// An interface, in the reply to [`Request::FindInterfaces`], with addresses and their masks.
pub fn interface(name: &str, description: &str, addresses: &[(IpAddr, IpAddr)]) -> Vec<u8> {
    let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = [short(name.len()), short(description.len())].concat();
    bytes.extend(FLAGS.to_be_bytes());
    bytes.extend(short(addresses.len()));
    bytes.extend([0; 2]);
    bytes.extend(name.as_bytes());
    bytes.extend(description.as_bytes());
    for (address, mask) in addresses {
        bytes.extend(socket_address(*address));
        bytes.extend(socket_address(*mask));
        // Without broadcast and destination addresses.
        bytes.extend([0; 2 * ADDRESS]);
    }
    bytes
}

fn socket_address(address: IpAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    match address {
        IpAddr::V4(address) => {
            bytes[..2].copy_from_slice(&IPV4.to_be_bytes());
            bytes[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes[..2].copy_from_slice(&IPV6.to_be_bytes());
            bytes[8..24].copy_from_slice(&address.octets());
        }
    }
    bytes
}

/// The addresses of this network namespace, with their masks, but for those of the loopback.
pub fn addresses() -> nix::Result<Vec<(IpAddr, IpAddr)>> {
    let ip = |storage: nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    };
    let all = getifaddrs()?.filter_map(|interface| Some((ip(interface.address?)?, ip(interface.netmask?)?)));
    Ok(all.filter(|(address, _)| !address.is_loopback()).collect())
}

/// A frame in a message of the type [`PACKET`]. `number`: how many the capture has then.
pub fn packet(at: Timestamp, length: u32, bytes: &[u8], number: u64, out: &mut Vec<u8>) {
    let word = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default().to_be_bytes();
    let payload = PACKET_HEADER + bytes.len();
    out.extend([VERSION, PACKET, 0, 0]);
    out.extend(word(payload as u64));
    out.extend(word(at.0 / 1_000_000_000));
    out.extend(word(at.0 / 1000 % 1_000_000));
    out.extend(word(bytes.len() as u64));
    out.extend(length.to_be_bytes());
    out.extend(word(number));
    out.extend(bytes);
}

/// The messages of [`packet`] that follow each other.
pub fn packets(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?);
        let (packet, rest) = bytes.split_at_checked(HEADER + length as usize)?;
        bytes = rest;
        Some(packet)
    })
}

fn message(kind: u8, value: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let [high, low] = value.to_be_bytes();
    [&[VERSION, kind, high, low][..], &length.to_be_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request, as a client sends it.
    fn request(kind: u8, payload: &[u8]) -> Result<Request, Refusal> {
        let bytes = message(kind, 0, payload);
        let header = Header::decode(*bytes.first_chunk().expect("a header"))?;
        assert_eq!(header.length, payload.len());
        Request::decode(header, payload)
    }

    /// Returns everything.
    const ALL: [u8; 8] = [0, 6, 0, 0, 0xff, 0xff, 0xff, 0xff];

    #[test]
    fn requests_are_decoded() {
        let all = Program::decode(&[ALL]).expect("it is valid");
        let filter = [&[0, 1, 0, 0, 0, 0, 0, 1][..], &ALL].concat();
        assert_eq!(request(8, &[0, 1, 0, 0, 0, 4, 0, 6]), Ok(Request::Authenticate(1)));
        assert_eq!(request(3, b"podtap"), Ok(Request::Open("podtap".to_owned())));
        let start = [&[0, 4, 0, 1, 0, 0, 3, 0xe8, 0, 3, 0x1f, 0x90][..], &filter].concat();
        let Ok(Request::Start(start, program)) = request(4, &start) else { panic!("a start") };
        assert_eq!((start.snapshot, start.port, program), (0x0004_0001, 8080, all.clone()));
        assert!(start.has_datagrams() && start.opens());
        assert_eq!(request(5, &filter), Ok(Request::UpdateFilter(all)));
        assert_eq!(request(11, &[1, 0, 0, 0, 0, 0, 0, 9]), Ok(Request::SetSampling(1)));
        for (kind, expected) in
            [(2, Request::FindInterfaces), (6, Request::Close), (9, Request::Statistics), (10, Request::End)]
        {
            assert_eq!(request(kind, &[]), Ok(expected));
        }
    }

    #[test]
    fn what_libpcap_sends_uncounted_is_known_by_the_number_of_instructions() {
        let of = |kind, count: u32, more: &[u8]| {
            let payload = [&[0; 12][..], &[0, 1, 0, 0], &count.to_be_bytes(), more].concat();
            uncounted(Header { kind, length: payload.len() }, &payload)
        };
        assert_eq!((of(4, 1, &[]), of(4, 2, &[])), (8, 16));
        assert_eq!(of(4, 0, &[]), 0, "it passes all frames");
        assert_eq!((of(4, 1, &ALL), of(4, 2, &ALL), of(5, 1, &[])), (0, 0, 0), "it is counted, wrong, or no start");
        assert_eq!((of(4, 512, &[]), of(4, 513, &[]), of(4, u32::MAX, &[])), (8 * 512, 0, 0));
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_code() {
        let code = |kind, payload: &[u8]| request(kind, payload).expect_err("it is refused").code;
        assert_eq!(code(8, &[0]), code::AUTHENTICATION);
        assert_eq!(code(4, &[0; 11]), code::START);
        assert_eq!(code(4, &[0; 12]), code::START, "without a filter");
        assert_eq!(code(5, &[0, 2, 0, 0, 0, 0, 0, 0]), code::UPDATE_FILTER, "another type");
        assert_eq!(code(5, &[&[0, 1, 0, 0, 0, 0, 0, 2][..], &ALL].concat()), code::UPDATE_FILTER, "one is missing");
        assert_eq!(code(5, &[0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff]), code::UPDATE_FILTER);
        assert_eq!(code(11, &[]), code::SET_SAMPLING);
        for kind in [0, 1, 7, 12, 127, 130, 255] {
            assert_eq!(code(kind, &[]), code::WRONG_MESSAGE);
        }
        let header = |bytes| Header::decode(bytes).expect_err("it is refused").code;
        assert_eq!(header([1, 8, 0, 0, 0, 0, 0, 0]), code::WRONG_VERSION);
        assert_eq!(header([0, 8, 0, 0, 0, 1, 0, 1]), code::WRONG_MESSAGE);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_decoded_or_refused(
            kind in 0_u8..16,
            mut payload in prop::collection::vec(any::<u8>(), 0..200),
            is_filter in any::<bool>(),
        ) {
            // Otherwise, hardly any is one.
            let at = if kind == 4 { 12 } else { 0 };
            if is_filter && payload.len() >= at + 8 {
                payload.truncate(payload.len() - (payload.len() - at) % 8);
                let count = u8::try_from((payload.len() - at) / 8 - 1).expect("short");
                payload[at..at + 8].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, count]);
            }
            match request(kind, &payload) {
                Ok(Request::Start(_, program) | Request::UpdateFilter(program)) => drop(program.run(&payload, 200)),
                Ok(_) => {}
                Err(refusal) => prop_assert!(!refusal.message.is_empty()),
            }
        }
    }

    #[test]
    fn replies_are_as_defined_to_the_byte() {
        let header = |kind| Header { kind, length: 0 };
        assert_eq!(header(8).reply(&[]), [0, 136, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header(3).reply(&opened()), [0, 131, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0]);
        let started = started(0x0100_0000, 8080);
        assert_eq!(header(4).reply(&started), [0, 132, 0, 0, 0, 0, 0, 8, 1, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        let statistics = Statistics { passed: 1 << 32 | 7, dropped_by_kernel: 1, dropped: 2, sent: 4 };
        assert_eq!(statistics.encode(), [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4]);
        assert_eq!(Refusal::new(code::OPEN, "no").encode(), [0, 1, 0, 6, 0, 0, 0, 2, b'n', b'o']);
    }

    #[test]
    fn an_interface_has_its_addresses() {
        let [address, mask] = ["192.0.2.9", "255.255.255.0"].map(|text| text.parse::<IpAddr>().expect("an address"));
        let v6 = "2001:db8::9".parse::<IpAddr>().expect("an address");
        let bytes = interface("tap", "Taps", &[(address, mask), (v6, v6)]);
        assert_eq!(bytes[..19], [0, 3, 0, 4, 0, 0, 0, 6, 0, 2, 0, 0, b't', b'a', b'p', b'T', b'a', b'p', b's']);
        let addresses = &bytes[19..];
        assert_eq!(addresses.len(), 8 * 128);
        assert_eq!(addresses[..9], [0, 2, 0, 0, 192, 0, 2, 9, 0]);
        assert_eq!(addresses[128..137], [0, 2, 0, 0, 255, 255, 255, 0, 0]);
        assert_eq!(addresses[256..512], [0; 256]);
        assert_eq!(addresses[512..520], [0, 23, 0, 0, 0, 0, 0, 0]);
        assert_eq!(addresses[520..524], [0x20, 1, 0xd, 0xb8]);
    }

    #[test]
    fn frames_have_their_time_length_and_number() {
        let mut bytes = Vec::new();
        packet(Timestamp(5_000_000_000 + 1_234_567), 1514, b"frame", 1, &mut bytes);
        packet(Timestamp(0), 0, b"", 2, &mut bytes);
        let first = [
            &[0, 7, 0, 0, 0, 0, 0, 25][..],
            &[0, 0, 0, 5, 0, 0, 4, 0xd2, 0, 0, 0, 5, 0, 0, 5, 0xea, 0, 0, 0, 1],
            b"frame",
        ]
        .concat();
        assert!(bytes.starts_with(&first));
        let split: Vec<&[u8]> = packets(&bytes).collect();
        assert_eq!((split.len(), split[0], split[1].len()), (2, &first[..], HEADER + PACKET_HEADER));
    }
}
