//! Starts the agent's parts, and stops them on a signal.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use kube::Api;
use podtap_runtime::{client, http::Health, shutdown::Shutdown};
use tokio::sync::watch;
use tracing::info;

use crate::{helper_client::HelperClient, metrics, node_tap, probe, publish, reachability, renewal};

#[derive(clap::Args)]
pub struct Args {
    /// Name of the node that this runs on.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Unix socket on which the tap-helper listens.
    #[arg(long, default_value = "/run/podtap/helper.sock")]
    socket: PathBuf,
    /// Unix socket on which `podtap-agent probe` is answered.
    #[arg(long, default_value = "/run/podtap/agent.sock")]
    probe_socket: PathBuf,
    /// Address of /livez, /readyz and /metrics, for example `[::]:14790`. Without it, they are not served.
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
    let (client, clock) = client::connect().await?;
    let api = Api::all(client);
    info!(node = args.node, "watching this node's NodeTap");

    // No heartbeat: everything runs on one thread, so an agent that answers `/livez` is alive.
    let health = Health::new(Duration::MAX);
    let helper = Arc::new(HelperClient::connect(args.socket, clock, health.clone()));
    let (last_status_sender, last_status) = watch::channel(None);
    let (reachable_sender, reachable) = watch::channel(Vec::new());
    tokio::select! {
        () = node_tap::watch::run(api.clone(), &args.node, &helper, &last_status_sender) => {}
        () = publish::run(api.clone(), &args.node, last_status, helper.reports(), reachable) => {}
        () = reachability::run(&helper, &reachable_sender) => {}
        () = renewal::run(api, &args.node, &helper) => {}
        () = probe::serve(&args.probe_socket, &health) => {}
        () = metrics::serve(args.listen, health.clone(), metrics::Source(helper.clone())) => {}
        () = shutdown.requested() => {}
    }
    info!("stopping; mirrors stay as they are");
    Ok(())
}
