//! Frames as pcapng, for Wireshark and its relatives: an interface for each pod, with its name, the direction of each frame as the pod sees
//! it, and the names of addresses.
//!
//! Whatever frames contain, only pods, services and nodes that are known make interfaces and names.

mod blocks;
mod files;
mod section;
mod stream;

use std::{
    borrow::Cow,
    collections::HashMap,
    io,
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SendError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use podtap_flow::{
    Source, Timestamp,
    names::{Names, Owner, Pod},
    packet,
};
use tracing::error;

use self::{blocks::Direction, files::Files, stream::Stream};
pub use self::{
    blocks::{Kind, WRITER, whole},
    files::Rotation,
    stream::Format,
};
use super::window::Window;
use crate::{analysis::Frame, clock::now};

/// Frames that wait to be written, in bytes.
const QUEUE: usize = 8 << 20;
/// What a frame in the queue takes beside its bytes.
const OVERHEAD: usize = 160;
/// Pods whose interfaces, and other addresses whose names, are remembered.
const REMEMBERED: usize = 16_384;
/// How long the name of an address that is no pod's is used without asking again.
const FRESH: Duration = Duration::from_secs(1);
/// How often the thread that writes is told the time, at most.
const TICK: Duration = Duration::from_millis(100);
/// How long no file is begun after an error.
const RETRY: Duration = Duration::from_secs(10);
/// What hosts begin with; each router on the way lowers it.
const INITIAL_TTLS: [u8; 3] = [64, 128, 255];

/// What was counted of all frames.
#[derive(Debug, Default)]
pub struct Counts {
    written: AtomicU64,
    /// Frames that came too fast, or could not be written.
    dropped: AtomicU64,
    /// Frames that the kernel dropped, or left out while the collector fell behind.
    lost: AtomicU64,
}

impl Counts {
    /// Counts a packet that is not written.
    fn drop_packet(&self, packet: &Packet<'_>) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        packet.interface.dropped.fetch_add(1, Ordering::Relaxed);
        packet.interface.gap.fetch_add(packet.gap + 1, Ordering::Relaxed);
    }
}

/// An interface of the files.
#[derive(Debug)]
struct Interface {
    id: u64,
    name: String,
    description: String,
    received: AtomicU64,
    dropped: AtomicU64,
    /// Of these, those that no packet has told of yet.
    gap: AtomicU64,
}

/// An address and its name.
type Name = (IpAddr, Arc<str>);

/// A frame to write.
struct Packet<'a> {
    interface: Arc<Interface>,
    /// Of its ends, as far as they are known.
    names: [Option<Name>; 2],
    at: Timestamp,
    length: u32,
    direction: Option<Direction>,
    /// Packets of the interface that were dropped since the one before.
    gap: u64,
    bytes: Cow<'a, [u8]>,
}

enum Message {
    Packet(Packet<'static>),
    Tick(Timestamp),
}

/// Where frames are written.
enum Sink {
    /// At once. The first error.
    Here(Box<Files>, io::Result<()>),
    /// At once, in memory, from where a client reads them.
    Stream(Box<Stream>),
    /// By a thread, which never holds up the one that captures.
    Thread { sender: Option<Sender<Message>>, queued: Arc<AtomicUsize>, thread: Option<JoinHandle<()>> },
}

/// Writes frames.
pub struct Writer {
    sink: Sink,
    counts: Arc<Counts>,
    /// Names of the sources, for frames of which no end is a pod.
    sources: Vec<String>,
    of_sources: HashMap<Source, Arc<Interface>>,
    /// By UID: interface, and name of its addresses.
    of_pods: HashMap<String, (Arc<Interface>, Arc<str>)>,
    others: HashMap<IpAddr, (Timestamp, Option<Arc<str>>)>,
    next_id: u64,
    /// Whether frames are only counted.
    is_paused: bool,
    /// When the thread was last told the time.
    ticked: Option<Timestamp>,
}

impl Writer {
    /// Every frame is written before the next one is read.
    pub fn here(path: &Path, rotation: Rotation) -> io::Result<Self> {
        let counts = Arc::<Counts>::default();
        let files = Files::new(path, rotation, Arc::clone(&counts))?;
        Ok(Self::new(Sink::Here(Box::new(files), Ok(())), counts, Vec::new()))
    }

    /// Frames that come faster than they can be written are dropped. To be called when signals are blocked: its thread inherits that.
    pub fn beside(path: &Path, rotation: Rotation, sources: Vec<String>) -> io::Result<Self> {
        let counts = Arc::<Counts>::default();
        let files = Files::new(path, rotation, Arc::clone(&counts))?;
        let (sender, receiver) = channel();
        let queued = Arc::<AtomicUsize>::default();
        let thread = thread::spawn({
            let (queued, counts) = (Arc::clone(&queued), Arc::clone(&counts));
            move || drain(&receiver, files, &queued, &counts)
        });
        Ok(Self::new(Sink::Thread { sender: Some(sender), queued, thread: Some(thread) }, counts, sources))
    }

