//! From frames to flows, names and the map.

use podtap_flow::{
    Counters, Event, Limits, Source, Table, Timestamp,
    map::{Bounds, Map},
    named::NamedRecord,
    names::Names,
    packet,
};

/// A captured frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub source: Source,
    pub at: Timestamp,
    /// Bytes on the wire.
    pub length: u32,
    /// Its first bytes.
    pub bytes: &'a [u8],
}

/// Where records go.
pub trait Output {
    fn record(&mut self, flow: &NamedRecord<'_>, names: &Names);
}

/// How often flows that are over are reported, in nanoseconds of the frames' time.
const TICK: u64 = 100_000_000;

/// What was found so far.
pub struct Analysis<Out> {
    table: Table,
    results: Results<Out>,
    /// The tick of the last frame.
    tick: u64,
}

struct Results<Out> {
    names: Names,
    map: Map,
    output: Out,
}

impl<Out: Output> Analysis<Out> {
    pub fn new(names: Names, output: Out) -> Self {
        let results = Results { names, map: Map::new(Bounds::default()), output };
        Self { table: Table::new(Limits::default()), results, tick: 0 }
    }

    /// Counts a frame, and reports flows that are over by then.
    pub fn observe(&mut self, frame: &Frame<'_>) {
        if frame.at.0 / TICK > self.tick {
            self.tick = frame.at.0 / TICK;
            self.expire(frame.at);
        }
        let results = &mut self.results;
        if let Some(packet) = packet::parse(frame.bytes, frame.length) {
            self.table.observe(frame.source, frame.at, &packet, &mut |event| results.take(event));
        }
    }

    /// Reports flows that are over at this time.
    pub fn expire(&mut self, now: Timestamp) {
        let results = &mut self.results;
        self.table.expire(now, &mut |event| results.take(event));
    }

    /// Where records go.
    pub const fn output(&mut self) -> &mut Out {
        &mut self.results.output
    }

    /// Reports all flows. Returns the map, the output, and what was counted.
    pub fn finish(mut self) -> (Map, Out, Counters) {
        self.table.flush(&mut |event| self.results.take(event));
        (self.results.map, self.results.output, self.table.counters())
    }
}

impl<Out: Output> Results<Out> {
    fn take(&mut self, event: Event) {
        match event {
            Event::Opened(record) => self.map.open(&NamedRecord::new(&record, &self.names)),
            Event::Record(record) => {
                let flow = NamedRecord::new(&record, &self.names);
                self.map.record(&flow);
                self.output.record(&flow, &self.names);
            }
        }
    }
}
