//! Files of packets: one, or the last ones of many.
//!
//! Each file can be read alone: it describes the interfaces and has the names that its packets need. Where files are rotated, the one that
//! is written ends with `.part`, and gets its name when it is complete.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use podtap_flow::Timestamp;

use super::{Counts, Packet, section::Section};

/// Bytes of the statistics of an interface, which come at the end.
const STATISTICS: u64 = 128;
/// Digits of the number in a file's name, at least.
const DIGITS: usize = 6;

/// When a file is full, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes of a file, at most, unless a single frame is longer.
    pub size: Option<u64>,
    /// Time from the first frame of a file, by the time of frames.
    pub every: Option<Duration>,
    /// Files, with the one that is written.
    pub files: usize,
}

impl Rotation {
    const fn is_needed(self) -> bool {
        self.size.is_some() || self.every.is_some()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Files {
    /// The name without a number.
    path: PathBuf,
    rotation: Rotation,
    counts: Arc<Counts>,
    /// Numbers of the complete files, the oldest first.
    complete: VecDeque<u64>,
    next: u64,
    current: Option<Current>,
    /// A block before it is written.
    buffer: Vec<u8>,
}

/// The file that is written.
#[derive(Debug)]
struct Current {
    out: BufWriter<File>,
    path: PathBuf,
    number: u64,
    size: u64,
    first: Timestamp,
    last: Timestamp,
    section: Section,
}

impl Current {
    /// Whether it has no packet.
    fn is_empty(&self) -> bool {
        self.section.interfaces() == 0
    }
}

impl Files {
    /// Prepares to write. Files of an earlier run count, too.
    pub fn new(path: &Path, rotation: Rotation, counts: Arc<Counts>) -> io::Result<Self> {
        let mut files = Self {
            path: path.to_owned(),
            rotation,
            counts,
            complete: VecDeque::new(),
            next: 1,
            current: None,
            buffer: Vec::new(),
        };
        if rotation.is_needed() {
            files.adopt()?;
        }
        // What cannot be written is to be known now, and without a frame the file is empty, but valid.
        files.open(Timestamp(0))?;
        Ok(files)
    }

    /// Finds files of an earlier run. The one that it was writing is complete as far as it was written.
    fn adopt(&mut self) -> io::Result<()> {
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let (name, is_part) = name.strip_suffix(".part").map_or((name, false), |name| (name, true));
            let Some(number) = self.number_of(name) else { continue };
            if is_part {
                fs::rename(self.part_of(number), self.path_of(number))?;
            }
            found.push(number);
        }
        found.sort_unstable();
        found.dedup();
        self.next = found.last().map_or(1, |last| last + 1);
        self.complete = found.into();
        Ok(())
    }

    fn stem(&self) -> (OsString, OsString) {
        let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_owned();
        (part(self.path.file_stem()), part(self.path.extension()))
    }

    fn path_of(&self, number: u64) -> PathBuf {
        let (mut name, extension) = self.stem();
        name.push(format!("-{number:0DIGITS$}"));
        if !extension.is_empty() {
            name.push(".");
            name.push(extension);
        }
        self.path.with_file_name(name)
    }

    fn part_of(&self, number: u64) -> PathBuf {
        let mut path = self.path_of(number).into_os_string();
        path.push(".part");
        path.into()
    }

    /// The number in a name that is of these files.
    fn number_of(&self, name: &str) -> Option<u64> {
        let (stem, extension) = self.stem();
        let rest = name.strip_prefix(stem.to_str()?)?.strip_prefix('-')?;
        let digits = match extension.to_str()? {
            "" => rest,
            extension => rest.strip_suffix(extension)?.strip_suffix('.')?,
        };
        let is_number = digits.len() >= DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|_| is_number)
    }

