//! `/metrics`: the counters of this node's tapped pods and receivers, and the server for them.
//!
//! The tap-helper knows UIDs; the names come from the newest desired update. A sender that is not in it, since it is being removed, has
//! no series.

use std::{collections::HashMap, future::pending, net::SocketAddr, sync::Arc, time::Duration};

use podtap_model::{Count, Counters, Report};
use podtap_runtime::{
    backoff::Backoff,
    http::{self, EncodeError, Health, MetricsSource, Probes, Server},
    telemetry::with_causes,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};
use serde_json::Value;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::helper_client::{HelperClient, NoAnswer};

/// During an upgrade, the previous helper pod has the port until it has ended.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Serves health and metrics at `address` forever, or nothing without an address. While the port is in use, it retries.
pub async fn serve(address: Option<SocketAddr>, health: Health, source: Source) {
    let Some(address) = address else { return pending().await };
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut logged = false;
    loop {
        match Server::spawn(address, Probes { health: health.clone(), metrics: source.clone() }).await {
            Ok(server) => {
                info!(address = %server.address(), "serving health and metrics");
                return pending().await;
            }
            Err(error) if logged => debug!(error = %with_causes(&error), "still cannot serve metrics"),
            Err(error) => {
                warn!(error = %with_causes(&error), "cannot serve metrics; mirrors are not affected, retrying");
                logged = true;
            }
        }
        sleep(backoff.pause()).await;
    }
}

/// The metrics of the senders, requested from the tap-helper for scrapes.
#[derive(Clone, Debug)]
pub struct Source(pub Arc<HelperClient>);

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API server has not sent this node's NodeTap yet, so the tapped pods are unknown")]
    Unknown,
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl MetricsSource for Source {
    type Error = Error;

    async fn text(&self) -> Result<String, Error> {
        self.0.read_desired(|_| ()).ok_or(Error::Unknown)?;
        let counters = self.0.counters().await?;
        let registry = self.0.read_desired(|update| registry(&counters, &update.spec));
        let mut registry = registry.ok_or(Error::Unknown)?;
        register_restarts(&mut registry, self.0.reports().borrow().as_ref());
        Ok(http::text(&registry)?)
    }
}

/// Names of taps and pods by UID, from the spec of a `NodeTap`. An entry that the tap-helper cannot decode may have names, too.
struct Names<'a> {
    /// With the tap itself.
    taps: HashMap<&'a str, (Name<'a>, &'a Value)>,
    /// By the UIDs of tap and pod.
    pods: HashMap<(&'a str, &'a str), Name<'a>>,
    /// Taps of receivers, by UID.
    receivers: HashMap<&'a str, Name<'a>>,
}

#[derive(Clone, Copy)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Names<'a> {
    fn new(spec: &'a Value) -> Self {
        let taps = entries(spec, "taps").map(|tap| (text(&tap["uid"]), (Name::new(tap), tap)));
        let pods = entries(spec, "senders").map(|sender| {
            let pod = &sender["pod"];
            ((text(&sender["tap"]), text(&pod["uid"])), Name::new(pod))
        });
        let receivers = entries(spec, "receivers").map(|receiver| {
            let tap = &receiver["tap"];
            (text(&tap["uid"]), Name::new(tap))
        });
        Self { taps: taps.collect(), pods: pods.collect(), receivers: receivers.collect() }
    }

    /// The name of the tap, its options, and the name of the pod.
    fn of(&self, tap: &str, pod: &str) -> Option<(Name<'a>, &'a Value, Name<'a>)> {
        let (name, tap_object) = *self.taps.get(tap)?;
        Some((name, &tap_object["options"], *self.pods.get(&(tap, pod))?))
    }
}

impl<'a> Name<'a> {
    fn new(object: &'a Value) -> Self {
        Self { namespace: text(&object["namespace"]), name: text(&object["name"]) }
    }
}

