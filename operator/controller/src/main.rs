//! `podtap-controller`: the controller, the uninstaller, and the custom resource definitions.

mod apply;
mod crds;
mod events;
mod expression;
mod failure;
#[cfg(test)]
mod fake_api;
#[cfg(test)]
mod fixtures;
mod in_flight;
mod metrics;
mod names;
mod plan;
mod reconcile;
mod retries;
mod run;
mod state;
mod status;
mod store;
mod uninstall;
mod validate;

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};
use podtap_runtime::{
    memory::disable_tracing,
    telemetry::{LogArgs, with_causes},
};

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
    // Without an asynchronous runtime: the process may open no file.
    if let Command::CompileExpression = command {
        return Ok(expression::process::serve()?);
    }
    if let Command::Run(_) = command {
        // The process that parses user text runs as the same user.
        disable_tracing()?;
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
