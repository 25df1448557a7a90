//! `podtap-agent probe`: whether the agent of this pod works, for the kubelet.
//!
//! Over a Unix socket: helper pods share their node's network, and two of them overlap for a moment when one replaces the other. A port
//! could be in use, or be answered by the other pod's agent.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use podtap_runtime::{http::Health, socket};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tracing::warn;

/// How long the agent may take to answer. It runs on one thread, and nothing it does takes long.
const DEADLINE: Duration = Duration::from_secs(8);
/// Before the next attempt to listen.
const PAUSE: Duration = Duration::from_secs(1);
/// The answers.
const READY: &[u8] = b"ready\n";
const NOT_READY: &[u8] = b"not connected to the tap-helper\n";

#[derive(clap::Args)]
pub struct Args {
    /// Unix socket on which the agent answers probes.
    #[arg(long, default_value = "/run/podtap/agent.sock")]
    socket: PathBuf,
    /// Succeed whatever the answer is: the agent is alive.
    #[arg(long)]
    live: bool,
}

/// Why the probe fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to the agent")]
    Connection(#[from] io::Error),
    #[error("the agent has not answered within {} s", DEADLINE.as_secs())]
    NoAnswer,
    #[error("the agent is not ready: {0}")]
    NotReady(String),
}

/// Asks the agent.
pub async fn run(args: Args) -> Result<(), Error> {
    let answer = timeout(DEADLINE, async {
        let mut answer = Vec::new();
        UnixStream::connect(&args.socket).await?.take(1024).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    });
    match answer.await.map_err(|_| Error::NoAnswer)?? {
        answer if answer == READY => Ok(()),
        answer if args.live && !answer.is_empty() => Ok(()),
        answer => Err(Error::NotReady(String::from_utf8_lossy(&answer).trim().to_owned())),
    }
}

/// Answers probes on `socket`, forever.
pub async fn serve(socket: &Path, health: &Health) {
    loop {
        match bind(socket) {
            Ok(listener) => answer(&listener, health).await,
            Err(error) => {
                warn!(%error, socket = %socket.display(), "cannot answer the kubelet's probes, retrying");
            }
        }
        sleep(PAUSE).await;
    }
}

/// Replaces the socket of an agent that ended.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(socket),
    }
}

async fn answer(listener: &UnixListener, health: &Health) {
    loop {
        let mut stream = socket::accept(|| listener.accept()).await;
        // A few bytes, which fit into the socket's buffer. An error concerns the probe only.
        let _ = stream.write_all(if health.is_ready() { READY } else { NOT_READY }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("podtap-probe-{name}-{}.sock", std::process::id()))
    }

    async fn probe(socket: &Path, live: bool) -> Result<(), String> {
        run(Args { socket: socket.to_owned(), live }).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn an_agent_is_ready_while_it_is_connected_and_alive_in_any_case() {
        let socket = socket("ready");
        // As one that was killed leaves behind.
        drop(UnixListener::bind(&socket).expect("a socket in the temporary directory"));
        assert!(probe(&socket, true).await.is_err_and(|error| error.contains("cannot connect")));
        let health = Health::new(Duration::MAX);
        let serving = tokio::spawn({
            let (socket, health) = (socket.clone(), health.clone());
            async move { serve(&socket, &health).await }
        });
        while probe(&socket, true).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(probe(&socket, false).await.is_err_and(|error| error.contains("not connected to the tap-helper")));
        health.set_ready(true);
        assert_eq!(probe(&socket, false).await, Ok(()));
        serving.abort();
        fs::remove_file(&socket).expect("it exists");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_hangs_is_not_alive() {
        let socket = socket("hangs");
        let listener = UnixListener::bind(&socket).expect("a socket in the temporary directory");
        let error = probe(&socket, true).await.expect_err("no answer");
        assert!(error.contains("has not answered"), "{error}");
        drop(listener);
        fs::remove_file(&socket).expect("it exists");
    }
}
