//! `doctor`: what is wrong with an installation, or would be with a new one, and what to do.
//!
//! [`snapshot`] reads what the user may read. The checks are pure: each module turns the snapshot into findings.

mod cluster;
mod cni;
mod control_plane;
mod firewall;
#[cfg(test)]
mod fixtures;
mod installation;
mod network;
mod nodes;
mod paths;
mod report;
mod rights;
mod session;
mod snapshot;
mod taps;

use std::time::Duration;

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::time::{Instant, sleep_until};

use crate::{
    complete,
    connection::{Cluster, Connection, duration},
    console::{Console, agrees, counted, data, warn},
    doctor::{
        installation::Rehearsal,
        report::{Finding, Group, Level, Report},
        session::Session,
        snapshot::{Scope, Snapshot},
    },
    exit::{Exit, Failure, Outcome},
    installation::InstallationFlags,
    manifest,
    tap::TapName,
    wait::{Waiting, interruptible},
};

/// How often everything is read while it waits.
const INTERVAL: Duration = Duration::from_secs(2);
/// How many names a message has.
const MAX_NAMES: usize = 5;

/// Arguments of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Before an installation: whether it would work
    #[arg(long, conflicts_with_all = ["node", "tap"])]
    pre: bool,
    /// Only this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Only what matters for a tap: NAME, or cptap/NAME for a ClusterPodTap
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::taps))]
    tap: Option<TapName>,
    #[command(flatten)]
    installation: InstallationFlags,
    /// Try the network between nodes, with a pod on each for some seconds. Asks
    #[arg(long, conflicts_with = "pre")]
    network: bool,
    /// How the findings are printed
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How long to wait until there are no errors
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    wait: Duration,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// All findings
    Table,
    /// A document
    Json,
    /// What is not as it should be
    Short,
}

/// Checks, and prints what it has found. When it is interrupted, it removes what it has started.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let cluster = connection.open().await?;
    let session = arguments.network.then(|| Session::new(&cluster, &arguments.installation.podtap_namespace));
    let report = interruptible(Box::pin(report(&cluster, &arguments, session.as_ref(), console))).await;
    // Before anything is printed: that ends the program if the reader has ended.
    if let Some(session) = session
        && let Some(Err(failure)) = interruptible(session.remove()).await
    {
        warn(&failure.message);
    }
    let Some(report) = report else {
        console.progress("interrupted");
        return Ok(Exit::Interrupted);
    };
    let report = report?;
    match arguments.output {
        Format::Table => data(&report.text(true)),
        Format::Short => data(&report.text(false)),
        Format::Json => {
            let document = serde_json::to_value(&report).map_err(|error| Failure::error(error.to_string()))?;
            data(&manifest::json(&document));
        }
    }
    Ok(report.exit())
}

async fn report(
    cluster: &Cluster,
    arguments: &Arguments,
    session: Option<&Session>,
    console: Console,
) -> Outcome<Report> {
    let deadline = Instant::now() + arguments.wait;
    let mut waiting = Waiting::new(console);
    let (snapshot, mut findings) = loop {
        let next = Instant::now() + INTERVAL;
        let (snapshot, findings) = findings(cluster, arguments).await?;
        match findings.iter().find(|finding| finding.level == Level::Error) {
            Some(error) if next <= deadline => waiting.reports(format!("the end of an error: {}", error.message)),
            _ => break (snapshot, findings),
        }
        sleep_until(next).await;
    };
    if let Some(session) = session {
        findings.extend(try_network(cluster, arguments, session, &snapshot, console).await?);
    }
    Ok(Report::new(findings))
}

async fn findings(cluster: &Cluster, arguments: &Arguments) -> Outcome<(Snapshot, Vec<Finding>)> {
    let Arguments { installation: InstallationFlags { podtap_namespace: home }, node, tap, .. } = arguments.clone();
    let snapshot = Box::pin(Snapshot::read(cluster, &Scope { home, node, tap })).await?;
    let findings = if arguments.pre {
        installation::check(&snapshot, &Rehearsal::read(cluster, &snapshot).await?)
    } else {
        check(&snapshot, arguments.network)
    };
    Ok((snapshot, findings))
}

async fn try_network(
    cluster: &Cluster,
    arguments: &Arguments,
    session: &Session,
    snapshot: &Snapshot,
    console: Console,
) -> Outcome<Vec<Finding>> {
    let members = session::members(snapshot, arguments.node.as_deref());
    if members.len() < 2 {
        let text = "there are no two nodes that can run pods, so there is no network between them to try";
        return Ok(vec![Finding::new(Group::Network, Level::Unknown, text)]);
    }
    let names: Vec<String> = members.iter().map(|member| member.node.clone()).collect();
    let port = snapshot.receiver_port();
    let consequence = format!(
        "this starts a pod on each of {} ({}) for some seconds, which send each other packets at UDP {port}; a tap that needs its \
         first receiver on one of them waits meanwhile",
        counted(names.len(), "node"),
        named("", &names)
    );
    if !agrees(&consequence, arguments.yes).await? {
        return Ok(vec![Finding::new(Group::Network, Level::Unknown, "the network between nodes was not tried")]);
    }
    // The other findings may tell why.
    Ok(session.observe(cluster, snapshot, &members, console).await.map_or_else(
        |failure| {
            let level = if failure.exit == Exit::NotPermitted { Level::NotPermitted } else { Level::Error };
            vec![Finding::new(Group::Network, level, format!("the network between nodes cannot be tried: {failure}"))]
        },
        |observed| paths::check(snapshot, &observed, &members),
    ))
}

/// All checks of an installation.
fn check(snapshot: &Snapshot, is_network_tried: bool) -> Vec<Finding> {
    let mut findings = cluster::check(snapshot);
    findings.extend(control_plane::check(snapshot));
    // What is not installed has no other faults.
    if !snapshot.served.is_empty() {
        findings.extend(nodes::check(snapshot));
        findings.extend(network::check(snapshot, is_network_tried));
        findings.extend(taps::check(snapshot));
    }
    findings
}

/// What the user may not read.
fn unread(group: Group, what: &str, message: &str) -> Finding {
    Finding::new(group, Level::NotPermitted, format!("you may not read {what}: {message}"))
}

/// Names after what they are of, if that is not empty.
fn named(kind: &str, names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMES).cloned().collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(MAX_NAMES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let kind = match (kind, names.len()) {
        ("", _) => String::new(),
        (kind, 1) => format!("{kind} "),
        (kind, _) => format!("{kind}s "),
    };
    format!("{kind}{shown}{more}")
}

fn is_component(pod: &Pod, component: &str) -> bool {
    pod.labels().get("app.kubernetes.io/component").is_some_and(|found| found == component)
}

#[cfg(test)]
mod tests;
