//! `podtap-agent`: passes the desired state of its node from the `NodeTap` to the tap-helper, and publishes the tap-helper's reports.
//!
//! It talks to the API server and never to the kernel. Its parts are connected by channels that hold only the newest value:
//! [`node_tap`] watches the node's `NodeTap` and applies its spec through the [`helper_client`]; [`publish`] writes the reports that
//! come back into its status; [`renewal`] lets the mirrors run on, as long as the API server confirms that the `NodeTap` exists;
//! [`metrics`] serves counters, which the client requests for scrapes. No error stops the agent, and when it stops, every mirror
//! stays as it is until its orphan timeout is over.

mod helper_client;
mod metrics;
mod node_tap;
mod publish;
mod renewal;
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
    // One thread, to save memory.
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
