//! From frames to flows, names and the map.

use std::time::Duration;

use podtap_flow::{
    Counters, EtherType, Event, Limits, Source, Table, Timestamp, Waiting,
    map::Map,
    metadata::{Metadata, MetadataFrame},
    named::NamedRecord,
    names::{Names, Update},
    packet,
    pods::Pods,
};

use crate::{
    newest::Newest,
    output::pcapng::Writer,
    shared::{Shared, State},
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

/// Whether a frame has this EtherType, and no VLAN tag.
pub fn has_ether_type(frame: &[u8], ether_type: EtherType) -> bool {
    frame.get(12..14) == Some(&ether_type.get().to_be_bytes()[..])
}

/// Where records go.
pub trait Output {
    fn record(&mut self, flow: &NamedRecord<'_>, names: &Names);
}

/// How often flows that are over are reported, in nanoseconds of the frames' time.
const TICK: u64 = 100_000_000;
/// How often pods that ended long ago, and edges, are forgotten, in ticks.
const FORGET: u64 = 600;
/// Events that wait for names at most.
const WAITING: usize = 8192;

/// What was found so far.
pub struct Analysis<Out> {
    table: Table,
    results: Results<Out>,
    /// That of probes and of frames with metadata.
    ether_type: EtherType,
    /// The tick of the last frame.
    tick: u64,
    /// Where frames are written.
    writer: Option<Writer>,
}

/// See [`Analysis::sizes`].
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// In the table.
    pub flows: usize,
    /// Events that wait for names.
    pub waiting: usize,
    pub edges: usize,
    /// Flows without room in the map.
    pub folded: u64,
    /// Their ports, services and response codes without room.
    pub details_dropped: u64,
    /// Also those that have ended.
    pub pods: usize,
    /// Flows that were translated to none of their service's endpoints.
    pub contradictions: u64,
    /// Pods that taps told of, of which something else is known.
    pub conflicts: u64,
}

struct Results<Out> {
    shared: Shared,
    waiting: Waiting,
    output: Out,
    now: Timestamp,
}

impl<Out: Output> Analysis<Out> {
    /// Flows of which an end is unknown are reported after `patience`, if they are still so. `ether_type`: that of the taps' probes.
    pub fn new(shared: Shared, ether_type: EtherType, patience: Duration, output: Out) -> Self {
        let results = Results { shared, waiting: Waiting::new(patience, WAITING), output, now: Timestamp(0) };
        Self { table: Table::new(Limits::default()), results, ether_type, tick: 0, writer: None }
    }

    /// Writes all frames, too.
    pub fn write_to(&mut self, writer: Writer) {
        self.writer = Some(writer);
    }

    /// Where frames are written.
    pub const fn writer(&mut self) -> Option<&mut Writer> {
        self.writer.as_mut()
    }

    /// That of probes and of frames with metadata.
    pub const fn ether_type(&self) -> EtherType {
        self.ether_type
    }

    /// Frames were lost on their way here: see [`Table::lost_until`].
    pub const fn lost_until(&mut self, until: Timestamp) {
        self.table.lost_until(until);
    }

    /// Likewise: see [`Table::lost_before`].
    pub fn lost_before(&mut self, at: Timestamp) {
        self.table.lost_before(at);
    }

    /// Has what the first [`AHEAD`](podtap_flow::AHEAD) frames of a source need in the CPU's cache: see [`Table::prepare`].
    pub fn prepare<'a>(&self, source: Source, frames: impl Iterator<Item = (&'a [u8], u32)>) {
        self.table.prepare(source, frames.filter_map(|(bytes, length)| packet::parse(bytes, length)));
    }

    /// Counts a frame, and reports flows that are over by then.
    pub fn observe(&mut self, frame: &Frame<'_>) {
        if frame.at.0 / TICK > self.tick {
            self.expire(frame.at);
        }
        let is_metadata = has_ether_type(frame.bytes, self.ether_type);
        let packet = if is_metadata { None } else { packet::parse(frame.bytes, frame.length) };
        let results = &mut self.results;
        if let Some(writer) = &mut self.writer {
            writer.frame(frame, packet.as_ref(), &results.shared.lock().names);
        }
        if let Some(packet) = packet {
            self.table.observe(frame.source, frame.at, &packet, &mut |event| results.take(event));
        }
        if is_metadata {
            self.observe_metadata(frame);
        }
    }

    /// Takes what a tap tells. The others are its probes, which count for nothing here.
    fn observe_metadata(&mut self, frame: &Frame<'_>) {
        let Some(MetadataFrame { pod, metadata, .. }) = MetadataFrame::decode(frame.bytes, self.ether_type.get())
        else {
            return;
        };
        match metadata {
            Metadata::Translation(translation) => {
                self.table.translate(frame.source, frame.at, &translation);
            }
            Metadata::Pod(metadata) => self.results.change_names(|names| names.identify(&pod, &metadata, frame.at)),
        }
    }

    /// Reports flows that are over at this time.
    pub fn expire(&mut self, now: Timestamp) {
        let before = std::mem::replace(&mut self.tick, now.0 / TICK);
        let results = &mut self.results;
        results.now = now;
        self.table.expire(now, &mut |event| results.take(event));
        let mut state = results.shared.lock();
        let (names, mut counted) = Counted::of(&mut state);
        results.waiting.expire(names, now, &mut |event| counted.take(event, names, &mut results.output));
        if before / FORGET != self.tick / FORGET {
            names.expire(now);
            counted.expire(now);
        }
    }

    /// Applies changes of names, and reports what waited for them.
    pub fn update(&mut self, updates: impl Iterator<Item = Update>, now: Timestamp) {
        let mut updates = updates.peekable();
        if updates.peek().is_none() {
            return;
        }
        self.results.change_names(|names| {
            updates.for_each(|update| names.apply(update, now));
            true
        });
    }

    /// Where records go.
    pub const fn output(&mut self) -> &mut Out {
        &mut self.results.output
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.table.counters()
    }

    /// How full it is.
    pub fn sizes(&self) -> Sizes {
        let State { names, map, .. } = &*self.results.shared.lock();
        Sizes {
            flows: self.table.len(),
            waiting: self.results.waiting.len(),
            edges: map.len(),
            folded: map.folded,
            details_dropped: map.details_dropped,
            pods: names.pods().len(),
            contradictions: map.contradictions,
            conflicts: names.identity_counters().conflicts,
        }
    }

    /// Reports all flows. Returns the output, where frames are written, and what was counted.
    pub fn finish(self) -> (Out, Option<Writer>, Counters) {
        let Self { mut table, mut results, writer, .. } = self;
        table.flush(&mut |event| results.take(event));
        let Results { shared, mut waiting, mut output, .. } = results;
        let mut state = shared.lock();
        let (names, mut counted) = Counted::of(&mut state);
        waiting.flush(&mut |event| counted.take(event, names, &mut output));
        drop(state);
        (output, writer, table.counters())
    }
}

