//! `podtap-operator`: the controller, the agent and the definitions, in one binary.

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand, builder::BoolishValueParser};

mod agent;
mod backoff;
mod client;
mod controller;
mod crds;
mod expression;
#[cfg(test)]
mod fake_client;
mod http;
mod leader;
mod shutdown;
mod telemetry;
mod uninstall;

#[derive(Parser)]
#[command(
    name = "podtap-operator",
    version,
    about = "Copies the traffic of Kubernetes pods to where somebody looks at it"
)]
struct Cli {
    /// Write logs as JSON, one object per line.
    #[arg(long, global = true, env = "PODTAP_LOG_JSON", value_parser = BoolishValueParser::new())]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turn `PodTap` objects into the work of nodes (one leader per cluster).
    Controller(controller::Args),
    /// Hand a node's work to its tap-helper, and report what came of it (one per node with work).
    Agent(agent::Args),
    /// Delete every tap and wait until nothing of any is left; what `helm uninstall` does first.
    Uninstall,
    /// Compile a pcap-filter expression from standard input; what the controller does with each one, in a process of its own.
    #[command(hide = true)]
    CompileExpression,
    /// Write the custom resource definitions to a directory, or to standard output.
    Crds(crds::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::init_logs(cli.log_json);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtap-operator: {}", telemetry::with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    // Before a runtime has opened anything: it may not.
    if let Command::CompileExpression = command {
        return Ok(expression::process::serve()?);
    }
    if let Command::Controller(_) = command {
        expression::process::hide()?;
    }
    // One thread: the agent must be small, and the controller waits for the API server most of the time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Controller(args) => runtime.block_on(controller::run(args))?,
        Command::Agent(args) => runtime.block_on(agent::run(args))?,
        Command::Uninstall => runtime.block_on(uninstall::run())?,
        Command::Crds(args) => crds::run(&args)?,
        Command::CompileExpression => {}
    }
    Ok(())
}
