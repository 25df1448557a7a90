//! The agent: hands a node's work to its tap-helper, and reports what came of it.
//!
//! Knows the API server and no kernel. Three loops, joined by channels that hold only the newest value: [`follow`] turns the
//! node's `NodeTap` into an order, [`link`] carries orders to the tap-helper and reports back, [`publish`] writes the status.
//! None of them ends because of an error; ending the agent leaves every mirror as it is.

mod convert;
mod follow;
mod link;
mod order;
mod publish;

use std::{io, path::PathBuf};

use kube::Api;
use tokio::sync::watch;
use tracing::info;

use crate::{client, shutdown::Shutdown};

#[derive(clap::Args)]
pub struct Args {
    /// Name of the node that this runs on.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Unix socket on which the tap-helper listens.
    #[arg(long, default_value = "/run/podtap/helper.sock")]
    socket: PathBuf,
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
    let answers = watch::Sender::new(None);
    let (orders, seen, reports) = (outlets.orders.subscribe(), outlets.seen.subscribe(), answers.subscribe());
    tokio::select! {
        () = follow::run(api.clone(), &args.node, &outlets) => {}
        () = link::run(&args.socket, orders, &answers) => {}
        () = publish::run(api, &args.node, seen, reports) => {}
        () = shutdown.requested() => {}
    }
    info!("ending; what is in place stays");
    Ok(())
}