impl<Out: Output> Results<Out> {
    /// Changes names, and if anything has changed, reports what waited for that.
    fn change_names(&mut self, change: impl FnOnce(&mut Names) -> bool) {
        let mut state = self.shared.lock();
        let (names, mut counted) = Counted::of(&mut state);
        if change(names) {
            self.waiting.names_changed(names, &mut |event| counted.take(event, names, &mut self.output));
        }
    }

    fn take(&mut self, event: Event) {
        let mut state = self.shared.lock();
        let (names, mut counted) = Counted::of(&mut state);
        self.waiting.add(event, names, self.now, &mut |event| counted.take(event, names, &mut self.output));
    }
}

/// What flows are counted in.
struct Counted<'a> {
    map: &'a mut Map,
    pods: Option<&'a mut Pods>,
    newest: &'a mut Newest,
}

impl<'a> Counted<'a> {
    fn of(state: &'a mut State) -> (&'a mut Names, Self) {
        let State { names, map, pods, newest, .. } = state;
        (names, Self { map, pods: pods.as_mut(), newest })
    }

    fn take(&mut self, event: Event, names: &Names, output: &mut impl Output) {
        match event {
            Event::Opened(record) => {
                let flow = NamedRecord::new(&record, names);
                self.map.open(&flow);
                self.pods.iter_mut().for_each(|pods| pods.open(&flow));
            }
            Event::Record(record) => {
                let flow = NamedRecord::new(&record, names);
                self.map.record(&flow);
                self.pods.iter_mut().for_each(|pods| pods.record(&flow));
                output.record(&flow, names);
                self.newest.push(record);
            }
        }
    }

    fn expire(&mut self, now: Timestamp) {
        self.map.expire(now);
        self.pods.iter_mut().for_each(|pods| pods.expire(now));
        self.newest.expire(now);
    }
}
