//! Reads the counters of the nodes: each helper pod serves them on the loopback of its node, where the kubelet reaches them.
//!
//! Counters are in no API object, since writing them there would cost etcd a write per node and interval, forever. Here, the API server
//! passes on a few kilobytes per node and interval, as long as a user watches.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use podtap_api::METRICS_PORT;
use tokio::time::{Instant, timeout};

use crate::{
    connection::Cluster,
    exit::{Exit, Failure, Outcome},
    forward::{self, is_ready},
    installation::component,
    top::metrics::{Counters, Received, Receiver},
};

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;
/// More than an agent takes, which gives up after 8 seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Losses are known when the next probes arrive, which may be lost, too.
pub const LOSS_PERIOD: Duration = Duration::from_secs(10);
/// What a reading takes of the API server is bounded, however many nodes there are: 20 forwarded ports per second.
const PER_NODE: Duration = Duration::from_millis(50);
/// An agent serves an answer again for three times as long as that took, and for this long at most.
const LONGEST_SERVED: Duration = Duration::from_secs(10);

/// The nodes with helper pods, and what was read from them.
pub struct Nodes {
    pods: Api<Pod>,
    nodes: BTreeMap<String, Node>,
}

/// Counters, and when they were read.
#[derive(Clone, Debug)]
pub struct Reading {
    pub at: Instant,
    pub counters: Counters,
}

/// What was read from a node.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub latest: Option<Reading>,
    /// Absent after the first reading.
    pub previous: Option<Reading>,
    /// What had arrived, from the last reading that is [`LOSS_PERIOD`] old or older on.
    arrived: VecDeque<(Instant, BTreeMap<Receiver, Received>)>,
    /// Why it cannot be read now.
    pub failure: Option<String>,
}

impl History {
    /// Adds a reading.
    pub fn add(&mut self, latest: Reading) {
        self.arrived.push_back((latest.at, latest.counters.received.clone()));
        while self.arrived.get(1).is_some_and(|(at, _)| *at + LOSS_PERIOD <= latest.at) {
            self.arrived.pop_front();
        }
        self.previous = self.latest.replace(latest);
        self.failure = None;
    }

    /// What had arrived [`LOSS_PERIOD`] ago; none before it is over.
    pub fn arrived_before(&self) -> Option<&BTreeMap<Receiver, Received>> {
        let (at, arrived) = self.arrived.front()?;
        (*at + LOSS_PERIOD <= self.latest.as_ref()?.at).then_some(arrived)
    }
}

#[derive(Default)]
struct Node {
    pod: String,
    /// Absent if the helper pod does not tell it.
    port: Option<u16>,
    ready: bool,
    history: History,
    /// The agent would serve the same answer before.
    next: Option<Instant>,
}

impl Nodes {
    /// No node yet.
    pub fn new(cluster: &Cluster, namespace: &str) -> Self {
        Self { pods: Api::namespaced(cluster.client.clone(), namespace), nodes: BTreeMap::new() }
    }

    /// Finds the helper pods.
    pub async fn list(&mut self) -> Outcome<()> {
        let mut helpers = self.pods.list(&component("helper")).await?.items;
        helpers.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        // During an upgrade, a node may have two: the last one counts.
        helpers.sort_by_key(is_ready);
        let mut known = std::mem::take(&mut self.nodes);
        for pod in helpers {
            let Some(name) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
            let mut node = known.remove(&name).or_else(|| self.nodes.remove(&name)).unwrap_or_default();
            if node.pod != pod.name_any() {
                node.next = None;
            }
            node.pod = pod.name_any();
            node.port = pod.annotations().get(METRICS_PORT).and_then(|port| port.parse().ok());
            node.ready = is_ready(&pod);
            self.nodes.insert(name, node);
        }
        Ok(())
    }

    /// Reads the counters of all nodes. A node that cannot be read has a failure; without the right to read any, this fails.
    pub async fn read(&mut self) -> Outcome<()> {
        let pods = &self.pods;
        let mut readings = stream::iter(self.nodes.values_mut().map(|node| node.read(pods))).buffer_unordered(AT_ONCE);
        while let Some(result) = readings.next().await {
            result?;
        }
        Ok(())
    }

    /// When every node that answers has new counters.
    pub fn next(&self) -> Instant {
        let answering = self.nodes.values().filter(|node| node.history.failure.is_none());
        answering.filter_map(|node| node.next).max().unwrap_or_else(Instant::now)
    }

    /// The time between two readings: this one, unless there are too many nodes for it.
    pub fn interval(&self, shortest: Duration) -> Duration {
        shortest.max(PER_NODE * u32::try_from(self.nodes.len()).unwrap_or(u32::MAX))
    }

    /// What was read, by node.
    pub fn histories(&self) -> Vec<(&str, &History)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), &node.history)).collect()
    }
}

impl Node {
    async fn read(&mut self, pods: &Api<Pod>) -> Outcome<()> {
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        let answer = timeout(PATIENCE, self.ask(pods)).await;
        let answer = answer.unwrap_or_else(|_| Err(Failure::error(format!("the pod {} does not answer", self.pod))));
        match answer {
            Ok(text) => {
                let at = Instant::now();
                self.history.add(Reading { at, counters: Counters::read(&String::from_utf8_lossy(&text)) });
                self.next = Some(at + (3 * (at - now)).min(LONGEST_SERVED));
            }
            Err(failure) if failure.exit == Exit::NotPermitted => return Err(failure),
            Err(failure) => {
                self.history = History { failure: Some(failure.message), ..History::default() };
                self.next = Some(Instant::now() + LONGEST_SERVED);
            }
        }
        Ok(())
    }

    /// The metrics.
    async fn ask(&self, pods: &Api<Pod>) -> Outcome<Bytes> {
        let pod = &self.pod;
        let port = self.port.filter(|_| self.ready).ok_or_else(|| {
            let why = if self.ready { "is of a version that serves no counters" } else { "is not Ready" };
            Failure::error(format!("the pod {pod} {why}"))
        })?;
        let (status, body) = forward::get(pods, pod, port, "/metrics").await?;
        if status != StatusCode::OK {
            let why = String::from_utf8_lossy(&body).trim_end().to_owned();
            return Err(Failure::error(format!("the pod {pod} has no counters: {why}")));
        }
        Ok(body)
    }
}
