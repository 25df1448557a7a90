//! JSON lines on standard output, for what reads the logs of pods.

use std::{
    io::{self, Cursor},
    mem,
    sync::Arc,
};

use serde::Deserialize;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, Stdout};

use super::{Failure, Sink};
use crate::record::Record;

/// It has no settings.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdoutConfig {}

/// The lines as the collector wrote them.
#[derive(Debug)]
pub struct Lines<W = Stdout> {
    output: W,
    /// Records of an attempt that has not ended. If it is cancelled, the next one begins with the same records, and continues.
    taken: usize,
    /// What is not written of the last one of these.
    text: Cursor<Vec<u8>>,
}

impl Lines {
    pub fn new(StdoutConfig {}: StdoutConfig) -> Self {
        Self::to(tokio::io::stdout())
    }
}

impl<W: AsyncWrite + Unpin> Lines<W> {
    fn to(output: W) -> Self {
        Self { output, taken: 0, text: Cursor::default() }
    }

    async fn write(&mut self, records: &[Arc<Record>]) -> io::Result<()> {
        loop {
            // Cancelled, it leaves in the text what it has not written.
            self.output.write_all_buf(&mut self.text).await?;
            let Some(record) = records.get(self.taken) else { break };
            // In one write, so that no line is half written when an attempt ends.
            self.text = Cursor::new(record.lines().flat_map(|line| [&*line.text, "\n"]).collect::<String>().into());
            self.taken += 1;
        }
        self.output.flush().await
    }
}

impl<W: AsyncWrite + Unpin + Send + 'static> Sink for Lines<W> {
    const MOST: usize = 256;

    fn servers(&self) -> Vec<(String, u16)> {
        Vec::new()
    }

    fn disconnect(&mut self) {}

    async fn deliver(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        let written = self.write(records).await;
        let taken = mem::take(&mut self.taken);
        self.text = Cursor::default();
        written.map_err(|error| Failure::refused(format!("standard output: {error}")).after(taken.saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, duplex},
        time::timeout,
    };

    use super::*;
    use crate::record::fixtures::record;

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_attempt_is_continued() {
        let (output, mut input) = duplex(1000);
        let mut lines = Lines::to(output);
        let [first, second] = [0..20, 20..40].map(|ports| ports.map(record).collect::<Vec<_>>());
        timeout(Duration::from_secs(1), lines.deliver(&first)).await.expect_err("nothing reads");
        let read = tokio::spawn(async move {
            let mut text = String::new();
            input.read_to_string(&mut text).await.map(|_| text)
        });
        lines.deliver(&first).await.expect("they are read");
        lines.deliver(&second).await.expect("they are read");
        drop(lines);
        let expected: String = first
            .iter()
            .chain(&second)
            .flat_map(|record| record.lines())
            .flat_map(|line| [&*line.text, "\n"])
            .collect();
        assert!(expected.len() > 2000, "more than fits into the buffer");
        assert_eq!(read.await.expect("no panic").expect("it is open"), expected);
    }
}
