//! What `--keep` keeps of a stream while there is no client: files of a directory, of which the oldest make room for new frames.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crate::output::{
    pcapng::{Kind, whole},
    window::{Progress, Window},
};

/// Bytes of a file, at most. Several blocks have room in it.
const FILE: usize = 1 << 20;
/// The least that can be kept.
pub const LEAST: u64 = 4 * FILE as u64;

/// See the module.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    /// Bytes of all files, at most.
    room: u64,
    /// The places of their first bytes. Each begins with a block.
    files: VecDeque<u64>,
    /// The newest file.
    newest: Option<File>,
    /// Before it, the client has everything, or what it does not have is lost.
    start: u64,
    end: u64,
    /// The blocks of files that were removed without which the others cannot be read.
    preamble: Vec<u8>,
    /// Bytes before they are written.
    buffer: Vec<u8>,
}

/// A part of the stream that can be read alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// What precedes the part.
    pub preamble: Vec<u8>,
    /// Where it begins.
    pub at: u64,
}

impl Spool {
    /// An empty one. What cannot be written is to be known now.
    pub fn new(directory: &Path, room: u64) -> io::Result<Self> {
        let mut spool = Self {
            directory: directory.to_owned(),
            room,
            files: VecDeque::new(),
            newest: None,
            start: 0,
            end: 0,
            preamble: Vec::new(),
            buffer: Vec::with_capacity(FILE),
        };
        spool.next()?;
        Ok(spool)
    }

    /// How far it is, if this is how far the window is that it is filled from.
    pub fn progress(&self, window: Progress) -> Progress {
        let is_complete = window.is_complete && window.end == self.end;
        Progress { start: self.start, end: self.end, is_complete, ..window }
    }

    /// Takes what waits in the window, as much as a file has room for. Without room, old frames are lost if they may be; otherwise, it stays
    /// there. Returns whether more may be taken at once.
    pub fn fill(&mut self, window: &Window, may_lose: bool) -> io::Result<bool> {
        self.buffer.clear();
        window.read(self.end, FILE, &mut self.buffer);
        let is_full = self.buffer.len() == FILE;
        let length = whole(&self.buffer).map(|(_, block)| block.len()).sum();
        self.buffer.truncate(length);
        if self.buffer.is_empty() {
            return Ok(false);
        }
        while self.files.front().is_some_and(|first| self.end + length as u64 - first > self.room) {
            if !may_lose {
                return Ok(false);
            }
            window.lose(self.remove()?);
        }
        self.write()?;
        window.confirm(self.end);
        Ok(is_full)
    }

    /// Writes what is in the buffer.
    fn write(&mut self) -> io::Result<()> {
        let size = self.files.back().map_or(0, |newest| self.end - newest);
        if size > 0 && size + self.buffer.len() as u64 > FILE as u64 {
            self.next()?;
        }
        if let (Some(file), Some(start)) = (&self.newest, self.files.back()) {
            // What an earlier attempt has written is written again.
            file.write_all_at(&self.buffer, self.end - start)?;
        }
        self.end += self.buffer.len() as u64;
        Ok(())
    }

    /// Begins a file.
    fn next(&mut self) -> io::Result<()> {
        self.newest = Some(File::create_new(self.path(self.end))?);
        self.files.push_back(self.end);
        Ok(())
    }

    /// Removes the oldest file. Returns how many frames the client does not have of it, by interface.
    fn remove(&mut self) -> io::Result<BTreeMap<u32, u64>> {
        let mut lost = BTreeMap::new();
        let Some(first) = self.files.front().copied() else { return Ok(lost) };
        let path = self.path(first);
        let bytes = fs::read(&path)?;
        fs::remove_file(path)?;
        self.files.pop_front();
        let next = self.files.front().copied().unwrap_or(self.end);
        let mut at = first;
        // Behind it, an attempt may have failed.
        for (kind, block) in whole(&bytes) {
            at += block.len() as u64;
            if at > next {
                break;
            }
            match kind {
                Kind::Preamble => self.preamble.extend(block),
                Kind::Packet(interface) if at > self.start => *lost.entry(interface).or_default() += 1,
                Kind::Packet(_) | Kind::Statistics => {}
            }
        }
        self.start = self.start.max(next);
        Ok(lost)
    }

