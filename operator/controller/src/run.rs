//! Start-up, leadership, and the loop of reconciles.
//!
//! # Guarantees
//! Only the leader writes. No tap is lost, duplicated or mixed up by a restart of this process, at whatever point it happens.
//!
//! # Assumptions
//! The definitions under `crds/` are installed, and the service account has the RBAC rules under `deploy/`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use clap::builder::BoolishValueParser;
use podtap_runtime::{
    client,
    clock::ServerClock,
    http::{self, Health, Metrics, Probes, Server},
    leader::{self, Held, Lease},
    shutdown::Shutdown,
};
use tokio::time::sleep;
use tracing::info;

use crate::{
    apply::{context::Context, helper_pod::HelperTemplate, sweep_record::SweepRecord, uninstall_guard::UninstallGuard},
    events::Publisher,
    expression::process::Compiler,
    metrics::ControllerMetrics,
    names,
    plan::rollout::MaxUnavailable,
    reconcile::Reconciler,
    state::ControllerState,
    store::{caches::Caches, watch},
};

/// How often the loop reports that it is alive when there is nothing else to do.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// After a reconcile, the loop rests as long as it took, but no longer than this: a big cluster that changes all the time costs half a
/// core, and a small one waits a few milliseconds.
const MAX_REST: Duration = Duration::from_millis(200);
/// How long a reconcile may go on after a signal.
const FINISH: Duration = Duration::from_secs(5);
/// How long the loop may take before /livez fails. Longer than the timeout of any request.
const LIVENESS: Duration = Duration::from_secs(360);

/// The arguments of the controller.
#[derive(clap::Args)]
pub struct Args {
    /// Namespace of PodTap itself, with the helper pods, the lease and the record of nodes to sweep.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Name of this replica, unique among all replicas.
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// Image of the helper pods, with /podtap-agent and /tap-helper.
    #[arg(long, env = "HELPER_IMAGE")]
    helper_image: String,
    /// When nodes pull the image: `Always`, `IfNotPresent` or `Never`.
    #[arg(long, env = "HELPER_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    helper_image_pull_policy: String,
    /// Pull secrets of the image, in that namespace, separated by commas.
    #[arg(long, env = "HELPER_PULL_SECRETS", value_delimiter = ',')]
    helper_pull_secrets: Vec<String>,
    /// Priority class of the helper pods, for example `system-node-critical` if the namespace may use it.
    #[arg(long, env = "HELPER_PRIORITY_CLASS")]
    helper_priority_class: Option<String>,
    /// Helper pods write their logs as JSON.
    #[arg(long, env = "HELPER_LOG_JSON", value_parser = BoolishValueParser::new())]
    helper_log_json: bool,
    /// TCP port on which helper pods serve /livez, /readyz and /metrics at all addresses of their nodes. 0: on the loopback of
    /// the node only, port 14791.
    #[arg(long, env = "HELPER_METRICS_PORT", default_value_t = 0)]
    helper_metrics_port: u16,
    /// How many helper pods are replaced at a time when their template changes, once the first new one is Ready: a number, or a
    /// percentage of the nodes that have helper pods.
    #[arg(long, env = "HELPER_MAX_UNAVAILABLE", default_value = "10%")]
    helper_max_unavailable: MaxUnavailable,
    /// Address on which the controller serves /livez, /readyz and /metrics.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "[::]:8080")]
    http_address: SocketAddr,
}

