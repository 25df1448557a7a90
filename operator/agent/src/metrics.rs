//! What `/metrics` says of the pods of this node, and the server that says it.
//!
//! The tap-helper knows UIDs; the names are those of the newest order. A sender that is not in that, since it is being removed, is
//! left out.

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tap_wire::{Count, Counters};
use tokio::{sync::watch, time::sleep};
use tracing::{debug, info, warn};

use super::{counters::Desk, order::Order};
use podtap_runtime::{
    backoff::Backoff,
    http::{self, Health, Server},
    telemetry::with_causes,
};

/// During an upgrade the helper pod before this one has the port until it has ended.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Serves at an address, for ever; nothing without one. A port that is taken is waited for.
pub async fn serve(address: Option<SocketAddr>, health: Health, page: Page) {
    let Some(address) = address else { return pending().await };
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut told = false;
    loop {
        match Server::spawn(address, health.clone(), page.clone()).await {
            Ok(server) => {
                info!(address = %server.address(), "serving health and metrics");
                return pending().await;
            }
            Err(error) if told => debug!(error = %with_causes(&error), "still no metrics"),
            Err(error) => {
                warn!(error = %with_causes(&error), "no metrics; all else goes on, trying again");
                told = true;
            }
        }
        sleep(backoff.pause()).await;
    }
}

/// `/metrics` of the agent.
#[derive(Clone, Debug)]
pub struct Page {
    pub desk: Desk,
    pub orders: watch::Receiver<Option<Arc<Order>>>,
}

impl http::Page for Page {
    async fn text(&self) -> Result<String, String> {
        if self.orders.borrow().is_none() {
            return Err(
                "It is not known yet which pods of this node are tapped: the API server has not said so.".into()
            );
        }
        let Some(counters) = self.desk.ask().await else {
            return Err("The tap-helper does not answer within a second; the log of its container says why.".into());
        };
        // The newest one: what was asked for is of this order, or of one before.
        let order = self.orders.borrow().clone();
        http::text(&order.map_or_else(Registry::default, |order| registry(&counters, &order)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sender {
    tap_namespace: String,
    tap_name: String,
    pod_namespace: String,
    pod_name: String,
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    #[prometheus(flatten)]
    sender: Sender,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    #[prometheus(flatten)]
    way: Way,
    outcome: &'static str,
}

/// All metrics. Made anew for each scrape: there is nothing to be kept between two.
fn registry(counters: &Counters, order: &Order) -> Registry {
    let [frames, bytes] = [(); 2].map(|()| Family::<Outcome, Counter>::default());
    let failed = Family::<Way, Counter>::default();
    let [truncated, cut_off, oversized] = [(); 3].map(|()| Family::<Sender, Counter>::default());
    for entry in &counters.senders {
        let Some(names) = order.names.get(&(entry.tap.clone(), entry.pod.clone())) else { continue };
        let sender = Sender {
            tap_namespace: names.tap_namespace.clone(),
            tap_name: names.tap_name.clone(),
            pod_namespace: names.pod_namespace.clone(),
            pod_name: names.pod_name.clone(),
            interface: entry.interface.clone(),
        };
        for (direction, counted) in [("ingress", entry.ingress), ("egress", entry.egress)] {
            let Some(counted) = counted else { continue };
            let way = Way { sender: sender.clone(), direction };
            failed.get_or_create(&way).inc_by(counted.failed);
            // As `tap-helper inspect` calls them.
            let outcomes = [
                ("mirrored", Some(counted.mirrored)),
                ("filtered", counted.filtered),
                ("sampledOut", counted.sampled_out),
                ("overLimit", counted.over_limit),
                ("deduplicated", counted.deduplicated),
            ];
            for (outcome, count) in outcomes {
                let Some(Count { frames: seen, bytes: size }) = count else { continue };
                let labels = Outcome { way: way.clone(), outcome };
                frames.get_or_create(&labels).inc_by(seen);
                bytes.get_or_create(&labels).inc_by(size);
            }
        }
        if let Some(count) = entry.truncated {
            truncated.get_or_create(&sender).inc_by(count.frames);
            cut_off.get_or_create(&sender).inc_by(count.bytes);
        }
        if let Some(count) = entry.oversized {
            oversized.get_or_create(&sender).inc_by(count.frames);
        }
    }
    let mut registry = Registry::with_prefix("podtap");
    registry.register(
        "frames",
        "Frames that a tapped pod's interface saw, by what became of them; all but those filtered had matched",
        frames,
    );
    registry.register("bytes", "Bytes of these frames", bytes);
    registry.register("failed_copies", "Copies of mirrored frames that the sender device did not take", failed);
    registry.register("truncated_copies", "Copies that were cut because the tap says so", truncated);
    registry.register("truncated_bytes", "Bytes that were cut off", cut_off);
    registry.register(
        "oversized_frames",
        "Frames of copies that did not fit the wire and could not be divided",
        oversized,
    );
    registry
}

#[cfg(test)]
mod tests;