    /// Frames for which the window has no room are dropped.
    pub fn stream(format: Format, window: Arc<Window>) -> Self {
        let counts = Arc::<Counts>::default();
        let stream = Stream::new(format, window, Arc::clone(&counts));
        Self::new(Sink::Stream(Box::new(stream)), counts, Vec::new())
    }

    fn new(sink: Sink, counts: Arc<Counts>, sources: Vec<String>) -> Self {
        Self {
            sink,
            counts,
            sources,
            of_sources: HashMap::new(),
            of_pods: HashMap::new(),
            others: HashMap::new(),
            next_id: 0,
            ticked: None,
            is_paused: false,
        }
    }

    /// The source with this name, which is added if there is none.
    pub fn source(&mut self, name: &str) -> Source {
        let number = self.sources.iter().position(|known| known == name).unwrap_or_else(|| {
            self.sources.push(name.to_owned());
            self.sources.len() - 1
        });
        Source::try_from(number).unwrap_or(Source::MAX)
    }

    /// Frames that were written, and that were not.
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.written.load(Ordering::Relaxed), self.counts.dropped.load(Ordering::Relaxed))
    }

    /// Writes a frame, or counts it as dropped.
    pub fn frame(&mut self, frame: &Frame<'_>, packet: Option<&packet::Packet<'_>>, names: &Names) {
        // There is no time to find out whose it is.
        let identified = (!self.is_paused).then(|| self.identify(frame, packet, names));
        let (interface, direction, names) =
            identified.unwrap_or_else(|| (self.of_source(frame.source), None, [None, None]));
        interface.received.fetch_add(1, Ordering::Relaxed);
        let packet = Packet {
            gap: interface.gap.swap(0, Ordering::Relaxed),
            interface,
            names,
            at: frame.at,
            length: frame.length,
            direction,
            bytes: Cow::Borrowed(frame.bytes),
        };
        if self.is_paused {
            return self.counts.drop_packet(&packet);
        }
        match &mut self.sink {
            Sink::Here(files, result) => {
                if result.is_ok() {
                    *result = files.write(&packet);
                }
                if result.is_ok() {
                    self.counts.written.fetch_add(1, Ordering::Relaxed);
                }
            }
            Sink::Stream(stream) => {
                if stream.write(&packet) {
                    self.counts.written.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.counts.drop_packet(&packet);
                }
            }
            Sink::Thread { sender, queued, .. } => {
                let size = frame.bytes.len() + OVERHEAD;
                let has_room = queued.load(Ordering::Relaxed) + size <= QUEUE;
                let Some(sender) = sender.as_ref().filter(|_| has_room) else {
                    return self.counts.drop_packet(&packet);
                };
                queued.fetch_add(size, Ordering::Relaxed);
                let owned = Packet { bytes: Cow::Owned(frame.bytes.to_vec()), ..packet };
                if let Err(SendError(Message::Packet(packet))) = sender.send(Message::Packet(owned)) {
                    self.counts.drop_packet(&packet);
                }
            }
        }
    }

    /// Whether frames are only counted from now on.
    pub const fn pause(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    /// Takes note of what the kernel has dropped or left out in all.
    pub fn tick(&mut self, now: Timestamp, lost: u64) {
        self.counts.lost.store(lost, Ordering::Relaxed);
        match &mut self.sink {
            Sink::Thread { sender: Some(sender), queued, .. } => {
                // Those that wait for a disk that does not answer would pile up, too.
                let is_due = self.ticked.is_none_or(|last| now.since(last) >= TICK);
                if is_due && queued.load(Ordering::Relaxed) < QUEUE {
                    self.ticked = Some(now);
                    // An error: the thread has ended, as the next frame will tell.
                    let _ = sender.send(Message::Tick(now));
                }
            }
            Sink::Stream(stream) => stream.tick(now),
            Sink::Here(..) | Sink::Thread { sender: None, .. } => {}
        }
    }

    /// Writes what waits, and completes the last file, or the stream.
    pub fn finish(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Here(files, result) => std::mem::replace(result, Ok(())).and_then(|()| files.complete()),
            Sink::Stream(stream) => {
                stream.complete(now());
                Ok(())
            }
            Sink::Thread { sender, thread, .. } => {
                *sender = None;
                let ended = thread.take().map_or(Ok(()), JoinHandle::join);
                ended.map_err(|_| io::Error::other("the thread that writes frames has panicked"))
            }
        }
    }

    /// The interface of a frame, its direction, and the names of its ends.
    fn identify(
        &mut self,
        frame: &Frame<'_>,
        packet: Option<&packet::Packet<'_>>,
        names: &Names,
    ) -> (Arc<Interface>, Option<Direction>, [Option<Name>; 2]) {
        let Some(packet) = packet else { return (self.of_source(frame.source), None, [None, None]) };
        let ends = [packet.source, packet.destination].map(|address| (address, names.pod(address, frame.at)));
        let of_ends = ends.map(|(address, pod)| match pod {
            Some(pod) => (Some((address, self.of_pod(pod).1)), Some(pod)),
            None => (self.name(address, frame.at, names).map(|name| (address, name)), None),
        });
        let direction = match (ends[0].1, ends[1].1) {
            // Of both views of a frame, a router has lowered the TTL of that of the receiver. On one bridge, both are the same.
            (Some(_), Some(_)) if INITIAL_TTLS.contains(&packet.ttl) => Some(Direction::Outbound),
            (_, Some(_)) => Some(Direction::Inbound),
            (Some(_), None) => Some(Direction::Outbound),
            (None, None) => None,
        };
        let [(source_name, source), (destination_name, destination)] = of_ends;
        let pod = if direction == Some(Direction::Inbound) { destination } else { source };
        let interface = match pod {
            Some(pod) => self.of_pod(pod).0,
            None => self.of_source(frame.source),
        };
        (interface, direction, [source_name, destination_name])
    }

    fn of_source(&mut self, source: Source) -> Arc<Interface> {
        if let Some(interface) = self.of_sources.get(&source) {
            return Arc::clone(interface);
        }
        let name = self.sources.get(usize::from(source)).cloned();
        let name = name.unwrap_or_else(|| format!("interface {source} of the files"));
        let interface = self.interface(&name, "");
        self.of_sources.insert(source, Arc::clone(&interface));
        interface
    }

    fn of_pod(&mut self, pod: &Pod) -> (Arc<Interface>, Arc<str>) {
        if let Some((interface, name)) = self.of_pods.get(&pod.uid) {
            return (Arc::clone(interface), Arc::clone(name));
        }
        if self.of_pods.len() >= REMEMBERED {
            self.of_pods.clear();
        }
        let mut description = format!("{} {}", pod.workload.kind, pod.workload.name);
        if let Some(node) = &pod.node {
            description = format!("{description} on node {node}");
        }
        let interface = self.interface(&format!("{}/{}", pod.namespace, pod.name), &description);
        let name: Arc<str> = printable(&format!("{}.{}.pod", pod.name, pod.namespace)).into();
        self.of_pods.insert(pod.uid.clone(), (Arc::clone(&interface), Arc::clone(&name)));
        (interface, name)
    }

    fn interface(&mut self, name: &str, description: &str) -> Arc<Interface> {
        self.next_id += 1;
        Arc::new(Interface {
            id: self.next_id,
            name: printable(name),
            description: printable(description),
            received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            gap: AtomicU64::new(0),
        })
    }

    /// The name of an address that is no pod's.
    fn name(&mut self, address: IpAddr, at: Timestamp, names: &Names) -> Option<Arc<str>> {
        if let Some((until, name)) = self.others.get(&address)
            && at <= *until
        {
            return name.clone();
        }
        let name = match names.owner(address, at) {
            Owner::Service(service) => Some(format!("{}.{}.svc", service.name, service.namespace)),
            Owner::Node(node) => Some(node.name.clone()),
            Owner::Pod(_) | Owner::External(_) => None,
        };
        let name: Option<Arc<str>> = name.map(|name| printable(&name).into());
        if self.others.len() >= REMEMBERED {
            self.others.clear();
        }
        self.others.insert(address, (at.plus(FRESH), name.clone()));
        name
    }
}

