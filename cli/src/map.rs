//! `map`: who calls whom, as the collector has seen it.

use clap::{Args, ValueEnum};

use crate::{
    collector::{Collector, CollectorFlags, of_namespace},
    connection::Connection,
    console::{Console, bytes},
    exit::{Exit, Outcome},
};

/// Arguments of `map`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Form of the map
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::List)]
    output: Format,
    #[command(flatten)]
    collector: CollectorFlags,
}

/// The forms that the collector has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(clippy::doc_markdown, reason = "--help shows this text as it is")]
enum Format {
    /// Text: each client, and what it calls
    List,
    /// Edges with their counts
    Json,
    /// For graphviz
    Dot,
    /// For Markdown
    Mermaid,
    /// A picture
    Svg,
    /// NetworkPolicies that allow what was seen. Review them before you apply them
    NetworkPolicy,
    /// ClientIntents of Otterize
    ClientIntents,
}

impl Format {
    /// How the collector calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Json => "map",
            Self::Dot => "dot",
            Self::Mermaid => "mermaid",
            Self::Svg => "svg",
            Self::NetworkPolicy => "network-policy",
            Self::ClientIntents => "client-intents",
        }
    }
}

/// Prints the map.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let cluster = connection.open().await?;
    let collector = Collector::find(&cluster, &arguments.collector).await?;
    let namespace = of_namespace(&cluster, arguments.all_namespaces);
    let map = collector.get(&format!("{namespace}/map?format={}", arguments.output.name())).await?;
    if map.is_empty() {
        console.progress("no calls found");
    }
    bytes(&map);
    Ok(Exit::Done)
}
