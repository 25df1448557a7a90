//! The frames of a capture, on the way to its client: a bounded queue, which capturing never waits for.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    figures::OfSensor,
    filter::Program,
    rpcap::{self, HEADER, PACKET_HEADER, Statistics},
};
use crate::capture::CapturedFrame;

/// Bytes that are sent at once, if no frame is longer.
const CHUNK: usize = 64 << 10;
/// Longest frame that is captured, whatever a client asks for (`MAXIMUM_SNAPLEN` of libpcap).
const MAX_SNAPSHOT: u32 = 262_144;

/// Messages with frames.
#[derive(Debug)]
pub struct Chunk {
    pub messages: Vec<u8>,
    pub frames: u64,
}

/// The queue of a capture.
#[derive(Debug)]
pub struct Feed {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes that wait at most.
    room: usize,
    figures: OfSensor,
}

#[derive(Debug)]
struct State {
    program: Program,
    snapshot: u32,
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// Frames that were queued.
    queued: u64,
    statistics: Statistics,
    is_over: bool,
}

impl Feed {
    /// `snapshot`: bytes of each frame, 0 for all of them.
    pub fn new(program: Program, snapshot: u32, room: usize, figures: OfSensor) -> Self {
        let snapshot = if snapshot == 0 { MAX_SNAPSHOT } else { snapshot.min(MAX_SNAPSHOT) };
        let state = State {
            program,
            snapshot,
            chunks: VecDeque::new(),
            bytes: 0,
            queued: 0,
            statistics: Statistics::default(),
            is_over: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), room, figures }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues the frames that pass the filter, as far as there is room.
    pub fn offer(&self, frames: &[CapturedFrame<'_>]) {
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        for frame in frames {
            let passed = state.program.run(frame.bytes, frame.length).min(state.snapshot) as usize;
            if passed == 0 {
                continue;
            }
            state.statistics.passed += 1;
            let bytes = &frame.bytes[..frame.bytes.len().min(passed)];
            let length = HEADER + PACKET_HEADER + bytes.len();
            if state.bytes + length > self.room {
                state.statistics.dropped += 1;
                self.figures.no_room.inc();
                continue;
            }
            state.bytes += length;
            state.queued += 1;
            let number = state.queued;
            if state.chunks.back().is_none_or(|chunk| chunk.messages.len() + length > CHUNK) {
                let messages = Vec::with_capacity(CHUNK.max(length));
                state.chunks.push_back(Chunk { messages, frames: 0 });
            }
            if let Some(chunk) = state.chunks.back_mut() {
                rpcap::packet(frame.at, frame.length, bytes, number, &mut chunk.messages);
                chunk.frames += 1;
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The next frames, as soon as there are some. `None`: the capture is over.
    pub fn next(&self) -> Option<Chunk> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                state.bytes -= chunk.messages.len();
                return Some(chunk);
            }
            if state.is_over {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().chunks.is_empty()
    }

    /// Whether it takes no more frames.
    pub fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// Counts frames that were sent, and those that could not be.
    pub fn count(&self, sent: u64, failed: u64) {
        self.figures.sent.inc_by(sent);
        self.figures.failed.inc_by(failed);
        let statistics = &mut self.lock().statistics;
        statistics.sent += sent;
        statistics.dropped += failed;
    }

    pub fn statistics(&self) -> Statistics {
        self.lock().statistics
    }

    /// Of the frames that come from now on.
    pub fn set_filter(&self, program: Program) {
        self.lock().program = program;
    }

    /// Takes no more frames. Those that wait are still sent.
    pub fn finish(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    /// Takes no more frames, and drops those that wait.
    pub fn stop(&self) {
        let mut state = self.lock();
        let waiting: u64 = state.chunks.drain(..).map(|chunk| chunk.frames).sum();
        state.is_over = true;
        state.bytes = 0;
        state.statistics.dropped += waiting;
        drop(state);
        self.figures.failed.inc_by(waiting);
        self.changed.notify_all();
    }
}

/// All captures.
#[derive(Debug, Default)]
pub struct Feeds {
    feeds: Mutex<Vec<Arc<Feed>>>,
    removed: Condvar,
}

impl Feeds {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Feed>>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers it all frames from now on.
    pub fn subscribe(self: &Arc<Self>, feed: Feed) -> Subscription {
        let feed = Arc::new(feed);
        self.lock().push(Arc::clone(&feed));
        Subscription { feeds: Arc::clone(self), feed }
    }

    /// See [`Feed::offer`].
    pub fn offer(&self, frames: &[CapturedFrame<'_>]) {
        for feed in &*self.lock() {
            feed.offer(frames);
        }
    }

    /// Ends all captures, and returns when what waits was sent, or at the deadline: how many frames were not.
    pub fn finish(&self, deadline: Instant) -> u64 {
        let mut feeds = self.lock();
        for feed in &*feeds {
            feed.finish();
        }
        while !feeds.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break;
            }
            feeds = self.removed.wait_timeout(feeds, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let not_sent = |feed: &Arc<Feed>| {
            // Those that are being sent are no longer in the queue.
            let Statistics { passed, dropped, sent, .. } = feed.statistics();
            feed.stop();
            passed - dropped - sent
        };
        feeds.iter().map(not_sent).sum()
    }
}

/// A feed that is offered all frames. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Subscription {
    feeds: Arc<Feeds>,
    pub feed: Arc<Feed>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.stop();
        self.feeds.lock().retain(|other| !Arc::ptr_eq(other, &self.feed));
        self.feeds.removed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use podtap_flow::Timestamp;

    use super::*;
    use crate::sensor::rpcap::packets;

    const SIZE: usize = HEADER + PACKET_HEADER;

    fn frame(bytes: &[u8]) -> CapturedFrame<'_> {
        CapturedFrame { at: Timestamp(0), length: 1514, bytes, interface: 1, follows_drops: false }
    }

    fn feed(snapshot: u32, room: usize) -> Feed {
        Feed::new(Program::default(), snapshot, room, OfSensor::default())
    }

    /// The length, length on the wire, and number of queued frames.
    fn queued(feed: &Feed) -> Vec<[u32; 3]> {
        feed.finish();
        let chunks: Vec<Chunk> = std::iter::from_fn(|| feed.next()).collect();
        let word = |packet: &[u8], at: usize| u32::from_be_bytes(*packet[at..].first_chunk().expect("a word"));
        let of = |packet| [16, 20, 24].map(|at| word(packet, at));
        chunks.iter().flat_map(|chunk| packets(&chunk.messages)).map(of).collect()
    }

    #[test]
    fn what_finds_no_room_is_counted_and_the_rest_is_numbered_without_gaps() {
        let feed = feed(0, 2 * SIZE + 6);
        feed.offer(&[frame(b"one"), frame(b"three"), frame(b"two"), frame(b"")]);
        assert_eq!((feed.figures.no_room.get(), feed.statistics().passed), (2, 4));
        let chunk = feed.next().expect("it waits");
        feed.count(chunk.frames, 0);
        assert_eq!((chunk.frames, packets(&chunk.messages).count()), (2, 2));
        // There is room again.
        feed.offer(&[frame(b"three")]);
        assert_eq!(queued(&feed), [[5, 1514, 3]]);
        assert_eq!(feed.statistics(), Statistics { passed: 5, dropped_by_kernel: 0, dropped: 2, sent: 2 });
    }

    #[test]
    fn frames_are_truncated_to_what_the_client_and_its_filter_ask_for() {
        let feed = feed(4, 1 << 20);
        feed.offer(&[frame(b"longer"), frame(b"abc")]);
        // Returns 2, and then 0.
        feed.set_filter(Program::decode(&[[0, 6, 0, 0, 0, 0, 0, 2]]).expect("it is valid"));
        feed.offer(&[frame(b"longer")]);
        feed.set_filter(Program::decode(&[[0, 6, 0, 0, 0, 0, 0, 0]]).expect("it is valid"));
        feed.offer(&[frame(b"longer")]);
        assert_eq!(queued(&feed), [[4, 1514, 1], [3, 1514, 2], [2, 1514, 3]]);
        assert_eq!(feed.statistics().passed, 3, "what the filter rejects is no frame of the capture");
    }

    #[test]
    fn a_capture_that_is_stopped_sends_nothing_more() {
        let feed = feed(0, 1 << 20);
        feed.offer(&[frame(b"one"), frame(b"two")]);
        feed.stop();
        feed.offer(&[frame(b"three")]);
        assert!(feed.next().is_none() && feed.is_empty() && feed.is_over());
        feed.stop();
        assert_eq!(feed.figures.failed.get(), 2, "each is counted once");
        assert_eq!(feed.statistics(), Statistics { passed: 2, dropped_by_kernel: 0, dropped: 2, sent: 0 });
    }

    #[test]
    fn what_was_not_sent_by_the_deadline_is_counted() {
        let feeds = Arc::new(Feeds::default());
        let subscription = feeds.subscribe(feed(0, 2 * SIZE + 6));
        // There is no room for the third one.
        feeds.offer(&[frame(b"one"), frame(b"two"), frame(b"three")]);
        assert_eq!(feeds.finish(Instant::now()), 2);
        assert_eq!((subscription.feed.figures.failed.get(), subscription.feed.figures.no_room.get()), (2, 1));
        drop(subscription);
        // What a client takes before the deadline is not.
        let subscription = feeds.subscribe(feed(0, 1 << 20));
        feeds.offer(&[frame(b"one")]);
        let taken = subscription.feed.next().expect("it waits").frames;
        subscription.feed.count(taken, 0);
        assert_eq!(feeds.finish(Instant::now()), 0);
    }

    #[test]
    fn one_client_that_does_not_read_costs_the_others_nothing() {
        let feeds = Arc::new(Feeds::default());
        let (slow, other) = (feeds.subscribe(feed(0, SIZE + 3)), feeds.subscribe(feed(0, 1 << 20)));
        for _ in 0..10_000 {
            feeds.offer(&[frame(b"one")]);
        }
        assert_eq!((queued(&slow.feed).len(), queued(&other.feed).len()), (1, 10_000));
        drop((slow, other));
        assert!(feeds.lock().is_empty());
    }
}
