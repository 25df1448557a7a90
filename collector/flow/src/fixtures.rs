//! Frames for tests.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::PacketBuilder;

use crate::{Event, Record, Source, Table, Timestamp, packet::parse};

/// A TCP segment between two addresses of 10.0.0.0/24, given by their last bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp {
    pub from: (u8, u16),
    pub to: (u8, u16),
    pub flags: &'static str,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub payload: usize,
    pub ttl: u8,
}

pub(crate) fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

impl Tcp {
    pub fn new(from: (u8, u16), to: (u8, u16), flags: &'static str) -> Self {
        Self { from, to, flags, sequence: 0, acknowledgment: 0, payload: 0, ttl: 64 }
    }

    pub fn at(self, sequence: u32, acknowledgment: u32) -> Self {
        Self { sequence, acknowledgment, ..self }
    }

    pub fn payload(self, payload: usize) -> Self {
        Self { payload, ..self }
    }

    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// The frame, as the pod that has the client's address sees it.
    pub fn frame(self) -> Vec<u8> {
        let (IpAddr::V4(from), IpAddr::V4(to)) = (address(self.from.0), address(self.to.0)) else {
            unreachable!("IPv4")
        };
        let mut builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, self.from.0], [2, 0, 0, 0, 0, self.to.0])
            .ipv4(from.octets(), to.octets(), self.ttl)
            .tcp(self.from.1, self.to.1, self.sequence, 1000);
        for flag in self.flags.chars() {
            builder = match flag {
                'S' => builder.syn(),
                'A' => builder.ack(self.acknowledgment),
                'F' => builder.fin(),
                'R' => builder.rst(),
                other => unreachable!("no flag {other}"),
            };
        }
        write(builder.size(self.payload), |frame| builder.write(frame, &vec![b'x'; self.payload]).map_err(drop))
    }
}

/// A connection: the client sends 80 bytes, the server 1000. With both initial sequence numbers.
pub(crate) fn connection(client: (u8, u16), server: (u8, u16), initials: (u32, u32), ttl: u8) -> Vec<Vec<u8>> {
    let (mine, theirs) = initials;
    [
        Tcp::new(client, server, "S").at(mine, 0),
        Tcp::new(server, client, "SA").at(theirs, mine + 1),
        Tcp::new(client, server, "A").at(mine + 1, theirs + 1),
        Tcp::new(client, server, "A").at(mine + 1, theirs + 1).payload(80),
        Tcp::new(server, client, "A").at(theirs + 1, mine + 81).payload(1000),
        Tcp::new(client, server, "FA").at(mine + 81, theirs + 1001),
        Tcp::new(server, client, "FA").at(theirs + 1001, mine + 82),
        Tcp::new(client, server, "A").at(mine + 82, theirs + 1002),
    ]
    .map(|segment| segment.ttl(ttl).frame())
    .to_vec()
}

/// A UDP datagram between two addresses of 10.0.0.0/24.
pub(crate) fn udp(from: (u8, u16), to: (u8, u16), payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (address(from.0), address(to.0)) else { unreachable!("IPv4") };
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, from.0], [2, 0, 0, 0, 0, to.0])
        .ipv4(source.octets(), destination.octets(), 64)
        .udp(from.1, to.1);
    write(builder.size(payload.len()), |frame| builder.write(frame, payload).map_err(drop))
}

fn write(size: usize, write: impl FnOnce(&mut Vec<u8>) -> Result<(), ()>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(size);
    write(&mut frame).expect("a short frame can be built");
    frame
}

/// A table and what it reported.
pub(crate) struct Recorder {
    pub table: Table,
    pub opened: Vec<Record>,
    pub records: Vec<Record>,
}

impl Recorder {
    pub fn new(table: Table) -> Self {
        Self { table, opened: Vec::new(), records: Vec::new() }
    }

    /// Passes a frame on, at so many milliseconds.
    pub fn frame(&mut self, source: Source, milliseconds: u64, frame: &[u8]) {
        let packet = parse(frame, u32::try_from(frame.len()).expect("short")).expect("an IP packet");
        let Self { table, opened, records } = self;
        table.observe(source, Timestamp(milliseconds * 1_000_000), &packet, &mut |event| take(event, opened, records));
    }

    pub fn expire(&mut self, milliseconds: u64) {
        let Self { table, opened, records } = self;
        table.expire(Timestamp(milliseconds * 1_000_000), &mut |event| take(event, opened, records));
    }

    pub fn flush(&mut self) {
        let Self { table, opened, records } = self;
        table.flush(&mut |event| take(event, opened, records));
    }
}

fn take(event: Event, opened: &mut Vec<Record>, records: &mut Vec<Record>) {
    match event {
        Event::Opened(record) => opened.push(record),
        Event::Record(record) => records.push(record),
    }
}
