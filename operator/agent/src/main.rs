//! `podtap-agent`: passes the desired state of a node from its `NodeTap` to the tap-helper, and publishes what the tap-helper reports.
//!
//! Knows the API server and no kernel. Three loops, joined by channels that hold only the newest value: [`follow`] turns the
//! node's `NodeTap` into an order, [`link`] carries orders to the tap-helper and reports back, [`publish`] writes the status.
//! Beside them, [`metrics`] shows what the tap-helper counted, which [`counters`] asks for when somebody wants to know.
//! None of them ends because of an error; ending the agent leaves every mirror as it is.

mod convert;
mod counters;
mod follow;
mod link;
mod metrics;
mod order;
mod publish;
mod run;

use std::process::ExitCode;

use clap::Parser;
use podtap_runtime::telemetry::{LogArgs, with_causes};

#[derive(Parser)]
#[command(
    name = "podtap-agent",
    version,
    about = "Passes a node's desired state to its tap-helper and reports the result (one per node with work)"
)]
struct Cli {
    #[command(flatten)]
    logs: LogArgs,
    #[command(flatten)]
    args: run::Args,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.init();
    // One thread: the agent must be small.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run::run(cli.args)),
        Err(error) => Err(run::Error::Runtime(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podtap-agent: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}
