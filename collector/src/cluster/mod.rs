//! The names of a cluster's pods, services and nodes, for the program that reads frames.
//!
//! [`watch`] projects what the API server reports, [`owners`] finds what pods belong to, [`inventory`] has the result, and [`listener`]
//! passes it on. [`policy`] tells where flows and frames may be sent. For names, the API server is asked for nothing but lists and watches.

mod inventory;
mod listener;
mod owners;
mod pod;
mod policy;
mod service;
mod watch;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use podtap_runtime::{
    client,
    http::{Health, Metrics, Probes, Server},
    shutdown::Shutdown,
    socket,
};
use tokio::sync::Notify;
use tracing::info;

use self::{inventory::Inventory, policy::Policy};
use crate::access;

/// The annotation by which users of Otterize name the workload of a pod.
const WORKLOAD_NAME: &str = "intents.otterize.com/workload-name";

#[derive(clap::Args)]
pub struct Arguments {
    /// Unix socket on which names are passed on
    #[arg(long, value_name = "PATH", default_value = "/run/podtap/names.sock")]
    socket: PathBuf,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS")]
    probes: Option<SocketAddr>,
    /// Annotation of a pod with the name of its workload, instead of that of its owner
    #[arg(long, value_name = "KEY", default_value = WORKLOAD_NAME)]
    workload_annotation: String,
    /// Unix socket that tells `podtap-exporter` and `podtap-collector sensor` whether the PodTapPolicy lets flows or frames be sent to an
    /// address
    #[arg(long, value_name = "PATH")]
    policy_socket: Option<PathBuf>,
    #[command(flatten)]
    exposed: access::Exposed,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(arguments: Arguments) -> Result<()> {
    let mut shutdown = Shutdown::new().context("signals")?;
    let (client, _) = client::connect().await?;
    let (health, metrics) = (Health::new(Duration::MAX), Metrics::new());
    let probes = Probes { health: health.clone(), metrics: metrics.clone() };
    let _server = match arguments.probes {
        Some(address) => Some(Server::spawn(address, probes).await?),
        None => None,
    };
    let _authorized = access::serve(arguments.exposed, &client, &metrics).await?;
    let listener = socket::bind(&arguments.socket)
        .with_context(|| format!("{} cannot be listened on", arguments.socket.display()))?;
    let inventory = Inventory::new(&metrics);
    info!(socket = %arguments.socket.display(), "watching pods, services and nodes");
    let policy = Policy::default();
    let questions = match &arguments.policy_socket {
        Some(path) => Some(socket::bind(path).with_context(|| format!("{} cannot be listened on", path.display()))?),
        None => None,
    };
    let synced = Notify::new();
    let serve = async {
        // Until then, what is missing may exist.
        synced.notified().await;
        policy.set_synced();
        listener::serve(&listener, &inventory).await;
    };
    let answer = async {
        match &questions {
            Some(listener) => {
                tokio::join!(policy.follow(client.clone()), policy.serve(listener, &inventory));
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = answer => bail!("the watch of the policy ended"),
        () = watch::run(&client, &inventory, &arguments.workload_annotation, &health, &synced) => bail!("a watch ended"),
        () = serve => {}
        () = shutdown.requested() => {}
    }
    Ok(())
}
