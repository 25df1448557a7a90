//! Lines of the collector, from a file, standard input or a Unix socket.

use std::{path::Path, pin::pin, time::Duration};

use anyhow::{Context as _, Result, bail};
use podtap_runtime::{shutdown::Shutdown, socket, telemetry::with_causes};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    net::UnixListener,
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    figures::Figures,
    record::{Line, Pairs},
    sinks::{Sinks, WhenFull},
};

/// Longest line. Names of DNS, TLS and Kubernetes are bounded: most lines have less than 2 KiB.
const LONGEST_LINE: u64 = 64 << 10;
/// How long the reply to a line may take: the collector writes both at once.
const REPLY: Duration = Duration::from_millis(100);
/// How long the collector may take to end: it takes 5 seconds for its last lines.
const LAST_LINES: Duration = Duration::from_secs(6);

/// Reads a file, or standard input (`-`), to its end, as fast as the sinks take records.
pub async fn read(path: &Path, sinks: &Sinks, figures: &Figures) -> Result<()> {
    if path == Path::new("-") {
        return lines(tokio::io::stdin(), sinks, WhenFull::Wait, figures).await.context("standard input");
    }
    let file = tokio::fs::File::open(path).await.with_context(|| format!("{} cannot be opened", path.display()))?;
    lines(file, sinks, WhenFull::Wait, figures).await.with_context(|| path.display().to_string())
}

/// Reads what one collector after the other writes, and never has it wait for a sink. Ends after a signal, when the collector has closed
/// its connection: it ends at the same time, and writes the flows that are open then.
pub async fn serve(listener: &UnixListener, sinks: &Sinks, figures: &Figures, shutdown: &mut Shutdown) {
    loop {
        let stream = tokio::select! {
            stream = socket::accept(|| listener.accept()) => stream,
            () = shutdown.requested() => return,
        };
        info!("the collector has connected");
        let mut reading = pin!(lines(stream, sinks, WhenFull::DropOldest, figures));
        let result = tokio::select! {
            result = &mut reading => result,
            () = shutdown.requested() => {
                // Elapsed: the collector does not end.
                let _ = timeout(LAST_LINES, reading).await;
                return;
            }
        };
        match result {
            Ok(()) => info!("the collector has disconnected"),
            Err(error) => warn!(error = %with_causes(&*error), "the connection to the collector was closed"),
        }
    }
}

/// Passes on lines until the end. A line that is not valid is counted and left out, so is the last one if it has no end.
async fn lines(source: impl AsyncRead + Unpin, sinks: &Sinks, when_full: WhenFull, figures: &Figures) -> Result<()> {
    let mut source = BufReader::with_capacity(256 << 10, source);
    let (mut pairs, mut line) = (Pairs::default(), Vec::new());
    let mut complete = Vec::new();
    loop {
        let room = LONGEST_LINE - line.len() as u64;
        let mut limited = (&mut source).take(room);
        // What was read when the time is over is in the buffer.
        let read = limited.read_until(b'\n', &mut line);
        let read = if pairs.is_waiting() { timeout(REPLY, read).await.ok() } else { Some(read.await) };
        match read {
            None => pairs.flush(&mut |record| complete.push(record)),
            Some(read) => {
                read?;
                let is_whole = line.pop_if(|last| *last == b'\n').is_some();
                if is_whole {
                    figures.lines.inc();
                    match parse(&line) {
                        Ok(line) => pairs.push(line, &mut |record| complete.push(record)),
                        Err(error) => {
                            // Each one would fill the log.
                            if figures.invalid.inc() == 0 {
                                warn!(%error, "a line is no flow; the next ones like this are only counted");
                            }
                        }
                    }
                    line.clear();
                } else if line.len() as u64 >= LONGEST_LINE {
                    bail!("a line has more than {LONGEST_LINE} bytes: it is no flow");
                } else {
                    // The end.
                    if !line.is_empty() {
                        figures.invalid.inc();
                    }
                    pairs.flush(&mut |record| complete.push(record));
                    sinks.push(&mut complete, when_full).await;
                    return Ok(());
                }
            }
        }
        sinks.push(&mut complete, when_full).await;
    }
}

fn parse(line: &[u8]) -> Result<Line> {
    let text = std::str::from_utf8(line)?;
    Ok(Line { flow: serde_json::from_str(text)?, text: text.into() })
}
