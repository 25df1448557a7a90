//! A writer that never waits: what a slow reader does not take is dropped and counted.

use std::{
    io::{self, Write},
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Writes that wait at most. Each is a line.
const CAPACITY: usize = 8192;

/// Hands what is written to a thread that writes it.
pub struct Queue {
    /// Until it is closed.
    sender: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<io::Result<()>>>,
    /// Writes that found no room.
    pub dropped: u64,
    /// Until when a write waits for room.
    patience: Option<Instant>,
}

impl Queue {
    pub fn new(mut out: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel::<Vec<u8>>(CAPACITY);
        let writer = thread::spawn(move || {
            while let Ok(first) = receiver.recv() {
                out.write_all(&first)?;
                // What waits already is written at once.
                for next in receiver.try_iter() {
                    out.write_all(&next)?;
                }
                out.flush()?;
            }
            Ok(())
        });
        Self { sender: Some(sender), writer: Some(writer), dropped: 0, patience: None }
    }

    /// From now on, writes wait for room, all together at most as long as this.
    pub fn wait(&mut self, patience: Duration) {
        self.patience = Some(Instant::now() + patience);
    }

    /// Writes what waits, and returns when that is done; after [`Self::wait`], also when its time is over.
    pub fn close(&mut self) -> io::Result<()> {
        self.sender = None;
        // A reader that has stopped reading keeps the thread in a write without end.
        if let (Some(writer), Some(until)) = (&self.writer, self.patience) {
            while !writer.is_finished() {
                if Instant::now() >= until {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "lines are not read, and were not all written",
                    ));
                }
                // With a deadline: std's threads cannot be joined with one.
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.writer
            .take()
            .map_or(Ok(()), |writer| writer.join().unwrap_or_else(|_| Err(io::Error::other("it panicked"))))
    }
}

impl Write for Queue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = self.sender.as_ref().map(|sender| sender.try_send(bytes.to_vec()));
        while let Some(Err(TrySendError::Full(line))) = sent {
            if self.patience.is_none_or(|until| Instant::now() >= until) {
                self.dropped += 1;
                return Ok(bytes.len());
            }
            // Only at the end, and with a deadline: std's channels cannot wait for room with one.
            thread::sleep(Duration::from_millis(1));
            sent = self.sender.as_ref().map(|sender| sender.try_send(line));
        }
        match sent {
            Some(Ok(()) | Err(TrySendError::Full(_))) => {}
            // The thread has ended: its error tells why.
            Some(Err(TrySendError::Disconnected(_))) | None => {
                self.close()?;
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};

    use super::*;

    /// A writer that waits until it may go on.
    struct Slow {
        may_write: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.may_write.recv();
            self.written.lock().expect("no thread panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_not_time() {
        let (release, may_write) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut queue = Queue::new(Slow { may_write, written: Arc::clone(&written) });
        for _ in 0..CAPACITY + 100 {
            queue.write_all(b"x").expect("it never fails");
        }
        // One may be with the writer.
        assert!((99..=100).contains(&queue.dropped), "{}", queue.dropped);
        drop(release);
        queue.close().expect("it can be written");
        assert_eq!(written.lock().expect("no thread panics").len() as u64, CAPACITY as u64 + 100 - queue.dropped);
    }

    #[test]
    fn a_reader_that_has_stopped_does_not_keep_the_program_from_ending() {
        let (release, may_write) = mpsc::channel();
        let mut queue = Queue::new(Slow { may_write, written: Arc::default() });
        queue.write_all(b"x").expect("it never fails");
        queue.wait(Duration::from_millis(20));
        assert_eq!(queue.close().expect_err("it is not written").kind(), io::ErrorKind::TimedOut);
        drop(release);
    }

    #[test]
    fn an_error_of_the_writer_is_reported() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut queue = Queue::new(Closed);
        let error = (0..).find_map(|_| queue.write_all(b"x").err()).expect("it fails");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
