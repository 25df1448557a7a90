//! Where captured frames go: to a file or several, to standard output, or to a program such as Wireshark.
//!
//! A thread of its own writes: a slow disk or program does not keep this program from telling the pod that it runs.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tokio::sync::{Notify, mpsc, oneshot};

use super::blocks::{Format, preamble};
use crate::console::warn;

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
    /// To the thread. None: it is not to wait for more.
    blocks: Option<mpsc::UnboundedSender<Vec<u8>>>,
    shared: Arc<Shared>,
    /// How it has ended.
    result: Option<oneshot::Receiver<io::Result<()>>>,
}

/// What the thread tells.
#[derive(Default)]
struct Shared {
    /// Bytes that were written.
    written: AtomicU64,
    progress: Notify,
}

impl Writing {
    /// Has blocks written. How many wait, the pod bounds: it sends no more than 16 MiB that were not confirmed.
    pub fn send(&self, blocks: Vec<u8>) {
        if let Some(sender) = self.blocks.as_ref().filter(|_| !blocks.is_empty()) {
            // Otherwise, it has ended, as `closed` tells.
            let _ = sender.send(blocks);
        }
    }

    /// Bytes that were written.
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Acquire)
    }

    /// Waits until more was written.
    pub async fn progress(&self) {
        self.shared.progress.notified().await;
    }

    /// Waits until blocks are not taken any more.
    pub async fn closed(&self) {
        if let Some(blocks) = &self.blocks {
            blocks.closed().await;
        }
    }

    /// Has the rest written, and returns the first error.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.blocks = None;
        match self.result.take() {
            Some(result) => {
                result.await.unwrap_or_else(|_| Err(io::Error::other("the thread that writes has panicked")))
            }
            None => Ok(()),
        }
    }
}

impl Output {
    /// Starts to write.
    pub fn start(mut self) -> Writing {
        let (blocks, mut receiver) = mpsc::unbounded_channel::<Vec<u8>>();
        let (sender, result) = oneshot::channel();
        let shared = Arc::<Shared>::default();
        let progress = Arc::clone(&shared);
        thread::spawn(move || {
            let mut outcome = Ok(());
            while outcome.is_ok()
                && let Some(blocks) = receiver.blocking_recv()
            {
                outcome = self.write(&blocks);
                // What was not written, the pod is to keep.
                if outcome.is_ok() {
                    progress.written.fetch_add(blocks.len() as u64, Ordering::Release);
                }
                progress.progress.notify_one();
            }
            // A program's input ends.
            drop((receiver, self));
            // A reader that has enough is no error.
            let outcome =
                outcome.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) });
            let _ = sender.send(outcome);
        });
        Writing { blocks: Some(blocks), shared, result: Some(result) }
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

/// Tells when a program has ended, and how. None: that is not known.
pub fn ended(mut child: Child) -> oneshot::Receiver<Option<ExitStatus>> {
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || {
        let _ = sender.send(child.wait().ok());
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
            // It may have been moved, or be open in another program.
            if let Some(oldest) = self.written.pop_front()
                && let Err(error) = fs::remove_file(&oldest)
            {
                warn(&format!("{} cannot be removed: {error}", oldest.display()));
            }
        }
        Ok(())
    }
}

/// A file with something in it that would be replaced.
pub fn replaced(path: &Path, rotation: Option<Rotation>) -> Option<PathBuf> {
    let mut paths = vec![path.to_owned()];
    if rotation.is_some() {
        // Any number is reached some time.
        let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let names =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| path.with_file_name(entry.file_name()));
        paths = names.filter(|name| number(path, name).is_some()).collect();
    }
    paths.into_iter().find(|path| fs::metadata(path).is_ok_and(|file| file.len() > 0))
}

/// The number in the name of a file of a rotation.
fn number(path: &Path, file: &Path) -> Option<u32> {
    let number = file.file_stem()?.to_str()?.rsplit_once('-')?.1.parse().ok()?;
    (numbered(path, number) == file).then_some(number)
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

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn what_cannot_be_written_does_not_count_as_written() {
        for (path, written, is_ok) in [("/dev/null", 7, true), ("/dev/full", 0, false)] {
            let files = Files::create(Path::new(path), Format::Pcapng, None).expect("it exists");
            let mut writing = Output::Files(files).start();
            writing.send(vec![1; 7]);
            assert_eq!(writing.finish().await.is_ok(), is_ok);
            assert_eq!(writing.written(), written);
        }
    }

    #[test]
    fn files_that_would_be_replaced_are_found() {
        let directory = std::env::temp_dir().join(format!("podtap-replaced-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("it can be created");
        let path = directory.join("web.pcapng");
        let rotation = Some(Rotation { bytes: 100, files: 2 });
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).expect("it can be written");
        for name in ["web-1.pcapng", "web-000001.pcap", "cart-000001.pcapng"] {
            write(name, "x");
        }
        write("web-000001.pcapng", "");
        assert_eq!((replaced(&path, None), replaced(&path, rotation)), (None, None));
        write("web-000007.pcapng", "x");
        assert_eq!(
            (replaced(&path, None), replaced(&path, rotation)),
            (None, Some(directory.join("web-000007.pcapng")))
        );
        write("web.pcapng", "x");
        assert_eq!(replaced(&path, None), Some(path));
        fs::remove_dir_all(&directory).expect("it can be removed");
    }

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
