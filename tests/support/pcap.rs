//! Capture files, and the frames that tcpdump and tshark select from them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut bytes = Vec::new();
        for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 1 << 18, 1] {
            bytes.extend_from_slice(&u32::to_le_bytes(word));
        }
        for (number, frame) in frames.iter().enumerate() {
            let length = u32::try_from(frame.len()).expect("frames are short");
            for word in [u32::try_from(number).expect("the frames are few"), 0, length, length] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(frame);
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("podtap-{}-{number}.pcap", process::id()));
        fs::write(&path, bytes).expect("a file can be written");
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