/// Why the controller exits. It is restarted; the message says if more is needed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error("cannot listen for signals")]
    Signal(#[source] std::io::Error),
    #[error(transparent)]
    Lease(#[from] leader::Error),
    #[error("leadership was lost")]
    LeadershipLost,
    #[error("a watch ended")]
    WatchEnded,
}

/// Runs until it receives a signal, or loses leadership.
pub async fn run(args: Args) -> Result<(), Error> {
    let mut shutdown = Shutdown::new().map_err(Error::Signal)?;
    let (client, clock) = client::connect().await?;
    let health = Health::new(LIVENESS);
    let metrics = Metrics::new();
    let server = Server::spawn(args.http_address, Probes { health: health.clone(), metrics: metrics.clone() }).await?;
    info!(address = %server.address(), "serving health and metrics");
    let metrics = ControllerMetrics::new(&metrics);

    let caches = Caches::new();
    let mut watches = watch::spawn(&client, &caches, &args.namespace);
    let mut lease = Lease::new(client.clone(), &args.namespace, names::LEASE, &args.identity);
    let held = tokio::select! {
        // A standby with filled caches takes over at once.
        held = async {
            caches.wait_until_synced().await;
            info!("caches are filled");
            health.set_ready(true);
            lease.acquire().await
        } => held?,
        _ = watches.join_next() => return Err(Error::WatchEnded),
        () = shutdown.requested() => return Ok(()),
    };
    info!(identity = args.identity, "leading");
    metrics.set_leader(true);
    let mut reconciler = Reconciler {
        publisher: Publisher::new(client.clone(), &args.identity),
        sweep_record: SweepRecord::new(client.clone(), &args.namespace),
        uninstall_guard: UninstallGuard::new(client.clone(), &args.namespace),
        context: Context { client, caches, max_unavailable: args.helper_max_unavailable, template: args.into() },
        compiler: Compiler::default(),
        state: ControllerState::default(),
        metrics,
    };
    let node_taps = reconciler.context.caches.node_taps.list();
    reconciler.state.expressions.adopt(node_taps.iter().flat_map(|entry| entry.object.compiled()));
    tokio::select! {
        result = lead(&mut reconciler, &clock, &held, &health, &mut shutdown) => result?,
        _ = watches.join_next() => return Err(Error::WatchEnded),
    }
    info!("releasing leadership");
    held.release().await;
    Ok(())
}

/// Reconciles now, and then whenever something changes or is due, until it receives a signal. A reconcile that has begun is finished
/// first if that is a matter of moments. Ending it early is as safe as a crash: all state is in the cluster.
async fn lead(
    reconciler: &mut Reconciler,
    clock: &ServerClock,
    held: &Held,
    health: &Health,
    shutdown: &mut Shutdown,
) -> Result<(), Error> {
    loop {
        health.alive();
        let began = Instant::now();
        let next = tokio::select! {
            biased;
            () = held.lost() => return Err(Error::LeadershipLost),
            next = reconciler.reconcile(clock.now()) => next,
            // The lease is to be released within the pod's grace period, even if requests are slow.
            () = async { shutdown.requested().await; sleep(FINISH).await } => return Ok(()),
        };
        tokio::select! {
            biased;
            () = held.lost() => return Err(Error::LeadershipLost),
            () = shutdown.requested() => return Ok(()),
            () = sleep(began.elapsed().min(MAX_REST)) => {}
        }
        loop {
            health.alive();
            let pause = next.duration_since(clock.now());
            // A deadline that passed during the reconcile is due now.
            let pause = Duration::try_from(pause).unwrap_or_default();
            tokio::select! {
                biased;
                () = held.lost() => return Err(Error::LeadershipLost),
                () = shutdown.requested() => return Ok(()),
                () = reconciler.context.caches.changed() => break,
                () = reconciler.state.helper_requests.answer() => break,
                () = reconciler.state.expressions.answer() => break,
                () = sleep(pause.min(HEARTBEAT)) => if pause <= HEARTBEAT { break },
            }
        }
    }
}

impl From<Args> for HelperTemplate {
    fn from(args: Args) -> Self {
        Self {
            namespace: args.namespace,
            image: args.helper_image,
            pull_policy: args.helper_image_pull_policy,
            pull_secrets: args.helper_pull_secrets.into_iter().filter(|name| !name.is_empty()).collect(),
            log_json: args.helper_log_json,
            metrics_port: args.helper_metrics_port,
            priority_class: args.helper_priority_class.filter(|name| !name.is_empty()),
        }
    }
}
