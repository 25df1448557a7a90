//! The privileged half of PodTap's helper pod.
#![forbid(unsafe_code)]

use std::{error::Error, fs, io::Read, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use serde::Serialize;
use tap_helper::{apply, inspect, log::Log, purge, serve};

/// Makes this node hold the mirrors that PodTap wants, in the network namespaces of its pods.
///
/// Needs the node's process identifiers (hostPID), its network (hostNetwork), user 0 and the capabilities NET_ADMIN,
/// SYS_ADMIN, SYS_PTRACE and BPF. Only one command that changes the node runs at a time.
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
    /// Do what the agent says, until SIGTERM; what is in the kernel stays then
    Serve {
        /// Unix socket to listen on
        #[arg(long)]
        socket: PathBuf,
        /// User that may speak
        #[arg(long)]
        agent_uid: u32,
    },
    /// Do once what a file says, and print a report; fails if not all of it is active
    Apply {
        /// A desired state in JSON; - for standard input
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Print everything that carries PodTap's marks, with counters and what drifted
    Inspect,
    /// Remove everything that carries PodTap's marks, and print what that was
    Purge,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let log = Log::new(arguments.log_json);
    match run(arguments.command, log) {
        Ok(code) => code,
        Err(error) => {
            log.warn("failed", &[("error", &error.to_string())]);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, log: Log) -> Result<ExitCode, Box<dyn Error>> {
    let fine = match command {
        Command::Serve { socket, agent_uid } => {
            serve::serve(&socket, agent_uid, log)?;
            true
        }
        Command::Apply { file } => {
            let report = apply::apply(serde_json::from_slice(&read(&file)?)?, log)?;
            print(&report)?;
            apply::is_complete(&report)
        }
        Command::Inspect => {
            print(&inspect::inspect(log)?)?;
            true
        }
        Command::Purge => {
            let purged = purge::purge(log)?;
            print(&purged)?;
            purged.remaining.is_empty()
        }
    };
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(file: &PathBuf) -> Result<Vec<u8>, Box<dyn Error>> {
    if file.as_os_str() != "-" {
        return Ok(fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?);
    }
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text)?;
    Ok(text)
}

fn print(value: &impl Serialize) -> Result<(), Box<dyn Error>> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
