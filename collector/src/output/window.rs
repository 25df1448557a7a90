//! A stream of bytes for one reader that may come back: what it has not confirmed is kept in memory, as far as there is room.

use std::{
    collections::{BTreeMap, VecDeque},
    io, mem,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Bytes that are kept at most, beside those of the end.
pub const ROOM: usize = 16 << 20;

/// What is kept of a stream.
#[derive(Debug)]
pub struct Window {
    state: Mutex<State>,
    changed: EventFd,
}

#[derive(Debug, Default)]
struct State {
    /// Place of the first byte that is kept.
    start: u64,
    bytes: VecDeque<u8>,
    /// See [`Window::lose`].
    lost: BTreeMap<u32, u64>,
    is_complete: bool,
    is_urgent: bool,
}

impl State {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// What a reader has to know of it. See the methods of [`Window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How far the reader has confirmed.
    pub start: u64,
    /// How far it was written.
    pub end: u64,
    /// Whether nothing follows.
    pub is_complete: bool,
    /// Whether a reader that is gone is not waited for.
    pub is_urgent: bool,
}

impl Window {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State { bytes: VecDeque::with_capacity(ROOM), ..State::default() }),
            changed: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends bytes, all or none. Returns whether there was room.
    pub fn append(&self, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        let has_room = state.bytes.len() + bytes.len() <= ROOM;
        if has_room {
            state.bytes.extend(bytes);
        }
        has_room
    }

    /// Appends the last bytes, for which there is always room.
    pub fn complete(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.bytes.extend(bytes);
        state.is_complete = true;
        drop(state);
        self.notify();
    }

    /// From now on, a reader that is gone is not waited for.
    pub fn hurry(&self) {
        self.lock().is_urgent = true;
        self.notify();
    }

    /// Takes note of frames that were read, and lost then: how many, by the place of their interface in the section.
    pub fn lose(&self, frames: BTreeMap<u32, u64>) {
        let mut state = self.lock();
        for (interface, count) in frames {
            *state.lost.entry(interface).or_default() += count;
        }
    }

    /// What was lost since the last call.
    pub fn take_lost(&self) -> BTreeMap<u32, u64> {
        mem::take(&mut self.lock().lost)
    }

    /// Wakes the thread that reads.
    pub fn notify(&self) {
        // An error: the counter is full, and the thread is woken all the same.
        let _ = self.changed.write(1);
    }

    /// To be called when the descriptor is readable.
    pub fn woken(&self) {
        // An error: another call was faster.
        let _ = self.changed.read();
    }

    pub fn progress(&self) -> Progress {
        let state = self.lock();
        let State { start, is_complete, is_urgent, .. } = *state;
        Progress { start, end: state.end(), is_complete, is_urgent }
    }

    /// Forgets what the reader has confirmed.
    pub fn confirm(&self, until: u64) {
        let mut state = self.lock();
        let count = usize::try_from(until.saturating_sub(state.start)).unwrap_or(usize::MAX).min(state.bytes.len());
        state.bytes.drain(..count);
        state.start += count as u64;
    }

    /// Up to so many bytes from a place in the window on.
    pub fn read(&self, from: u64, most: usize, out: &mut Vec<u8>) {
        let state = self.lock();
        let (first, second) = state.bytes.as_slices();
        let from = usize::try_from(from - state.start.min(from)).unwrap_or(usize::MAX);
        let until = from.saturating_add(most);
        let part = |bytes: &'_ [u8], from: usize, until: usize| {
            let until = until.min(bytes.len());
            from.min(until)..until
        };
        out.extend(&first[part(first, from, until)]);
        let behind = |at: usize| at.saturating_sub(first.len());
        out.extend(&second[part(second, behind(from), behind(until))]);
    }
}

impl AsFd for Window {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(window: &Window, from: u64, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        window.read(from, most, &mut out);
        out
    }

    #[test]
    fn what_is_not_confirmed_can_be_read_again() {
        let window = Window::new().expect("a descriptor");
        assert!(window.append(b"abcdef"));
        assert_eq!((read(&window, 0, 4), read(&window, 4, 4)), (b"abcd".to_vec(), b"ef".to_vec()));
        window.confirm(3);
        assert_eq!((read(&window, 3, 2), read(&window, 6, 9)), (b"de".to_vec(), Vec::new()));
        let progress = window.progress();
        assert_eq!((progress.start, progress.end, progress.is_complete), (3, 6, false));
        // An older number that is late.
        window.confirm(1);
        assert_eq!(window.progress(), progress);
    }

    #[test]
    fn what_finds_no_room_is_not_kept_in_part() {
        let window = Window::new().expect("a descriptor");
        let block: Vec<u8> = (0..ROOM / 4).map(|number| u8::try_from(number % 251).expect("a byte")).collect();
        for _ in 0..4 {
            assert!(window.append(&block));
        }
        assert!(!window.append(b"x"), "it is full");
        window.confirm(block.len() as u64 + 1);
        assert!(window.append(&block), "it has room again, behind the end of its memory");
        assert!(window.append(b"x") && !window.append(b"x"));
        let all = [&block[1..], &block, &block, &block, b"x"].concat();
        assert_eq!(read(&window, block.len() as u64 + 1, usize::MAX), all);
        let across = 4 * block.len() - 5;
        assert_eq!(read(&window, across as u64, 10), all[across - block.len() - 1..][..10]);
        window.complete(b"the end");
        assert_eq!(read(&window, 5 * block.len() as u64 + 1, 99), b"the end");
        assert!(window.progress().is_complete);
    }
}