    fn open(&mut self, at: Timestamp) -> io::Result<()> {
        let number = self.next;
        let path = if self.rotation.is_needed() {
            // With room for this one.
            while self.complete.len() + 1 > self.rotation.files.max(1) {
                let Some(oldest) = self.complete.pop_front() else { break };
                fs::remove_file(self.path_of(oldest))?;
            }
            self.part_of(number)
        } else {
            self.path.clone()
        };
        let mut out = BufWriter::new(File::create(&path)?);
        self.buffer.clear();
        let section = Section::new(&mut self.buffer);
        out.write_all(&self.buffer)?;
        self.next += 1;
        self.current =
            Some(Current { out, path, number, size: self.buffer.len() as u64, first: at, last: at, section });
        Ok(())
    }

    /// Writes a packet, in the next file if this one is full.
    pub fn write(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        self.attempt(|files| files.try_write(packet))
    }

    /// Completes a file whose time is over, and has readers see what was written so far.
    pub fn tick(&mut self, now: Timestamp) -> io::Result<()> {
        self.attempt(|files| {
            files.rotate(now)?;
            files.current.as_mut().map_or(Ok(()), |current| current.out.flush())
        })
    }

    /// Ends the file that is written, with what was counted.
    pub fn complete(&mut self) -> io::Result<()> {
        self.attempt(Self::try_complete)
    }

    /// After an error, whatever it was about, the file is given up, and the next packet begins a new one.
    fn attempt(&mut self, action: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let result = action(self);
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn try_write(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        self.rotate(packet.at)?;
        if self.current.is_none() {
            self.open(packet.at)?;
        }
        self.encode(packet);
        let is_full = self.current.as_ref().is_some_and(|current| {
            let statistics = STATISTICS * (current.section.interfaces() as u64 + 1);
            let size = current.size + self.buffer.len() as u64 + statistics;
            !current.is_empty() && self.rotation.size.is_some_and(|most| size > most)
        });
        if is_full {
            self.try_complete()?;
            self.open(packet.at)?;
            self.encode(packet);
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        current.out.write_all(&self.buffer)?;
        current.size += self.buffer.len() as u64;
        if current.is_empty() {
            current.first = packet.at;
        }
        current.last = current.last.max(packet.at);
        current.section.add(packet);
        Ok(())
    }

    /// The blocks of a packet, with what the file does not have yet.
    fn encode(&mut self, packet: &Packet<'_>) {
        let Self { current: Some(current), buffer, .. } = self else { return };
        buffer.clear();
        current.section.encode(buffer, packet);
    }

    /// Completes a file whose time is over.
    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let Some(current) = &self.current else { return Ok(()) };
        let is_over = self.rotation.every.is_some_and(|every| now.since(current.first) >= every);
        if is_over && !current.is_empty() { self.try_complete() } else { Ok(()) }
    }

    fn try_complete(&mut self) -> io::Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        self.buffer.clear();
        current.section.statistics(&mut self.buffer, current.last, &self.counts);
        current.out.write_all(&self.buffer)?;
        current.out.flush()?;
        let (path, number, is_empty) = (current.path.clone(), current.number, current.is_empty());
        if self.rotation.is_needed() {
            if is_empty {
                // An empty one is not worth an earlier one.
                fs::remove_file(path)?;
            } else {
                fs::rename(path, self.path_of(number))?;
                self.complete.push_back(number);
            }
        }
        self.current = None;
        Ok(())
    }

    /// Ends a file that cannot be written on, as it is. Without rotation, the one that follows would replace it: there is none.
    fn abandon(&mut self) {
        let Some(current) = self.current.take() else { return };
        // What is left in memory cannot be written either.
        let _ = current.out.into_parts();
        if self.rotation.is_needed() && fs::rename(&current.path, self.path_of(current.number)).is_ok() {
            self.complete.push_back(current.number);
        }
    }

    /// Whether there is a file, or there may be another one.
    pub const fn can_write(&self) -> bool {
        self.current.is_some() || self.rotation.is_needed()
    }
}
