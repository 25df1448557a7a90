//! `explain`: why a tap is as it is, which taps mirror a pod, and what a node does.

mod events;
pub mod node;
mod pod;
mod tap;
mod tree;

use std::str::FromStr;

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp};
use serde::Serialize;

use crate::{
    complete,
    connection::Connection,
    console::{BAD, CAUTION, GOOD, data, styled},
    exit::{Exit, Failure, Outcome, page_of},
    explain::tree::Tree,
    manifest,
    pods::{Cause, Verdict},
    tap::TapName,
};

/// Arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// NAME of a tap, cptap/NAME of a ClusterPodTap, pod/NAME or node/NAME
    #[arg(value_name = "WHAT", add = ArgValueCompleter::new(complete::explainable))]
    what: What,
    /// How many of its newest events are told. 0: none
    #[arg(long, value_name = "N", default_value_t = 5)]
    events: usize,
    /// Print a document
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Tap(TapName),
    Pod(String),
    Node(String),
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |name: &str| {
            if name.is_empty() || name.contains('/') {
                Err(format!("{text:?} has no name"))
            } else {
                Ok(name.to_owned())
            }
        };
        match text.split_once('/') {
            Some(("pod" | "pods" | "po", rest)) => name(rest).map(Self::Pod),
            Some(("node" | "nodes" | "no", rest)) => name(rest).map(Self::Node),
            _ => text.parse().map(Self::Tap),
        }
    }
}

/// Explains one thing.
pub async fn run(arguments: Arguments, connection: &Connection) -> Outcome {
    let cluster = connection.open().await?;
    let (document, tree, about) = match &arguments.what {
        What::Tap(name) => {
            let report = tap::Report::read(&cluster, name).await?;
            (serde_json::to_value(&report), report.tree(), vec![report.about()])
        }
        What::Pod(name) => {
            let report = pod::Report::read(&cluster, name).await?;
            (serde_json::to_value(&report), report.tree(), vec![report.about()])
        }
        What::Node(name) => {
            let report = node::Report::read(&cluster, name).await?;
            (serde_json::to_value(&report), report.tree(), report.about())
        }
    };
    let events = match arguments.events {
        0 => Some(Vec::new()),
        most => events::read(&cluster, &about, most).await?,
    };
    match arguments.output {
        Some(Format::Json) => {
            let mut document = document.map_err(|error| Failure::error(error.to_string()))?;
            document["events"] = serde_json::to_value(&events).map_err(|error| Failure::error(error.to_string()))?;
            data(&manifest::json(&document));
        }
        None => data(&tree.with(events::tree(events.as_deref(), Timestamp::now())).text()),
    }
    Ok(Exit::Done)
}

/// A condition that users should read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
    /// What the reason means, and what to do.
    page: String,
}

impl Finding {
    fn of(condition: &Condition) -> Self {
        let Condition { type_, status, reason, message, .. } = condition;
        let page = page_of(reason);
        Self { kind: type_.clone(), status: status.clone(), reason: reason.clone(), message: message.clone(), page }
    }

    /// Whether there is something to do.
    fn is_problem(&self) -> bool {
        (self.status == "False") != (self.kind == "Degraded")
    }

    fn tree(&self) -> Tree {
        let Self { kind, status, reason, message, page } = self;
        let style = match (self.is_problem(), status.as_str()) {
            (false, "Unknown") => CAUTION,
            (false, _) => GOOD,
            (true, _) => BAD,
        };
        let tree = Tree::new(format!("{} {reason}{}", styled(style, &format!("{kind}={status}")), said(message)));
        if self.is_problem() { tree.with([Tree::new(page.clone())]) } else { tree }
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// A pod or a tap with the verdict on it.
fn with_verdict(thing: &str, verdict: &Verdict) -> Tree {
    let line = |style, state: &str, cause: &Cause| {
        let reason = if cause.reason.is_empty() { String::new() } else { format!(" {}", cause.reason) };
        Tree::new(format!("{thing}  {}{reason}{}", styled(style, state), said(&cause.message)))
    };
    match verdict {
        Verdict::Tapped => Tree::new(format!("{thing}  {}", styled(GOOD, "tapped"))),
        Verdict::Pending(cause) => line(CAUTION, "pending", cause),
        Verdict::NotTapped(cause) => line(BAD, "not tapped", cause).with([Tree::new(page_of(&cause.reason))]),
        Verdict::NotMatched(cause) => line(CAUTION, "not selected", cause),
        Verdict::Unknown(cause) => line(CAUTION, "unknown", cause),
    }
}

#[cfg(test)]
mod tests;
