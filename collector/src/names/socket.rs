//! Names from the program that watches the cluster, by a Unix socket.

use std::{path::Path, time::Duration};

use podtap_flow::names::Update;
use podtap_runtime::backoff::Backoff;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::UnixStream,
    sync::mpsc::Sender,
    time::sleep,
};
use tracing::{info, warn};

/// Longest line: an object with all of its labels is a few kilobytes, a service with its backends more.
const LONGEST_LINE: u64 = 4 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Passes changes on for as long as they are taken. A connection that ends is replaced, and begins with all objects again.
pub async fn follow(path: &Path, updates: &Sender<Update>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => {
                info!(path = %path.display(), "connected to the program that watches names");
                backoff.reset();
                let error = read(stream, updates).await;
                // From now on, objects may be missing.
                if updates.send(Update::Listing).await.is_err() {
                    return;
                }
                warn!(
                    error,
                    "the connection to the program that watches names has ended; those that are known stay, retrying"
                );
            }
            Err(error) => tracing::debug!(%error, "cannot connect to the program that watches names yet"),
        }
        sleep(backoff.pause()).await;
    }
}

/// Why the connection ended.
async fn read(stream: UnixStream, updates: &Sender<Update>) -> String {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line).await {
            Ok(0) => return "the connection was closed".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
        match serde_json::from_slice(&line) {
            Ok(update) => {
                if updates.send(update).await.is_err() {
                    return "the program ends".to_owned();
                }
            }
            Err(error) => return format!("a line is no change of names: {error}"),
        }
    }
}
