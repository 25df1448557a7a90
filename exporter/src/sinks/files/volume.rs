//! What is written when, and what happens if it cannot be.
//!
//! What an error leaves unwritten stays in memory, and is written when the volume takes it again: nothing is written twice, and there
//! are no gaps. Meanwhile no more records are taken. A file whose descriptor has become useless, as after a mount was lost, is given up.

use std::{io, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use super::{FilesConfig, directory::Directory, part::Part};
use crate::{record::Record, sinks::Failure};

/// Why there is an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Deliver,
    Idle,
    Finish,
}

/// A directory, and the file that is written.
#[derive(Debug)]
pub struct Volume {
    config: FilesConfig,
    directory: Directory,
    part: Option<Part>,
    /// Whether a run before this one may have left something, or files may have to be deleted.
    is_tidy: bool,
    lost: Counter,
}

impl Volume {
    pub fn new(config: FilesConfig, instance: &str, lost: Counter) -> Self {
        let unfinished = SignedDuration::from_mins(config.rotate.minutes.into());
        let directory = Directory::new(&config.directory, config.format, instance, unfinished);
        Self { config, directory, part: None, is_tidy: false, lost }
    }

    /// Writes what waits, completes the file if it is time, and takes records.
    pub fn attempt(&mut self, step: Step, records: &[Arc<Record>], now: Timestamp) -> Result<(), Failure> {
        self.advance(step, now).map_err(|error| Failure::unavailable(error.to_string()))?;
        if records.is_empty() {
            return Ok(());
        }
        let part = match &mut self.part {
            Some(part) => part,
            none => {
                let part = Part::create(&mut self.directory, self.config.format, now, &self.lost);
                none.insert(part.map_err(|error| Failure::unavailable(error.to_string()))?)
            }
        };
        let taken = part.append(records);
        let written = taken.and_then(|()| part.write());
        written.or_else(|error| self.give_up(error)).map_err(|error| {
            // They are in memory, and are not delivered again; or they are counted as lost.
            Failure::unavailable(error.to_string()).after(records.len())
        })
    }

    fn advance(&mut self, step: Step, now: Timestamp) -> io::Result<()> {
        if let Some(part) = &mut self.part {
            let written = if step == Step::Finish || part.is_due(self.config.rotate, now) {
                part.complete().map(|()| true)
            } else {
                part.write().map(|()| false)
            };
            match written {
                Ok(false) => {}
                Ok(true) => (self.part, self.is_tidy) = (None, false),
                Err(error) => return self.give_up(error),
            }
        }
        if !self.is_tidy && self.part.is_none() {
            self.directory.tidy(self.config.keep, now)?;
            self.is_tidy = true;
        }
        Ok(())
    }

    /// Drops the file after an error that does not pass. Returns the error.
    fn give_up(&mut self, error: io::Error) -> io::Result<()> {
        use io::ErrorKind as Kind;
        let passes = matches!(
            error.kind(),
            Kind::StorageFull
                | Kind::QuotaExceeded
                | Kind::ReadOnlyFilesystem
                | Kind::PermissionDenied
                | Kind::ResourceBusy
                | Kind::TimedOut
        );
        if !passes && let Some(part) = self.part.take() {
            warn!(file = %part.path().display(), %error, "this file is given up");
            self.is_tidy = false;
        }
        Err(error)
    }
}
