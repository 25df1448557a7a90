//! Starts the loops, and ends them on a signal.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use kube::Api;
use podtap_runtime::{client, http::Health, shutdown::Shutdown};
use tokio::sync::watch;
use tracing::info;

use crate::{counters, follow, link, metrics, publish};

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
    #[error("cannot start the asynchronous runtime")]
    Runtime(#[source] io::Error),
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
