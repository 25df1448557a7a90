//! A client of rpcap (`rpcap-protocol.h` of libpcap), and a reader of udpstr.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
};

use crate::{
    net::Network,
    wait::{PATIENCE, until},
};

/// Types of messages.
pub const ERROR: u8 = 1;
/// See [`ERROR`].
pub const FIND: u8 = 2;
/// See [`ERROR`].
pub const OPEN: u8 = 3;
/// See [`ERROR`].
pub const START: u8 = 4;
/// See [`ERROR`].
pub const UPDATE_FILTER: u8 = 5;
/// See [`ERROR`].
pub const PACKET: u8 = 7;
/// See [`ERROR`].
pub const AUTHENTICATE: u8 = 8;
/// See [`ERROR`].
pub const STATISTICS: u8 = 9;
/// See [`ERROR`].
pub const END: u8 = 10;
/// See [`ERROR`].
pub const SET_SAMPLING: u8 = 11;
/// Added to the type of a request that is replied to.
pub const REPLY: u8 = 128;
/// Flags of a start.
pub const DATAGRAMS: u16 = 2;
/// See [`DATAGRAMS`].
pub const SERVER_OPENS: u16 = 4;

/// Bytes of the header of a packet, which is before its frame.
const PACKET_HEADER: usize = 20;

/// The type of a message, its value and its payload.
pub type Message = (u8, u16, Vec<u8>);

/// The next message.
///
/// # Errors
/// If the connection ends before it is complete.
///
/// # Panics
/// If it has another version.
pub fn receive(stream: &mut TcpStream) -> io::Result<Message> {
    let mut header = [0; 8];
    stream.read_exact(&mut header)?;
    let [version, kind, high, low, length @ ..] = header;
    assert_eq!(version, 0);
    let mut payload = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut payload)?;
    Ok((kind, u16::from_be_bytes([high, low]), payload))
}

/// A filter in a message. Without instructions, it passes all frames.
///
/// # Panics
/// If it is too long.
pub fn filter(instructions: &[[u8; 8]]) -> Vec<u8> {
    let count = u32::try_from(instructions.len()).expect("few");
    [&[0, 1, 0, 0][..], &count.to_be_bytes(), &instructions.concat()].concat()
}

/// Number and frame of a packet.
///
/// # Panics
/// If it is incomplete.
pub fn packet(payload: &[u8]) -> (u32, &[u8]) {
    let (header, frame) = payload.split_at_checked(PACKET_HEADER).expect("a header");
    assert_eq!(word(header, 8) as usize, frame.len());
    (word(header, 16), frame)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().expect("a word"))
}

/// A client, which may have been connected to.
#[derive(Debug)]
pub struct Client<'a> {
    network: &'a Network,
    /// The control connection.
    pub control: TcpStream,
}

impl<'a> Client<'a> {
    /// With a control connection of the network.
    ///
    /// # Panics
    /// If its socket cannot be configured.
    pub fn new(network: &'a Network, control: TcpStream) -> Self {
        control.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        Self { network, control }
    }

    /// The answer to a request.
    ///
    /// # Panics
    /// If there is none.
    pub fn ask(&mut self, kind: u8, payload: &[u8]) -> Message {
        let length = u32::try_from(payload.len()).expect("it is short");
        let message = [&[0, kind, 0, 0][..], &length.to_be_bytes(), payload].concat();
        self.control.write_all(&message).expect("it is connected");
        receive(&mut self.control).expect("a reply")
    }

    /// The payload of the reply to a request.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn done(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let (reply, _, payload) = self.ask(kind, payload);
        assert_eq!(reply, kind | REPLY, "{}", String::from_utf8_lossy(&payload));
        payload
    }

    /// The code and the text of the error that a request leads to.
    ///
    /// # Panics
    /// If it is served.
    #[track_caller]
    pub fn refused(&mut self, kind: u8, payload: &[u8]) -> (u16, String) {
        let (reply, code, payload) = self.ask(kind, payload);
        assert_eq!(reply, ERROR);
        (code, String::from_utf8(payload).expect("it is text"))
    }

    /// Authenticates, and opens the interface.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn open(&mut self) {
        self.done(AUTHENTICATE, &[0; 8]);
        self.done(OPEN, b"podtap");
    }

    /// Starts a capture. Returns the port at which the server waits.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn start(&mut self, flags: u16, port: u16, snapshot: u32, filter: &[u8]) -> u16 {
        let words = [snapshot, 1000].map(u32::to_be_bytes).concat();
        let flags = [flags, port].map(u16::to_be_bytes).concat();
        let reply = self.done(START, &[&words, &flags, filter].concat());
        u16::from_be_bytes([reply[4], reply[5]])
    }

    /// Captures by TCP.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn capture(&mut self, filter: &[u8]) -> TcpStream {
        let port = self.start(0, 0, 65_535, filter);
        self.connect(port)
    }

    /// Opens the data connection.
    ///
    /// # Panics
    /// If the server does not wait for it.
    #[track_caller]
    pub fn connect(&self, port: u16) -> TcpStream {
        let server = self.control.peer_addr().expect("it is connected").ip();
        let data = self.network.within(|| TcpStream::connect((server, port))).expect("it waits");
        data.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        data
    }

    /// Frames that passed the filter, that the interface dropped, that were dropped for want of room, and that were sent.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn statistics(&mut self) -> [u32; 4] {
        let words = self.done(STATISTICS, &[]);
        std::array::from_fn(|number| word(&words, 4 * number))
    }

    /// Asks until they are these: a frame is counted as sent after that.
    ///
    /// # Panics
    /// If they do not become these.
    #[track_caller]
    pub fn until_statistics(&mut self, expected: [u32; 4]) {
        until("all are counted", PATIENCE, || match self.statistics() {
            found if found == expected => Ok(()),
            found => Err(format!("{found:?}")),
        });
    }
}

/// Reads udpstr without loss.
#[derive(Debug, Default)]
pub struct Packed {
    /// Datagrams so far.
    pub datagrams: u32,
    /// Whole packets so far.
    pub packets: u32,
    /// The beginning of a packet that is not complete.
    rest: Vec<u8>,
}

impl Packed {
    /// Reads a datagram. `take` gets the numbers and frames of the packets that end in it.
    ///
    /// # Panics
    /// If it is not the next datagram, or a packet not the next one.
    #[track_caller]
    pub fn read(&mut self, datagram: &[u8], mut take: impl FnMut(u32, &[u8])) {
        assert_eq!((&datagram[..2], word(datagram, 4)), (&[0, 110][..], self.datagrams), "one was lost");
        self.datagrams += 1;
        self.rest.extend(&datagram[8..]);
        let mut at = 0;
        while let Some(header) = self.rest.get(at..at + PACKET_HEADER) {
            let end = at + PACKET_HEADER + word(header, 8) as usize;
            let Some(payload) = self.rest.get(at..end) else { break };
            let (number, frame) = packet(payload);
            self.packets += 1;
            assert_eq!(number, self.packets);
            take(number, frame);
            at = end;
        }
        self.rest.drain(..at);
    }
}
