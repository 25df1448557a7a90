//! The privileged half of PodTap's helper pod.
#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsString,
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    process::{self, ExitCode},
};

use clap::{Args, Parser, Subcommand};
use podtap_model::{DecodeError, NodeState};
use serde::Serialize;
use tap_helper::{
    NodeError,
    apply::{self, ApplyError},
    init_logs, inspect,
    probe::{self, ProbeError},
    purge,
    serve::{self, ServeError},
    supervise::{SuperviseError, end_with_parent, supervise},
};

/// Reconciles the mirrors of this node with what PodTap requests, in the network namespaces of its pods.
///
/// Needs the node's process identifiers (hostPID), its network (hostNetwork), user 0 and the capabilities NET_ADMIN,
/// NET_RAW, SYS_ADMIN, SYS_PTRACE and BPF. Only one command that changes the node runs at a time.
#[derive(Parser)]
#[command(version)]
#[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
struct Arguments {
    /// Log lines as JSON objects
    #[arg(long, global = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the agent's requests until SIGTERM, which leaves the kernel's state as it is; in a child, restarted when it dies
    Serve {
        /// Unix socket to listen on
        #[arg(long)]
        socket: PathBuf,
        /// User that may connect
        #[arg(long)]
        agent_uid: u32,
        #[command(flatten)]
        child: Child,
    },
    /// Exit with 0 if the tap-helper that serves on this socket answers; the kubelet runs this
    Probe {
        /// Its Unix socket
        #[arg(long)]
        socket: PathBuf,
    },
    /// Apply the spec of a NodeTap once, and print its status; fails unless all of it is active. Its mirrors stop after the spec's
    /// orphan timeout unless this is repeated
    Apply {
        /// The spec in JSON; - for standard input
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Print everything that carries PodTap's marks, with counters and drift
    Inspect,
    /// Remove everything that carries PodTap's marks, and print what that was
    Purge,
}

/// What `serve` passes to the child that does the work.
#[derive(Args)]
struct Child {
    /// Serve in this process, and end with the one that has this PID
    #[arg(long, hide = true)]
    parent: Option<u32>,
    /// How often the child was restarted
    #[arg(long, hide = true, default_value_t = 0)]
    restarts: u32,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Inspect(#[from] NodeError),
    #[error("cannot read {file}: {error}")]
    Read { file: String, error: io::Error },
    #[error("the file is not JSON: {0}")]
    Parse(#[source] serde_json::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("cannot print the result: {0}")]
    Print(#[source] serde_json::Error),
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    #[error("cannot end with the parent process: {0}")]
    Parent(#[source] io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(#[source] io::Error),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    init_logs(arguments.log_json);
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(%error, "failed");
            ExitCode::FAILURE
        }
    }
}

/// One thread: nothing here is done twice at once, and the helper shares a node with what it must not disturb.
fn run(command: Command) -> Result<ExitCode, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::Runtime)?;
    runtime.block_on(execute(command))
}

async fn execute(command: Command) -> Result<ExitCode, CommandError> {
    let succeeded = match command {
        Command::Serve { child: Child { parent: None, .. }, .. } => {
            return Ok(supervise(child_arguments).await?.into());
        }
        Command::Serve { socket, agent_uid, child: Child { parent: Some(parent), restarts } } => {
            end_with_parent(parent).map_err(CommandError::Parent)?;
            serve::serve(&socket, agent_uid, restarts).await?;
            true
        }
        Command::Probe { socket } => {
            probe::probe(&socket)?;
            true
        }
        Command::Apply { file } => {
            let spec = serde_json::from_slice(&read(&file)?).map_err(CommandError::Parse)?;
            let status = apply::apply(NodeState::decode(&spec)?).await?;
            print(&status)?;
            apply::is_complete(&status)
        }
        Command::Inspect => {
            print(&inspect::inspect().await?)?;
            true
        }
        Command::Purge => {
            let purged = purge::purge().await?;
            print(&purged)?;
            purged.remaining.is_empty()
        }
    };
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The arguments of the child that serves: those of this process, and its own.
fn child_arguments(restarts: u32) -> Vec<OsString> {
    let own = ["--parent".to_owned(), process::id().to_string(), "--restarts".to_owned(), restarts.to_string()];
    env::args_os().skip(1).chain(own.map(OsString::from)).collect()
}

fn read(file: &Path) -> Result<Vec<u8>, CommandError> {
    let failed = |error| CommandError::Read { file: file.display().to_string(), error };
    if file.as_os_str() != "-" {
        return fs::read(file).map_err(failed);
    }
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

fn print(value: &impl Serialize) -> Result<(), CommandError> {
    println!("{}", serde_json::to_string_pretty(value).map_err(CommandError::Print)?);
    Ok(())
}