/// Names from a file may have any characters; a zero ends a name.
fn printable(name: &str) -> String {
    name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Writes what comes until the sender is gone. Without room, frames are dropped until there is some.
fn drain(messages: &Receiver<Message>, mut files: Files, queued: &AtomicUsize, counts: &Counts) {
    let (mut now, mut retry) = (Timestamp(0), None);
    let failed = |error: io::Error, now: Timestamp| {
        error!(%error, "frames cannot be written; retrying in {} seconds", RETRY.as_secs());
        Some(now.plus(RETRY))
    };
    for message in messages {
        match message {
            Message::Packet(packet) => {
                queued.fetch_sub(packet.bytes.len() + OVERHEAD, Ordering::Relaxed);
                let may_try = files.can_write() && retry.is_none_or(|until| until <= now);
                match may_try.then(|| files.write(&packet)) {
                    Some(Ok(())) => {
                        retry = None;
                        counts.written.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    Some(Err(error)) => retry = failed(error, now),
                    None => {}
                }
                counts.drop_packet(&packet);
            }
            Message::Tick(at) => {
                now = at;
                if let Err(error) = files.tick(now) {
                    retry = failed(error, now);
                }
            }
        }
    }
    if let Err(error) = files.complete() {
        error!(%error, "the last file of frames is not complete");
    }
}

#[cfg(test)]
mod tests;
