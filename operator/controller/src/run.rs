//! The controller: turns `PodTap` objects into the work of nodes.
//!
//! # Expected flow
//! Watches fill caches and wake the leader; the leader makes a [pass] over everything. One pass for all objects and
//! not one reconciler per object, because taps depend on each other: VNIs, interface names, circles, one object per node.
//!
//! # Guarantees
//! Only the leader writes. No tap is lost, doubled or mixed up by a restart of this process, wherever it happens.
//!
//! # Assumptions
//! The definitions under `crds/` are installed, and the service account has the rights listed in `deploy/`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use tokio::time::sleep;
use tracing::info;

use podtap_runtime::{
    client,
    http::{self, Health, Metrics, Server},
    leader::{self, Held, Lease},
    shutdown::Shutdown,
};

use crate::{apply::{helper_pod::HelperTemplate, objects::Context, vni_record::Record}, events::Publisher, expression::process::Compiler, metrics::ControllerMetrics, names, reconcile::Reconciler, state::ControllerState, store::watch::{self, Caches}};

/// How often a sign of life is given when there is nothing else to do.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// After a pass, as long a rest as it took, but no longer than this: a big cluster in which something changes all the time
/// costs half a core, and a small one waits a few milliseconds.
const LONGEST_REST: Duration = Duration::from_millis(200);
/// After how long without a sign of life the kubelet may restart this process. Longer than any request is waited for.
const LIVENESS: Duration = Duration::from_secs(360);

/// What the controller is started with.
#[derive(clap::Args)]
pub struct Args {
    /// Namespace of `PodTap` itself: helper pods, the lease and the record of VNIs are there.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Name of this replica, different from that of any other.
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// Image of the helper pods; it holds /podtap-agent and /tap-helper.
    #[arg(long, env = "HELPER_IMAGE")]
    helper_image: String,
    /// When nodes pull the image: `Always`, `IfNotPresent` or `Never`.
    #[arg(long, env = "HELPER_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    helper_image_pull_policy: String,
    /// Secrets of the namespace with which nodes pull the image.
    #[arg(long, env = "HELPER_PULL_SECRETS", value_delimiter = ',')]
    helper_pull_secrets: Vec<String>,
    /// Service account of the helper pods.
    #[arg(long, env = "HELPER_SERVICE_ACCOUNT", default_value = "podtap-agent")]
    helper_service_account: String,
    /// Priority class of the helper pods, for example `system-node-critical` where the namespace may use it.
    #[arg(long, env = "HELPER_PRIORITY_CLASS")]
    helper_priority_class: Option<String>,
    /// Helper pods write their logs as JSON.
    #[arg(long, env = "HELPER_LOG_JSON", value_parser = clap::builder::BoolishValueParser::new())]
    helper_log_json: bool,
    /// TCP port of the nodes at which helper pods serve /livez, /readyz and /metrics; 0 for none.
    #[arg(long, env = "HELPER_METRICS_PORT", default_value_t = 14790)]
    helper_metrics_port: u16,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "[::]:8080")]
    http_address: SocketAddr,
}

/// Why the controller ends. Each is cured by starting it again, or by what the message says.
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

/// Runs until a signal asks it to end, or leadership is lost.
pub async fn run(args: Args) -> Result<(), Error> {
    let mut shutdown = Shutdown::new().map_err(Error::Signal)?;
    let client = client::connect().await?;
    let health = Health::new(LIVENESS);
    let metrics = Metrics::new();
    let server = Server::spawn(args.http_address, health.clone(), metrics.clone()).await?;
    info!(address = %server.address(), "serving health and metrics");
    let metrics = ControllerMetrics::new(&metrics);

    let caches = Caches::new();
    let mut watches = watch::spawn(&client, &caches, &args.namespace);
    let mut lease = Lease::new(client.clone(), &args.namespace, names::LEASE, &args.identity);
    let held = tokio::select! {
        // A standby that has everything in memory already takes over at once.
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
    let mut leader = Reconciler {
        publisher: Publisher::new(client.clone(), &args.identity),
        record: Record::new(client.clone(), &args.namespace),
        context: Context { client, caches, template: args.into() },
        compiler: Compiler::default(),
        state: ControllerState::default(),
        metrics,
    };
    tokio::select! {
        result = lead(&mut leader, &held, &health, &mut shutdown) => result?,
        _ = watches.join_next() => return Err(Error::WatchEnded),
    }
    info!("giving leadership up");
    held.release().await;
    Ok(())
}

/// Passes: one now, then one whenever something changes or is due, until shutdown is requested. A pass that has begun is finished first.
async fn lead(leader: &mut Reconciler, held: &Held, health: &Health, shutdown: &mut Shutdown) -> Result<(), Error> {
    loop {
        health.alive();
        let began = Instant::now();
        let next = tokio::select! {
            biased;
            () = held.lost() => return Err(Error::LeadershipLost),
            next = leader.reconcile() => next,
        };
        tokio::select! {
            biased;
            () = held.lost() => return Err(Error::LeadershipLost),
            () = shutdown.requested() => return Ok(()),
            () = sleep(began.elapsed().min(LONGEST_REST)) => {}
        }
        loop {
            health.alive();
            let pause = next.duration_since(Timestamp::now());
            // A deadline that is over by the time that the pass ends is due now.
            let pause = Duration::try_from(pause).unwrap_or_default();
            tokio::select! {
                biased;
                () = held.lost() => return Err(Error::LeadershipLost),
                () = shutdown.requested() => return Ok(()),
                () = leader.context.caches.changed() => break,
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
            service_account: args.helper_service_account,
            log_json: args.helper_log_json,
            metrics_port: args.helper_metrics_port,
            priority_class: args.helper_priority_class.filter(|name| !name.is_empty()),
        }
    }
}
