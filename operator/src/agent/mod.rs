//! The agent: hands a node's work to its tap-helper, and reports what came of it.
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

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use kube::Api;
use tokio::sync::watch;
use tracing::info;

use crate::{client, http::Health, shutdown::Shutdown};

#[derive(clap::Args)]
pub struct Args {
    /// Name of the node that this runs on.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Unix socket on which the tap-helper listens.
    #[arg(long, default_value = "/run/podtap/helper.sock")]
    socket: PathBuf,
    /// Where /livez, /readyz and /metrics are served, for example `[::]:14790`. Without it, nowhere.
    #[arg(long)]
    listen: Option<SocketAddr>,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("cannot wait for signals")]
    Signal(#[source] io::Error),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<(), Error> {
    let mut shutdown = Shutdown::new().map_err(Error::Signal)?;
    let api = Api::all(client::connect().await?);
    info!(node = args.node, "following the work of this node");

    let outlets = follow::Outlets::new();
    let (answers, reports) = watch::channel(None);
    let (requests, requested) = watch::channel(0);
    let (counted, counters) = watch::channel(None);
    // Whoever answers `/livez` is alive: all is one thread.
    let health = Health::new(Duration::MAX);
    let (desk, queue) = counters::desk();
    let page = metrics::Page { desk, orders: outlets.orders.subscribe() };
    let ends = link::Ends {
        orders: outlets.orders.subscribe(),
        requests: requested,
        answers,
        counters: counted,
        health: health.clone(),
    };
    tokio::select! {
        () = follow::run(api.clone(), &args.node, &outlets) => {}
        () = link::run(&args.socket, ends) => {}
        () = publish::run(api, &args.node, outlets.seen.subscribe(), reports) => {}
        () = counters::run(queue, requests, counters) => {}
        () = metrics::serve(args.listen, health, page) => {}
        () = shutdown.requested() => {}
    }
    info!("ending; what is in place stays");
    Ok(())
}
