//! What is served: the map, flows, a page that shows them, health and metrics; and the names that come from the cluster.
//!
//! All of it runs on a thread of its own: the one that captures never waits for a client.

mod api;
pub mod edges;
mod figures;
mod flows;
mod graphql;
mod page;
pub mod pods;
mod status;

use std::time::Duration;

use anyhow::Result;
use podtap_flow::{Timestamp, names::Update};
use podtap_runtime::http::{Health, Metrics, Probes, Server};
use tokio::{runtime::Runtime, sync::mpsc};

use self::{api::Api, edges::Edges, figures::Figures, pods::OfPods};
use crate::{
    Arguments,
    analysis::{Analysis, Output},
    capture::Captured,
    names::socket,
    shared::Shared,
    state,
};

/// Changes of names that wait to be applied.
const UPDATES: usize = 4096;
/// How long the analysis may take for a tick before `/livez` fails.
const LIVENESS: Duration = Duration::from_secs(30);

/// The servers, and what they have to be told.
pub struct Service {
    shared: Shared,
    updates: Option<mpsc::Receiver<Update>>,
    health: Health,
    figures: Figures,
    servers: Vec<Server>,
    /// Ends everything that it runs when it is dropped.
    runtime: Runtime,
}

impl Service {
    /// Starts what the arguments ask for. To be called when signals are blocked: its thread inherits that.
    pub fn start(arguments: &Arguments, shared: &Shared) -> Result<Self> {
        // What copies the map, to render or to save it, does so one after the other: for the sake of memory.
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).max_blocking_threads(1).enable_all().build()?;
        let (health, metrics) = (Health::new(LIVENESS), Metrics::new());
        let mut service = Self {
            shared: shared.clone(),
            updates: None,
            health: health.clone(),
            figures: Figures::new(&metrics),
            servers: Vec::new(),
            runtime,
        };
        // What pods call is not for everyone who reaches the address of the probes.
        let of_map = if arguments.open_metrics { metrics.clone() } else { Metrics::new() };
        of_map.register(|registry| {
            registry.register_collector(Box::new(Edges::new(shared, arguments.metrics_level, arguments.series)));
            if shared.lock().pods.is_some() {
                registry.register_collector(Box::new(OfPods::new(shared)));
            }
        });
        if let Some(path) = arguments.state.clone() {
            service.runtime.spawn(state::keep_saving(path, shared.clone()));
        }
        if let Some(address) = arguments.probes {
            let probes = Probes { health, metrics };
            service.servers.push(service.runtime.block_on(Server::spawn(address, probes))?);
        }
        if let Some(address) = arguments.listen {
            let server = service.runtime.block_on(Server::spawn(address, Api::new(shared, of_map)))?;
            eprintln!("podtap-collector: the map is served on http://{}", server.address());
            service.servers.push(server);
        }
        match arguments.names_socket.clone() {
            Some(path) => {
                let (sender, receiver) = mpsc::channel(UPDATES);
                service.updates = Some(receiver);
                service.runtime.spawn(async move { socket::follow(&path, &sender).await });
            }
            None => service.health.set_ready(true),
        }
        Ok(service)
    }

    /// Applies the names that have come, and takes over what was counted.
    pub fn tick<Out: Output>(
        &mut self,
        analysis: &mut Analysis<Out>,
        captured: Captured,
        lines_dropped: u64,
        now: Timestamp,
    ) {
        self.health.alive();
        if let Some(updates) = &mut self.updates {
            let mut is_listed = false;
            let received = std::iter::from_fn(|| updates.try_recv().ok());
            analysis.update(received.inspect(|update| is_listed |= *update == Update::Listed), now);
            if is_listed {
                self.health.set_ready(true);
            }
        }
        let status = self.figures.update(captured, lines_dropped, analysis);
        self.shared.lock().status = status;
    }
}

#[cfg(test)]
mod tests;
