//! `podtap-operator`: the controller, the agent and the definitions, in one binary.

use clap::{Parser, Subcommand};

mod agent;
mod backoff;
mod client;
mod controller;
mod crds;
mod http;
mod leader;
mod telemetry;

#[derive(Parser)]
#[command(
    name = "podtap-operator",
    version,
    about = "Copies the traffic of Kubernetes pods to where somebody looks at it"
)]
struct Cli {
    /// Write logs as JSON, one object per line.
    #[arg(long, global = true, env = "PODTAP_LOG_JSON")]
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
    /// Write the custom resource definitions to a directory, or to standard output.
    Crds(crds::Args),
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    telemetry::init_logs(cli.log_json);
    // One thread: the agent must be small, and the controller waits for the API server most of the time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli.command {
        Command::Controller(args) => runtime.block_on(controller::run(args))?,
        Command::Agent(args) => runtime.block_on(agent::run(args))?,
        Command::Crds(args) => crds::run(&args)?,
    }
    Ok(())
}
