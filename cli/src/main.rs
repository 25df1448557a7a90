//! `kubectl podtap`: creates, lists, explains and ends taps.
//!
//! [`target`], [`destination`] and [`mirror`] turn words and flags into a spec, [`create`] sends it, and [`wait`] follows it by its
//! conditions. [`pods`] tells whether a tap mirrors a pod, and why not, for `create`, `explain` and `delete`. Nothing here writes to nodes or
//! reads what is mirrored: whatever a user may do, their own rights in the cluster allow.
#![deny(unsafe_code)]

mod access;
mod capture;
mod cleanup;
mod collector;
mod complete;
mod connection;
mod console;
mod create;
mod delete;
mod destination;
mod doctor;
mod exit;
mod explain;
mod extcap;
mod flows;
mod forward;
mod installation;
mod job;
mod kokotap;
mod list;
mod man;
mod manifest;
mod map;
mod mirror;
mod plan;
mod pod_state;
mod pods;
mod ready;
mod selector;
mod support;
mod suspend;
mod table;
mod tap;
mod tap_flags;
mod target;
mod top;
mod version;
mod wait;

use std::{env, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    connection::Connection,
    console::Console,
    exit::{Exit, Failure, Outcome},
};

/// Mirrors pod traffic to a node, a pod or any VXLAN endpoint.
#[derive(Parser)]
#[command(
    name = "kubectl podtap",
    bin_name = "kubectl podtap",
    version,
    propagate_version = true,
    after_help = EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    console: Console,
}

const EXAMPLES: &str = "Examples:
  kubectl podtap create deploy/web --to node/n2:mirror --for 5m
  kubectl podtap create -l app=web --to pod/ids-0:tap0 --port 443 --dry-run=client -o yaml
  kubectl podtap explain pod/web-0
  kubectl podtap map -n shop
  kubectl podtap suspend --all -A";

#[derive(Subcommand)]
enum Verb {
    /// Create a tap, and wait until frames arrive
    #[command(override_usage = "kubectl podtap create [NAME] TARGET --to DEST... [OPTIONS]")]
    Create(Box<create::Arguments>),
    /// Capture the traffic of pods, in Wireshark or in a file
    #[command(override_usage = "kubectl podtap capture TARGET [OPTIONS]")]
    Capture(Box<capture::Arguments>),
    /// Tell what a tap would do, and write nothing
    #[command(
        override_usage = "kubectl podtap plan [NAME] TARGET --to DEST... [OPTIONS]\n       kubectl podtap plan NAME\n       kubectl podtap plan -f FILE"
    )]
    Plan(Box<plan::Arguments>),
    /// List taps
    #[command(visible_alias = "ls")]
    List(list::Arguments),
    /// Explain the state of a tap, which taps mirror a pod, or what a node does
    #[command(visible_alias = "describe")]
    Explain(explain::Arguments),
    /// Stop mirroring, and keep the taps
    Suspend(suspend::Arguments),
    /// Mirror again
    Resume(suspend::Arguments),
    /// Delete taps, and wait until nothing of them is left
    Delete(suspend::Arguments),
    /// Delete taps that have expired, and what captures have left
    Cleanup(cleanup::Arguments),
    /// Show who calls whom, as the collector has seen it
    Map(map::Arguments),
    /// Show the newest flows that the collector has seen
    Flows(flows::Arguments),
    /// Show how much taps mirror, and what is lost
    Top(top::Arguments),
    /// Find out what is wrong with PodTap or with the network between nodes, and what to do
    #[command(visible_alias = "check")]
    Doctor(doctor::Arguments),
    /// Print a tap from the flags of kokotap, for kubectl create -f -
    Kokotap(kokotap::Arguments),
    /// Collect what is needed to find out why something does not work
    Support(support::Arguments),
    /// Set up completion
    Completion(complete::Arguments),
    /// Show the versions of this program, of the kinds and of what runs in the cluster
    Version(version::Arguments),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::Arguments),
}

fn main() -> ExitCode {
    if complete::answer() {
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let cli = match extcap::call(&words) {
        None => Cli::parse(),
        Some(extcap::Call::Run(words)) => Cli::parse_from(words),
        Some(extcap::Call::Print(text)) => {
            console::data(&text);
            return ExitCode::SUCCESS;
        }
        Some(extcap::Call::Refuse(message)) => {
            let failure = Failure::usage(message);
            console::fail(&failure);
            return failure.exit.into();
        }
    };
    let Cli { verb, connection, console } = cli;
    console.init();
    // One thread: this waits for the API server most of the time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        // They remove what they have created, also when they are interrupted.
        Ok(runtime) if matches!(verb, Verb::Capture(_) | Verb::Doctor(_)) => {
            Some(runtime.block_on(run(verb, &connection, console)))
        }
        Ok(runtime) => runtime.block_on(wait::interruptible(run(verb, &connection, console))),
        Err(error) => Some(Err(Failure::error(format!("no runtime: {error}")))),
    };
    console::end();
    match outcome {
        Some(Ok(exit)) => exit.into(),
        Some(Err(failure)) => {
            console::fail(&failure);
            failure.exit.into()
        }
        None => {
            console.progress("interrupted");
            Exit::Interrupted.into()
        }
    }
}

async fn run(verb: Verb, connection: &Connection, console: Console) -> Outcome {
    match verb {
        Verb::Create(arguments) => create::run(*arguments, connection, console).await,
        Verb::Capture(arguments) => Box::pin(capture::run(*arguments, connection, console)).await,
        Verb::Plan(arguments) => plan::run(*arguments, connection).await,
        Verb::List(arguments) => list::run(arguments, connection, console).await,
        Verb::Explain(arguments) => explain::run(arguments, connection).await,
        Verb::Suspend(arguments) => suspend::run(arguments, true, connection, console).await,
        Verb::Resume(arguments) => suspend::run(arguments, false, connection, console).await,
        Verb::Delete(arguments) => delete::run(arguments, connection, console).await,
        Verb::Cleanup(arguments) => Box::pin(cleanup::run(arguments, connection, console)).await,
        Verb::Map(arguments) => map::run(arguments, connection, console).await,
        Verb::Flows(arguments) => flows::run(arguments, connection, console).await,
        Verb::Top(arguments) => top::run(arguments, connection, console).await,
        Verb::Doctor(arguments) => doctor::run(arguments, connection, console).await,
        Verb::Kokotap(arguments) => kokotap::run(arguments, connection),
        Verb::Support(arguments) => Box::pin(support::run(arguments, connection, console)).await,
        Verb::Completion(arguments) => complete::run(&arguments),
        Verb::Version(arguments) => version::run(arguments, connection).await,
        Verb::Man(arguments) => man::run(&arguments),
    }
}

#[cfg(test)]
mod tests;
