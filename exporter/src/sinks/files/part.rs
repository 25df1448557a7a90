//! The file that is written.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::counter::Counter;

use super::{
    Format, Rotate,
    directory::{Directory, date},
    encoder::Encoder,
};
use crate::record::Record;

/// A file that is not complete. Dropped like that, it counts the records that are lost with it.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    complete: PathBuf,
    file: File,
    since: Timestamp,
    /// `None`: all that belongs into the file is written, or waits.
    encoder: Option<Encoder>,
    /// Bytes that wait, and how many of them are written.
    waiting: (Vec<u8>, usize),
    /// Bytes that were written.
    size: u64,
    /// Records that could not be read if this ended now.
    unreadable: u64,
    lost: Counter,
}

impl Part {
    pub fn create(directory: &mut Directory, format: Format, now: Timestamp, lost: &Counter) -> io::Result<Self> {
        let (file, path, complete) = directory.create(now)?;
        let encoder = Some(Encoder::new(format)?);
        let lost = lost.clone();
        Ok(Self {
            path,
            complete,
            file,
            since: now,
            encoder,
            waiting: Default::default(),
            size: 0,
            unreadable: 0,
            lost,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it should be completed.
    pub fn is_due(&self, rotate: Rotate, now: Timestamp) -> bool {
        self.encoder.is_none()
            || self.size >= u64::from(rotate.mib) << 20
            || now.duration_since(self.since) >= SignedDuration::from_mins(rotate.minutes.into())
            || date(now) != date(self.since)
    }

    /// Takes records, without writing them.
    pub fn append(&mut self, records: &[Arc<Record>]) -> io::Result<()> {
        let Some(encoder) = &mut self.encoder else { return Err(io::Error::other("the file is complete")) };
        self.unreadable += records.len() as u64;
        records.iter().try_for_each(|record| encoder.push(record, &mut self.waiting.0))
    }

    /// Writes what waits. After an error, what was not written waits.
    pub fn write(&mut self) -> io::Result<()> {
        let (bytes, written) = &mut self.waiting;
        while *written < bytes.len() {
            match self.file.write(&bytes[*written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    *written += count;
                    self.size += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.clear();
        *written = 0;
        if matches!(self.encoder, Some(Encoder::Lines)) {
            self.unreadable = 0;
        }
        Ok(())
    }

    /// Writes all, and gives the file its name.
    pub fn complete(&mut self) -> io::Result<()> {
        if let Some(encoder) = self.encoder.take() {
            encoder.finish(&mut self.waiting.0)?;
        }
        self.write()?;
        // A rename may reach the disk before the data.
        self.file.sync_all()?;
        fs::rename(&self.path, &self.complete)?;
        self.unreadable = 0;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.lost.inc_by(self.unreadable);
    }
}
