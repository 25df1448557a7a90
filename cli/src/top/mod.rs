//! `top`: how much taps mirror, by the counters of the nodes.

mod metrics;
mod nodes;
mod rows;
mod screen;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use tokio::time::{Instant, sleep_until};

use crate::{
    complete,
    connection::{Cluster, Connection},
    console::{Console, data, line, warn},
    exit::{Exit, Outcome},
    installation::InstallationFlags,
    tap::{self, Kind, Tap, TapName},
    top::{
        nodes::{History, Nodes},
        rows::{Order, View},
    },
};

/// The time between two readings, of which the second shows rates.
const INTERVAL: Duration = Duration::from_secs(2);
/// Likewise with `--once`, for which the user waits.
const ONCE: Duration = Duration::from_secs(1);
/// How long taps and helper pods count as known.
const LISTED: Duration = Duration::from_secs(10);

/// Arguments of `top`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Show the pods and the destinations of this tap: NAME, or cptap/NAME for a ClusterPodTap
    #[arg(value_name = "TAP", add = ArgValueCandidates::new(complete::taps))]
    tap: Option<TapName>,
    /// Of all namespaces
    #[arg(short = 'A', long, conflicts_with = "tap")]
    all_namespaces: bool,
    /// Print a table and end, as without a terminal
    #[arg(long)]
    once: bool,
    /// Order of the rows
    #[arg(long, value_name = "ORDER", value_enum, default_value_t = Order::Rate)]
    sort: Order,
    /// Print an object per row and line: every two seconds, or with --once one time
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<Format>,
    #[command(flatten)]
    installation: InstallationFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
}

/// Reads taps and counters.
struct Reader {
    cluster: Cluster,
    tap: Option<TapName>,
    all_namespaces: bool,
    nodes: Nodes,
    taps: Vec<Tap>,
    /// Why there may be more of them.
    unread: Vec<String>,
    listed: Option<Instant>,
}

/// Shows counters.
pub async fn run(arguments: Arguments, connection: &Connection, console: Console) -> Outcome {
    let cluster = connection.open().await?;
    let mut reader = Reader {
        nodes: Nodes::new(&cluster, &arguments.installation.podtap_namespace),
        cluster,
        tap: arguments.tap,
        all_namespaces: arguments.all_namespaces,
        taps: Vec::new(),
        unread: Vec::new(),
        listed: None,
    };
    reader.list().await?;
    // Requests are printed by other means, and would end up between the rows.
    let has_screen = io::stdout().is_terminal() && io::stdin().is_terminal() && !console.verbose;
    if has_screen && !arguments.once && arguments.output.is_none() {
        return screen::run(reader, arguments.sort).await;
    }
    let only_once = arguments.once || arguments.output.is_none();
    let interval = if only_once { ONCE } else { INTERVAL };
    reader.read().await?;
    loop {
        let next = Instant::now() + reader.nodes.interval(interval);
        // Before, an agent would serve the same counters.
        sleep_until(next.max(reader.nodes.next())).await;
        reader.read().await?;
        if reader.taps.is_empty() {
            console.progress("no taps found");
        } else {
            print(&reader.view(arguments.sort), arguments.output);
        }
        let failures = reader.failures();
        for failure in &failures {
            warn(failure);
        }
        if only_once {
            return Ok(if failures.is_empty() { Exit::Done } else { Exit::Partly });
        }
    }
}

fn print(view: &View, format: Option<Format>) {
    match format {
        Some(Format::Json) => view.documents().iter().for_each(|document| line(&document.to_string())),
        None => data(&view.text()),
    }
}

impl Reader {
    /// Finds the taps, and the helper pods.
    async fn list(&mut self) -> Outcome<()> {
        (self.taps, self.unread) = if let Some(name) = &self.tap {
            (vec![tap::get(&self.cluster, name).await?], Vec::new())
        } else {
            let namespace = Some(self.cluster.namespace.as_str()).filter(|_| !self.all_namespaces);
            tap::readable(&self.cluster, Kind::PodTap, namespace).await?
        };
        if self.all_namespaces {
            match tap::readable(&self.cluster, Kind::ClusterPodTap, None).await {
                Ok((taps, unread)) => {
                    self.taps.extend(taps);
                    self.unread.extend(unread);
                }
                Err(failure) if failure.exit == Exit::NotPermitted => {
                    self.unread.push("ClusterPodTaps are missing: you may not list them".to_owned());
                }
                Err(failure) => return Err(failure),
            }
        }
        self.nodes.list().await?;
        self.listed = Some(Instant::now());
        Ok(())
    }

    /// Reads the counters.
    async fn read(&mut self) -> Outcome<()> {
        if self.listed.is_none_or(|listed| listed.elapsed() > LISTED) {
            self.list().await?;
        }
        self.nodes.read().await
    }

    fn view(&self, order: Order) -> View {
        let nodes = self.nodes.histories();
        let mut view = match (&self.tap, &self.taps[..]) {
            (Some(_), [tap]) => View::of_tap(tap, &nodes),
            (_, taps) => View::of_taps(taps, self.all_namespaces, &nodes),
        };
        view.sort(order);
        view
    }

    /// The taps that are missing, and the nodes of which counters are.
    fn failures(&self) -> Vec<String> {
        let nodes = self.nodes.histories().into_iter();
        let of_node =
            |(node, history): (_, &History)| Some(format!("node {node} is missing: {}", history.failure.as_ref()?));
        self.unread.iter().cloned().chain(nodes.filter_map(of_node)).collect()
    }
}

#[cfg(test)]
mod tests;
