//! `podtap-controller`: the controller, the uninstaller, and the custom resource definitions.

mod apply;
mod build;
mod cache;
mod claims;
mod cleanup;
mod conditions;
mod crds;
mod cycles;
mod degraded;
mod destinations;
mod events;
mod expression;
mod expressions;
mod facts;
#[cfg(test)]
mod fake_api;
#[cfg(test)]
mod fixtures;
mod take_snapshot;
mod helper_pod;
mod limits;
mod state;
mod metrics;
mod names;
mod network;
mod nodes;
mod reconcile;
mod failure;
mod reason;
mod run;
mod status;
mod targets;
mod options;
mod uninstall;
mod validate;
mod vni;
mod watch;

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};
use podtap_runtime::telemetry::{LogArgs, with_causes};

#[derive(Parser)]
#[command(name = "podtap-controller", version, about = "Mirrors pod traffic to a node, a pod or any VXLAN endpoint")]
struct Cli {
    #[command(flatten)]
    logs: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile `PodTap` objects (one leader per cluster).
    Run(run::Args),
    /// Delete every tap and wait until every node is clean; `helm uninstall` runs this first.
    Uninstall,
    /// Compile a pcap-filter expression from standard input; the controller runs this once per expression, as a separate process.
    #[command(hide = true)]
    CompileExpression,
    /// Write the custom resource definitions to a directory, or to standard output.
    Crds(crds::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtap-controller: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    // Before a runtime has opened anything: it may not.
    if let Command::CompileExpression = command {
        return Ok(expression::process::serve()?);
    }
    if let Command::Run(_) = command {
        expression::process::hide()?;
    }
    // One thread: the controller waits for the API server most of the time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Run(args) => runtime.block_on(run::run(args))?,
        Command::Uninstall => runtime.block_on(uninstall::run())?,
        Command::Crds(args) => crds::run(&args)?,
        Command::CompileExpression => {}
    }
    Ok(())
}