    /// Forgets what the client has confirmed.
    pub fn confirm(&mut self, until: u64) -> io::Result<()> {
        self.start = self.start.max(until.min(self.end));
        while self.files.get(1).is_some_and(|second| *second <= self.start) {
            self.remove()?;
        }
        Ok(())
    }

    /// What a new client gets: from the first block on that was not confirmed whole.
    pub fn section(&mut self) -> io::Result<Section> {
        let mut preamble = self.preamble.clone();
        let mut at = self.start;
        if let Some(first) = self.files.front() {
            let bytes = fs::read(self.path(*first))?;
            at = *first;
            for (kind, block) in whole(&bytes) {
                let end = at + block.len() as u64;
                if end > self.start {
                    break;
                }
                at = end;
                if kind == Kind::Preamble {
                    preamble.extend(block);
                }
            }
        }
        self.start = at;
        Ok(Section { preamble, at })
    }

    /// Up to so many bytes from a place on, of one file.
    pub fn read(&self, from: u64, most: usize, out: &mut Vec<u8>) -> io::Result<()> {
        let number = self.files.partition_point(|start| *start <= from);
        let Some(start) = number.checked_sub(1).and_then(|number| self.files.get(number)) else { return Ok(()) };
        let end = self.files.get(number).copied().unwrap_or(self.end);
        let length = usize::try_from(end - from.min(end)).unwrap_or(usize::MAX).min(most);
        let before = out.len();
        out.resize(before + length, 0);
        File::open(self.path(*start))?.read_exact_at(&mut out[before..], from - start)
    }

