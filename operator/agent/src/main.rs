//! `podtap-agent`: passes the desired state of its node from the `NodeTap` to the tap-helper, and publishes the tap-helper's reports.
//!
//! It talks to the API server and never to the kernel. Its parts are connected by channels that hold only the newest value:
//! [`node_tap`] watches the node's `NodeTap` and applies its spec through the [`helper_client`]; [`publish`] writes the reports that
//! come back into its status; [`renewal`] lets the mirrors run on, as long as the API server confirms that the `NodeTap` exists;
//! [`reachability`] finds out which nodes this one reaches, where its probes do not arrive; [`metrics`] serves counters, which the
//! client requests for scrapes. No error stops the agent, and when it stops, every mirror stays as it is until its orphan timeout is
//! over.

mod helper_client;
mod metrics;
mod node_tap;
mod probe;
mod publish;
mod reachability;
mod renewal;
mod run;
mod try_paths;

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};
use podtap_runtime::{
    memory::disable_tracing,
    telemetry::{LogArgs, with_causes},
};

#[derive(Parser)]
#[command(
    name = "podtap-agent",
    version,
    about = "Passes a node's desired state to its tap-helper and reports the result (one per node with work)"
)]
struct Cli {
    #[command(flatten)]
    logs: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pass on the desired state and publish the result, until SIGTERM or SIGINT.
    Run(run::Args),
    /// Exit with 0 if the agent is connected to its tap-helper; the kubelet runs this.
    Probe(probe::Args),
    /// Send packets to other nodes and report those that arrive, until SIGTERM or SIGINT.
    TryPaths(try_paths::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtap-agent: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    // One thread, to save memory.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Run(args) => {
            disable_tracing()?;
            runtime.block_on(run::run(args))?;
        }
        Command::Probe(args) => runtime.block_on(probe::run(args))?,
        Command::TryPaths(args) => runtime.block_on(try_paths::run(args))?,
    }
    Ok(())
}
