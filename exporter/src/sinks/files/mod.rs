//! Files on a volume, for DuckDB, ClickHouse and other engines: JSON lines or Parquet.
//!
//! The volume may be a mounted object store: files are created, appended to, renamed when they are complete, listed and deleted, and
//! nothing needs a lock. See [`volume`] for errors of the disk.

mod columns;
mod directory;
mod encoder;
mod part;
mod volume;

#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, ensure};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use serde::Deserialize;
use tokio::task::{JoinHandle, spawn_blocking};

use self::volume::{Step, Volume};
use super::{Failure, Sink};
use crate::record::Record;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilesConfig {
    directory: PathBuf,
    format: Format,
    #[serde(default)]
    rotate: Rotate,
    #[serde(default)]
    keep: Keep,
}

/// What is in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Format {
    #[serde(rename = "JSONLines")]
    JsonLines,
    Parquet,
}

impl Format {
    const fn extension(self) -> &'static str {
        match self {
            Self::JsonLines => "jsonl",
            Self::Parquet => "parquet",
        }
    }
}

/// When a file is complete, and the next one is begun; at midnight (UTC) in any case.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rotate {
    mib: u32,
    minutes: u32,
}

impl Default for Rotate {
    fn default() -> Self {
        Self { mib: 128, minutes: 15 }
    }
}

/// Which files are kept.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Keep {
    days: u32,
    /// Of all files in the directory.
    mib: Option<u32>,
}

impl Default for Keep {
    fn default() -> Self {
        Self { days: 30, mib: None }
    }
}

/// The sink.
#[derive(Debug)]
pub struct Files {
    volume: Arc<Mutex<Volume>>,
    /// An attempt that the volume delays for longer than an attempt may take. The next one waits for it, and does not repeat it.
    running: Option<(Step, JoinHandle<Result<(), Failure>>)>,
}

impl Files {
    /// `lost` counts records that were in a file that could not be completed.
    pub fn new(config: FilesConfig, sink: &str, lost: Counter) -> Result<Self> {
        let FilesConfig { rotate, keep, .. } = &config;
        ensure!((1..=1 << 20).contains(&rotate.mib), "rotate.mib must be from 1 to 1048576");
        ensure!((1..=1440).contains(&rotate.minutes), "rotate.minutes must be from 1 to 1440");
        ensure!((1..=36_500).contains(&keep.days), "keep.days must be from 1 to 36500");
        // A new file must not cost all others.
        let least = 2 * rotate.mib;
        ensure!(
            keep.mib.is_none_or(|mib| mib >= least),
            "keep.mib must be at least twice rotate.mib, so {least}: set it, or a smaller rotate.mib"
        );
        let volume = Volume::new(config, &directory::instance(sink), lost);
        Ok(Self { volume: Arc::new(Mutex::new(volume)), running: None })
    }

    async fn attempt(&mut self, step: Step, records: &[Arc<Record>]) -> Result<(), Failure> {
        loop {
            let (running, task) = self.running.get_or_insert_with(|| {
                let (volume, records) = (Arc::clone(&self.volume), records.to_vec());
                let attempt = move || {
                    let mut volume = volume.lock().unwrap_or_else(PoisonError::into_inner);
                    volume.attempt(step, &records, Timestamp::now())
                };
                (step, spawn_blocking(attempt))
            });
            let result = task.await.unwrap_or_else(|panic| Err(Failure::refused(panic.to_string())));
            // An earlier delivery was of these records: what was not delivered is delivered again.
            let is_this = *running == step;
            self.running = None;
            if is_this {
                return result;
            }
        }
    }
}

impl Sink for Files {
    const MOST: usize = 512;

    fn servers(&self) -> Vec<(String, u16)> {
        Vec::new()
    }

    fn disconnect(&mut self) {}

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        self.attempt(Step::Deliver, records).await
    }

    async fn idle(&mut self) -> Result<(), Failure> {
        self.attempt(Step::Idle, &[]).await
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.attempt(Step::Finish, &[]).await
    }
}