    fn path(&self, start: u64) -> PathBuf {
        self.directory.join(format!("{start:020}"))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        for start in &self.files {
            // An error: its directory is gone, too.
            let _ = fs::remove_file(self.path(*start));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERFACE: u32 = 1;
    const PACKET: u32 = 6;
    /// Of a packet: as many have room in a file.
    const SIZE: usize = FILE / 8;

    /// A block of this kind, of an interface, with a number.
    fn block(kind: u32, interface: u32, number: u32, size: usize) -> Vec<u8> {
        let length = u32::try_from(size).expect("short");
        let mut block: Vec<u8> = [kind, length, interface, number].into_iter().flat_map(u32::to_le_bytes).collect();
        block.resize(size - 4, 0);
        block.extend(length.to_le_bytes());
        block
    }

    /// A directory that is removed when this is dropped, and a spool in it.
    struct Scene {
        directory: PathBuf,
        window: Window,
        spool: Option<Spool>,
    }

    impl Scene {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("podtap-spool-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).expect("a directory");
            let spool = Some(Spool::new(&directory, LEAST).expect("it can be written"));
            Self { directory, window: Window::new().expect("a descriptor"), spool }
        }

        fn spool(&mut self) -> &mut Spool {
            self.spool.as_mut().expect("it is not dropped")
        }

        fn append(&mut self, block: &[u8], may_lose: bool) {
            assert!(self.window.append(block));
            let Self { spool: Some(spool), window, .. } = self else { panic!("it is not dropped") };
            while spool.fill(window, may_lose).expect("it can be written") {}
        }

        /// Packets with these numbers, after the interface that the fourth one is the first one of.
        fn packets(&mut self, numbers: std::ops::Range<u32>, may_lose: bool) {
            for number in numbers {
                if number % 4 == 0 {
                    self.append(&block(INTERFACE, number / 4, 0, 16), may_lose);
                }
                self.append(&block(PACKET, number / 4, number, SIZE), may_lose);
            }
        }

        /// What follows, as the kinds and numbers of blocks.
        fn rest(&mut self, mut from: u64) -> Vec<u32> {
            let mut bytes = Vec::new();
            let spool = self.spool();
            loop {
                let before = bytes.len();
                spool.read(from, 100_000, &mut bytes).expect("it can be read");
                from += (bytes.len() - before) as u64;
                if bytes.len() == before {
                    break;
                }
            }
            numbers(&bytes)
        }
    }

    /// Of packets, their numbers, and of interfaces, theirs plus 1000.
    fn numbers(bytes: &[u8]) -> Vec<u32> {
        let word = |block: &[u8], at: usize| u32::from_le_bytes(*block[at..].first_chunk().expect("a block"));
        whole(bytes)
            .map(|(kind, block)| if kind == Kind::Preamble { 1000 + word(block, 8) } else { word(block, 12) })
            .collect()
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    #[test]
    fn the_newest_frames_are_kept_with_what_they_need() {
        let mut scene = Scene::new("newest");
        scene.packets(0..20, true);
        assert_eq!(scene.spool().section().expect("it is kept"), Section { preamble: Vec::new(), at: 0 });
        assert!(scene.window.take_lost().is_empty());
        // Of each file but the last one, seven packets.
        scene.packets(20..50, true);
        let lost = scene.window.take_lost();
        assert_eq!(lost.values().sum::<u64>(), 21, "{lost:?}");
        assert_eq!((lost[&0], lost[&5]), (4, 1));
        let Section { preamble, at } = scene.spool().section().expect("it is kept");
        assert_eq!(numbers(&preamble), (1000..1006).collect::<Vec<_>>());
        let rest = scene.rest(at);
        assert_eq!(
            rest.iter().filter(|number| **number < 1000).copied().collect::<Vec<_>>(),
            (21..50).collect::<Vec<_>>()
        );
        assert!(rest.starts_with(&[21, 22, 23, 1006, 24]), "{rest:?}");
        let size: u64 = fs::read_dir(&scene.directory)
            .expect("it exists")
            .map(|entry| entry.and_then(|entry| entry.metadata()).expect("a file").len())
            .sum();
        assert!(size <= LEAST, "{size}");
    }

    #[test]
    fn a_client_continues_behind_what_was_confirmed() {
        let mut scene = Scene::new("confirmed");
        scene.packets(0..12, true);
        // Ten packets, and a part of the next one.
        let ten = 10 * SIZE as u64 + 3 * 16;
        scene.spool().confirm(ten + 5).expect("it can be removed");
        let Section { preamble, at } = scene.spool().section().expect("it is kept");
        assert_eq!((numbers(&preamble), at), (vec![1000, 1001, 1002], ten));
        assert_eq!(scene.rest(at), [10, 11]);
        // What the client has is not lost, though it shares a file with what is.
        scene.packets(12..50, true);
        assert_eq!(scene.window.take_lost().values().sum::<u64>(), 11);
    }

    #[test]
    fn what_may_not_be_lost_waits_in_the_window() {
        let mut scene = Scene::new("full");
        scene.packets(0..40, false);
        assert!(scene.window.take_lost().is_empty());
        let Progress { start, end, .. } = scene.window.progress();
        assert!(start > 3 * FILE as u64 && start < end, "{start} to {end}");
        scene.spool().confirm(start).expect("it can be removed");
        scene.packets(40..41, false);
        let Section { at, .. } = scene.spool().section().expect("it is kept");
        assert_eq!(at, start);
        assert_eq!(scene.rest(at).last(), Some(&40));
    }

    #[test]
    fn a_file_is_filled_at_once_however_much_waits() {
        let mut scene = Scene::new("much");
        for number in 0..20 {
            assert!(scene.window.append(&block(PACKET, 0, number, SIZE)));
        }
        for taken in [8, 16, 20] {
            let Scene { spool: Some(spool), window, .. } = &mut scene else { panic!("it is not dropped") };
            assert_eq!(spool.fill(window, true).expect("it can be written"), taken < 20);
            assert_eq!(scene.window.progress().start, taken * SIZE as u64);
        }
    }

    #[test]
    fn files_are_removed_in_the_end() {
        let mut scene = Scene::new("end");
        scene.packets(0..20, true);
        scene.spool = None;
        assert_eq!(fs::read_dir(&scene.directory).expect("it exists").count(), 0);
    }
}
