//! JSON lines on standard output, for what reads the logs of pods.

use std::sync::Arc;

use serde::Deserialize;
use tokio::io::{AsyncWriteExt as _, Stdout};

use super::{Failure, Sink};
use crate::record::Record;

/// It has no settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdoutConfig {}

/// The lines as the collector wrote them.
#[derive(Debug)]
pub struct Lines(Stdout);

impl Lines {
    pub fn new(StdoutConfig {}: StdoutConfig) -> Self {
        Self(tokio::io::stdout())
    }
}

impl Sink for Lines {
    const MOST: usize = 256;

    fn servers(&self) -> Vec<(String, u16)> {
        Vec::new()
    }

    fn disconnect(&mut self) {}

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        for (delivered, record) in records.iter().enumerate() {
            // In one write, so that no line is half written when an attempt ends.
            let text: String = record.lines().flat_map(|line| [&*line.text, "\n"]).collect();
            let written = self.0.write_all(text.as_bytes()).await;
            written.map_err(|error| Failure::refused(format!("standard output: {error}")).after(delivered))?;
        }
        self.0.flush().await.map_err(|error| Failure::refused(format!("standard output: {error}")))
    }
}