fn entries<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    spec[list].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SenderLabels {
    tap_namespace: String,
    tap_name: String,
    pod_namespace: String,
    pod_name: String,
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    #[prometheus(flatten)]
    sender: SenderLabels,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    #[prometheus(flatten)]
    direction: DirectionLabels,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReceiverLabels {
    tap_namespace: String,
    tap_name: String,
    vni: u32,
}

/// The metrics of one scrape. Nothing is kept between scrapes.
fn registry(counters: &Counters, spec: &Value) -> Registry {
    let names = Names::new(spec);
    let [frames, bytes] = [(); 2].map(|()| Family::<OutcomeLabels, Counter>::default());
    let [failures, truncated_frames, truncated_bytes, oversized_frames] =
        [(); 4].map(|()| Family::<DirectionLabels, Counter>::default());
    let forged_frames = Family::<SenderLabels, Counter>::default();
    for entry in &counters.senders {
        let Some((tap, options, pod)) = names.of(&entry.tap_uid, &entry.pod_uid) else { continue };
        let sender = SenderLabels {
            tap_namespace: tap.namespace.to_owned(),
            tap_name: tap.name.to_owned(),
            pod_namespace: pod.namespace.to_owned(),
            pod_name: pod.name.to_owned(),
            interface: entry.interface.clone(),
        };
        for (direction, counted) in [("ingress", entry.ingress), ("egress", entry.egress)] {
            let Some(counted) = counted else { continue };
            let direction = DirectionLabels { sender: sender.clone(), direction };
            failures.get_or_create(&direction).inc_by(counted.failed);
            oversized_frames.get_or_create(&direction).inc_by(counted.oversized.frames);
            let has = |option: &str| options.pointer(option).is_some_and(|value| !value.is_null());
            if counted.truncated != Count::default() || has("/truncate") || has("/limit/bytesPerFlow") {
                truncated_frames.get_or_create(&direction).inc_by(counted.truncated.frames);
                truncated_bytes.get_or_create(&direction).inc_by(counted.truncated.bytes);
            }
            // With the option without which it cannot happen.
            let outcomes = [
                ("mirrored", None, counted.mirrored),
                ("filtered", Some("/filter"), counted.filtered),
                ("sampled_out", Some("/sample"), counted.sampled_out),
                ("rate_limited", Some("/limit"), counted.rate_limited),
                ("deduplicated", Some("/deduplicate"), counted.deduplicated),
                ("expired", None, counted.expired),
                ("cut_off", Some("/limit/bytesPerFlow"), counted.cut_off),
            ];
            for (outcome, option, count) in outcomes {
                // Without a series from the start, the first frames would be missing in every rate.
                if count == Count::default() && option.is_some_and(|option| !has(option)) {
                    continue;
                }
                let labels = OutcomeLabels { direction: direction.clone(), outcome };
                frames.get_or_create(&labels).inc_by(count.frames);
                bytes.get_or_create(&labels).inc_by(count.bytes);
            }
        }
        forged_frames.get_or_create(&sender).inc_by(entry.forged.frames);
    }
    let mut registry = Registry::with_prefix("podtap");
    let [received_frames, lost_frames] = [(); 2].map(|()| Family::<ReceiverLabels, Counter>::default());
    for entry in &counters.receivers {
        let Some(tap) = names.receivers.get(entry.tap_uid.as_str()) else { continue };
        let labels =
            ReceiverLabels { tap_namespace: tap.namespace.to_owned(), tap_name: tap.name.to_owned(), vni: entry.vni };
        received_frames.get_or_create(&labels).inc_by(entry.frames);
        lost_frames.get_or_create(&labels).inc_by(entry.lost_frames);
    }
    registry.register("receiver_frames", "Mirrored frames that arrived at a receiver of this node", received_frames);
    registry.register(
        "receiver_lost_frames",
        "Mirrored frames that were sent to a receiver of this node, by the senders' probes, and did not arrive",
        lost_frames,
    );
    if let Some(Count { frames: packets, bytes }) = counters.rejected {
        let [counted_packets, counted_bytes] = [packets, bytes].map(|count| {
            let counter = Counter::<u64>::default();
            counter.inc_by(count);
            counter
        });
        registry.register(
            "receiver_rejected_packets",
            "Packets to the UDP port of this node's receivers from addresses that may not send to them",
            counted_packets,
        );
        registry.register("receiver_rejected_bytes", "Bytes of these packets", counted_bytes);
    }
    registry.register(
        "frames",
        "Frames on the interfaces of tapped pods by outcome; all but the filtered ones matched the filter",
        frames,
    );
    registry.register_with_unit("frame", "Bytes of the frames of podtap_frames", Unit::Bytes, bytes);
    registry.register("mirror_failures", "Mirrored frames that the sender device did not accept", failures);
    registry.register("truncated_frames", "Mirrored frames that were truncated as the tap requests", truncated_frames);
    registry.register_with_unit(
        "truncated",
        "Bytes that were removed from mirrored frames as the tap requests",
        Unit::Bytes,
        truncated_bytes,
    );
    registry.register(
        "oversized_frames",
        "Mirrored frames that exceeded the path MTU and could not be segmented",
        oversized_frames,
    );
    registry.register(
        "forged_frames",
        "Frames that the pod sent to its sender device itself, which were dropped there",
        forged_frames,
    );
    registry
}

/// The restarts of the tap-helper, by its newest report.
fn register_restarts(registry: &mut Registry, report: Option<&Report>) {
    let restarts = Counter::<u64>::default();
    restarts.inc_by(report.map_or(0, |report| report.status.helper_restarts.into()));
    registry.register(
        "tap_helper_restarts",
        "Times that the tap-helper was killed and restarted in its container",
        restarts,
    );
}

#[cfg(test)]
mod tests;
