//! Where captured frames go: to a file or several, to standard output, or to a program such as Wireshark.
//!
//! A thread of its own writes: a slow disk or program does not keep this program from telling the pod that it runs.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin},
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::blocks::{Format, preamble};

/// Chunks of blocks that wait to be written, of up to a MiB.
const QUEUE: usize = 16;

/// When another file is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// When the file has so many bytes.
    pub bytes: u64,
    /// The newest files that are kept.
    pub files: usize,
}

/// Takes blocks.
pub enum Output {
    /// One file, or several.
    Files(Files),
    /// Standard output.
    Stdout,
    /// A program's standard input.
    Program(ChildStdin),
}

/// A thread that writes.
pub struct Writing {
    /// Takes whole blocks. It is closed when they are not taken any more.
    pub blocks: mpsc::Sender<Vec<u8>>,
    /// How it has ended.
    pub result: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Starts to write.
    pub fn start(mut self) -> Writing {
        let (blocks, mut receiver) = mpsc::channel::<Vec<u8>>(QUEUE);
        let (sender, result) = oneshot::channel();
        thread::spawn(move || {
            let mut outcome = Ok(());
            while outcome.is_ok()
                && let Some(blocks) = receiver.blocking_recv()
            {
                outcome = self.write(&blocks);
            }
            drop(receiver);
            // A reader that has enough is no error.
            let outcome =
                outcome.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) });
            let _ = sender.send(outcome);
        });
        Writing { blocks, result }
    }

    fn write(&mut self, blocks: &[u8]) -> io::Result<()> {
        match self {
            Self::Files(files) => files.write(blocks),
            Self::Stdout => {
                let mut output = io::stdout().lock();
                output.write_all(blocks)?;
                output.flush()
            }
            Self::Program(input) => input.write_all(blocks),
        }
    }
}

/// Tells when a program has ended.
pub fn ended(mut child: Child) -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || {
        let _ = child.wait();
        let _ = sender.send(());
    });
    receiver
}

/// A file, or with a rotation several, each of which can be read by itself.
pub struct Files {
    path: PathBuf,
    format: Format,
    rotation: Option<Rotation>,
    file: File,
    /// Bytes of the file.
    size: u64,
    number: u32,
    preamble: Vec<u8>,
    written: VecDeque<PathBuf>,
}

impl Files {
    /// Creates the first one.
    pub fn create(path: &Path, format: Format, rotation: Option<Rotation>) -> io::Result<Self> {
        let first = if rotation.is_some() { numbered(path, 1) } else { path.to_owned() };
        let file = File::create(&first)?;
        Ok(Self {
            path: path.to_owned(),
            format,
            rotation,
            file,
            size: 0,
            number: 1,
            preamble: Vec::new(),
            written: [first].into(),
        })
    }

    fn write(&mut self, blocks: &[u8]) -> io::Result<()> {
        if let Some(rotation) = self.rotation {
            if self.size > 0 && self.size + blocks.len() as u64 > rotation.bytes {
                self.next(rotation.files)?;
            }
            preamble(self.format, blocks, &mut self.preamble);
        }
        self.size += blocks.len() as u64;
        self.file.write_all(blocks)
    }

    fn next(&mut self, files: usize) -> io::Result<()> {
        self.number += 1;
        let path = numbered(&self.path, self.number);
        self.file = File::create(&path)?;
        self.file.write_all(&self.preamble)?;
        self.size = self.preamble.len() as u64;
        self.written.push_back(path);
        while self.written.len() > files {
            if let Some(oldest) = self.written.pop_front() {
                fs::remove_file(oldest)?;
            }
        }
        Ok(())
    }
}

/// `web.pcapng` becomes `web-000001.pcapng`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let name = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let stem = name(path.file_stem());
    let extension = path.extension().map(|extension| format!(".{}", name(Some(extension)))).unwrap_or_default();
    path.with_file_name(format!("{stem}-{number:06}{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_files_are_kept_and_each_has_a_beginning() {
        let directory = std::env::temp_dir().join(format!("podtap-rotation-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("it can be created");
        let rotation = Rotation { bytes: 100, files: 2 };
        let path = directory.join("web.pcap");
        let mut files = Files::create(&path, Format::Pcap, Some(rotation)).expect("it can be created");
        let mut first = vec![7; 24];
        first.extend([1; 50]);
        files.write(&first).expect("it can be written");
        for value in 2..4 {
            files.write(&[value; 60]).expect("it can be written");
        }
        let mut names: Vec<_> = fs::read_dir(&directory)
            .expect("it exists")
            .map(|entry| entry.expect("it can be read").file_name().into_string().expect("it is text"))
            .collect();
        names.sort();
        assert_eq!(names, ["web-000002.pcap", "web-000003.pcap"]);
        let last = fs::read(directory.join("web-000003.pcap")).expect("it can be read");
        assert_eq!(last, [vec![7; 24], vec![3; 60]].concat());
        fs::remove_dir_all(&directory).expect("it can be removed");
    }
}
