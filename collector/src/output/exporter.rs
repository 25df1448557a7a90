//! Lines for `podtap-exporter`, by its Unix socket.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread::sleep,
    time::Duration,
};

use podtap_runtime::backoff::Backoff;
use tracing::{info, warn};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Writes to whatever listens on the path, and waits until there is one. For a [`Queue`](super::queue::Queue), whose thread may wait.
pub struct Exporter {
    path: PathBuf,
    stream: Option<UnixStream>,
    backoff: Backoff,
}

impl Exporter {
    pub const fn new(path: PathBuf) -> Self {
        Self { path, stream: None, backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE) }
    }

    fn connect(&mut self) -> UnixStream {
        loop {
            match UnixStream::connect(&self.path) {
                Ok(stream) => {
                    info!(path = %self.path.display(), "connected to the exporter");
                    self.backoff.reset();
                    return stream;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot connect to the exporter yet");
                    sleep(self.backoff.pause());
                }
            }
        }
    }
}

impl Write for Exporter {
    /// Writes a whole line. The reader ignores a line without an end, so after an error it is written again.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => self.connect(),
            };
            match stream.write_all(line) {
                Ok(()) => {
                    self.stream = Some(stream);
                    return Ok(line.len());
                }
                Err(error) => warn!(%error, "the connection to the exporter has ended, retrying"),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead as _, BufReader, Read as _},
        os::unix::net::UnixListener,
        thread,
    };

    use super::*;

    #[test]
    fn after_the_exporter_was_restarted_lines_are_whole() {
        let path = std::env::temp_dir().join(format!("podtap-exporter-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).expect("the path is free");
        let mut exporter = Exporter::new(path.clone());
        exporter.write_all(b"first\n").expect("it waits");
        let mut line = String::new();
        BufReader::new(listener.accept().expect("a connection").0).read_line(&mut line).expect("a line");
        assert_eq!(line, "first\n");
        // Nothing listens for a while.
        drop(listener);
        fs::remove_file(&path).expect("it exists");
        let writer = thread::spawn(move || exporter.write_all(b"second\n"));
        let listener = UnixListener::bind(&path).expect("the path is free");
        let mut text = String::new();
        listener.accept().expect("a connection").0.read_to_string(&mut text).expect("text");
        assert_eq!(text, "second\n");
        writer.join().expect("it does not panic").expect("it is written");
        fs::remove_file(&path).expect("it exists");
    }
}
