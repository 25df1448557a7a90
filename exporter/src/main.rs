//! `podtap-exporter`: sends flows of the collector to the systems that people run.
//!
//! [`input`] reads the lines that `podtap-collector` writes, [`record`] makes records of both directions of them, and [`sinks`] deliver
//! these, each with a [`queue`] of its own.
//!
//! In a cluster, it runs beside the collector, in a container that has no capability and no token of the API server. What parses frames
//! that anyone may have sent has none of the passwords that sinks need, and no network connections.
#![deny(unsafe_code)]

mod config;
mod figures;
mod flow;
mod http;
mod input;
mod metrics;
mod policy;
mod queue;
mod record;
mod sinks;
mod status;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser};
use podtap_runtime::{
    http::{Health, Metrics, Probes, Server},
    memory::disable_tracing,
    shutdown::Shutdown,
    socket,
    telemetry::LogArgs,
};

use crate::{
    config::Config, figures::Figures, metrics::scrape::Source as MetricsSource, policy::Policy, status::Status,
};

/// Sends flows of podtap-collector to other systems.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    logs: LogArgs,
    /// YAML file with the sinks: see docs/exporter.md
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    source: Source,
    /// Unix socket of `podtap-collector names --policy-socket`: flows are sent only to addresses of the cluster, and to those that the
    /// PodTapPolicy allows
    #[arg(long, value_name = "PATH")]
    policy_socket: Option<PathBuf>,
    /// Address of /livez, /readyz, /metrics and /status
    #[arg(long, value_name = "ADDRESS")]
    probes: Option<SocketAddr>,
}

/// Where flows come from.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Source {
    /// Unix socket to which `podtap-collector --export-socket` connects
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// File with the lines of `podtap-collector --print flows`, or - for standard input. It is read to its end
    #[arg(long, value_name = "FILE")]
    read: Option<PathBuf>,
}

/// How long sinks may take for what waits at the end. The kubelet kills what takes 15 seconds, of which the collector may take 6 for its last
/// lines.
const LAST_RECORDS: Duration = Duration::from_secs(8);
/// Likewise, if all of a file was read.
const WHOLE_FILE: Duration = Duration::from_secs(120);
/// Nothing here can hang: the probe tells that the process answers.
const LIVENESS: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.logs.init();
    let run = || {
        disable_tracing()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let code = runtime.block_on(run(&cli));
        // Without waiting for a write to standard output that nothing reads.
        runtime.shutdown_background();
        code
    };
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podtap-exporter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Result<ExitCode> {
    let mut shutdown = Shutdown::new()?;
    let metrics = Metrics::new();
    let figures = Figures::new(&metrics);
    let (sinks, flows) = Config::read(&cli.config)?.start(&figures, Policy::new(cli.policy_socket.as_deref()))?;
    ensure!(flows.is_none() || cli.probes.is_some(), "metrics of flows are served at --probes, which is missing");
    let health = Health::new(LIVENESS);
    let mut server = None;
    if let Some(address) = cli.probes {
        let probes = Probes { health: health.clone(), metrics: MetricsSource::new(metrics, flows) };
        let started = Server::spawn(address, Status { probes, conditions: sinks.conditions().into() }).await?;
        eprintln!("podtap-exporter: health, metrics and status are served on http://{}", started.address());
        server = Some(started);
    }
    let patience = match (&cli.source.socket, &cli.source.read) {
        (Some(path), _) => {
            let listener = socket::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
            health.set_ready(true);
            eprintln!("podtap-exporter: listening");
            input::serve(&listener, &sinks, &figures, &mut shutdown).await;
            LAST_RECORDS
        }
        (None, Some(path)) => tokio::select! {
            read = input::read(path, &sinks, &figures) => {
                read?;
                WHOLE_FILE
            }
            () = shutdown.requested() => LAST_RECORDS,
        },
        (None, None) => Duration::ZERO,
    };
    let incomplete = sinks.finish(patience).await;
    drop(server);
    let invalid = figures.invalid.get();
    eprintln!("podtap-exporter: {} lines read, {invalid} of them no flows", figures.lines.get());
    for (sink, missing) in &incomplete {
        eprintln!("podtap-exporter: {sink} did not get {missing} records");
    }
    Ok(if incomplete.is_empty() && invalid == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
