//! Capture files, and the frames that tcpdump and tshark select from them.

use std::{
    fs,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crate::capture::{Frame, FrameDirection};

/// A capture file, deleted when dropped.
pub struct File(PathBuf);

impl File {
    /// Writes frames to a file. The timestamp of a frame is its number, in seconds.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn of(frames: &[Vec<u8>]) -> Self {
        Self::timed((0..).map(Duration::from_secs).zip(frames))
    }

    /// Writes frames, with their times since 1970, to a file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn timed<Frame: AsRef<[u8]>>(frames: impl Iterator<Item = (Duration, Frame)>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("podtap-{}-{number}.pcap", process::id()));
        let mut file = BufWriter::new(fs::File::create(&path).expect("a file can be created"));
        let mut write = |words: &[u32], bytes: &[u8]| {
            let words = words.iter().try_for_each(|word| file.write_all(&word.to_le_bytes()));
            words.and_then(|()| file.write_all(bytes)).expect("a file can be written");
        };
        write(&[0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 1 << 18, 1], &[]);
        for (at, frame) in frames {
            let length = u32::try_from(frame.as_ref().len()).expect("frames are short");
            let seconds = u32::try_from(at.as_secs()).expect("the seconds are few");
            write(&[seconds, at.subsec_micros(), length, length], frame.as_ref());
        }
        file.flush().expect("a file can be written");
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The frames of a capture file in this machine's byte order, as frames that were sent.
///
/// # Panics
/// When the file is incomplete.
#[must_use]
pub fn frames(file: &[u8]) -> Vec<Frame> {
    let (mut rest, mut found) = (file.get(24..).unwrap_or_default(), Vec::new());
    while !rest.is_empty() {
        let length = rest[8..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)) as usize;
        let (frame, behind) = rest[16..].split_at(length);
        found.push(Frame { direction: FrameDirection::Out, bytes: frame.to_vec(), at: Instant::now() });
        rest = behind;
    }
    found
}

/// The standard output of a program.
///
/// # Panics
/// When the program fails.
pub fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // libpcap's optimizer found that no frame can match.
    if output.stderr.ends_with(b"expression rejects all packets\n") {
        return Vec::new();
    }
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Numbers of the frames of a file that tcpdump selects.
///
/// # Panics
/// When tcpdump fails.
pub fn tcpdump(path: &Path, expression: &str) -> Vec<usize> {
    let bytes = output(Command::new("tcpdump").arg("-r").arg(path).args(["-w", "-", expression]));
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
    let (mut at, mut found) = (24, Vec::new());
    while at < bytes.len() {
        found.push(word(at));
        at += 16 + word(at + 8);
    }
    found
}

/// Numbers of the frames of a file that tshark selects.
///
/// # Panics
/// When tshark fails.
pub fn tshark(path: &Path, filter: &str) -> Vec<usize> {
    let lines = run_tshark(path, &["-Y", filter, "-e", "frame.number"]);
    lines.iter().map(|line| line.parse::<usize>().expect("a number") - 1).collect()
}

/// The values of fields of each frame of a file, by tshark. An empty text: the frame has no such field; of several, the first.
///
/// # Panics
/// When tshark fails.
#[must_use]
pub fn fields<const N: usize>(path: &Path, names: [&str; N]) -> Vec<[String; N]> {
    let names: Vec<&str> = names.iter().flat_map(|name| ["-e", name]).collect();
    let lines = run_tshark(path, &[&["-E", "occurrence=f"], &names[..]].concat());
    let values = |line: &String| {
        let mut values = line.split('\t').map(str::to_owned);
        std::array::from_fn(|_| values.next().unwrap_or_default())
    };
    lines.iter().map(values).collect()
}

fn run_tshark(path: &Path, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-T", "fields"]);
    let text = String::from_utf8(output(command.args(arguments))).expect("the output is text");
    text.lines().map(str::to_owned).collect()
}
