//! Reads the counters of the nodes: each helper pod serves them on the loopback of its node, where the kubelet reaches them.
//!
//! Counters are in no API object, since writing them there would cost etcd a write per node and interval, forever. Here, the API server
//! passes on a few kilobytes per node and interval, as long as somebody watches.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use podtap_api::METRICS_PORT;
use tokio::time::{Instant, timeout};

use crate::{
    connection::Cluster,
    exit::{Exit, Failure, Outcome},
    forward::{Forwarded, is_ready},
    top::metrics::Counters,
};

const HELPERS: &str = "app.kubernetes.io/name=podtap,app.kubernetes.io/component=helper";
/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;
/// More than an agent takes, which gives up after 8 seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// An agent closes a connection after 20 seconds.
const KEPT: Duration = Duration::from_secs(15);
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
    /// Why it cannot be read now.
    pub failure: Option<String>,
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
    connection: Option<(Forwarded, Instant)>,
}

impl Nodes {
    /// No node yet.
    pub fn new(cluster: &Cluster, namespace: &str) -> Self {
        Self { pods: Api::namespaced(cluster.client.clone(), namespace), nodes: BTreeMap::new() }
    }

    /// Finds the helper pods.
    pub async fn list(&mut self) -> Outcome<()> {
        let mut helpers = self.pods.list(&ListParams::default().labels(HELPERS)).await?.items;
        helpers.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        // During an upgrade, a node may have two: the last one counts.
        helpers.sort_by_key(is_ready);
        let mut known = std::mem::take(&mut self.nodes);
        for pod in helpers {
            let Some(name) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
            let mut node = known.remove(&name).or_else(|| self.nodes.remove(&name)).unwrap_or_default();
            if node.pod != pod.name_any() {
                (node.connection, node.next) = (None, None);
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
            Ok((at, took, text)) => {
                let latest = Some(Reading { at, counters: Counters::read(&String::from_utf8_lossy(&text)) });
                self.history = History { latest, previous: self.history.latest.take(), failure: None };
                self.next = Some(at + (3 * took).min(LONGEST_SERVED));
            }
            Err(failure) if failure.exit == Exit::NotPermitted => return Err(failure),
            Err(failure) => {
                self.history = History { failure: Some(failure.message), ..History::default() };
                self.next = Some(Instant::now() + LONGEST_SERVED);
            }
        }
        Ok(())
    }

    /// The metrics, when they arrived, and how long they took.
    async fn ask(&mut self, pods: &Api<Pod>) -> Outcome<(Instant, Duration, Bytes)> {
        let pod = &self.pod;
        let port = self.port.filter(|_| self.ready).ok_or_else(|| {
            let why = if self.ready { "is of a version that serves no counters" } else { "is not Ready" };
            Failure::error(format!("the pod {pod} {why}"))
        })?;
        let (mut connection, opened) = match self.connection.take() {
            Some(kept) if kept.1.elapsed() < KEPT => kept,
            _ => (Forwarded::open(pods, pod, port).await?, Instant::now()),
        };
        let started = Instant::now();
        let (status, body) = connection.get("/metrics").await?;
        let at = Instant::now();
        if status != StatusCode::OK {
            let why = String::from_utf8_lossy(&body).trim_end().to_owned();
            return Err(Failure::error(format!("the pod {pod} has no counters: {why}")));
        }
        self.connection = Some((connection, opened));
        Ok((at, at - started, body))
    }
}
