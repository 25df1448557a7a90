//! Who calls whom.

mod counted;
mod restricted;

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

pub use counted::Counted;
use serde::{Deserialize, Serialize};

use crate::{
    Failure, Opener, Record, Timestamp,
    named::{Evidence, NamedRecord},
    names::{Owner, Workload},
    packet,
};

/// An end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Party {
    /// Pods of one owner.
    Workload {
        /// Its namespace.
        namespace: String,
        /// Kind and name of the owner.
        workload: Workload,
    },
    /// A service without pods, or with pods of several workloads.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A node, or one of its pods with `hostNetwork`.
    Node {
        /// Its name.
        name: String,
    },
    /// The name, if one is known.
    External {
        /// The name that its client knows, or the label of its network.
        name: Option<String>,
    },
    /// Workloads and services of namespaces that the reader may not read: see [`Map::restricted`]. No flow has it as an end.
    AnotherNamespace,
    /// What found no room: see [`Bounds`].
    Other,
}

/// Who calls whom, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    /// Who opens connections.
    pub client: Party,
    /// To whom.
    pub server: Party,
}

/// What was seen of an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// The first frame.
    pub first: Timestamp,
    /// The last frame.
    pub last: Timestamp,
    /// Flows that were seen from their beginning.
    pub connections: u64,
    /// Flows that are older than what was seen of them.
    pub preexisting: u64,
    /// Attempts that failed, by reason.
    pub failed: BTreeMap<Failure, u64>,
    /// Payload that the client sent, in bytes.
    pub sent: u64,
    /// Payload that the server sent, in bytes.
    pub received: u64,
    /// Ports that the client connected to, with their protocols.
    pub ports: Counted<(u8, u16)>,
    /// The services whose addresses it used.
    pub services: Counted<(String, String)>,
    /// Ports at which the server's pods got flows that did not fail, with their protocols. Those of a flow through a service are in it only
    /// if the service tells to which ports it translates its own.
    #[serde(default)]
    pub pod_ports: Counted<(u8, u16)>,
    /// How long the handshakes of TCP connections took.
    #[serde(default)]
    pub handshakes: Handshakes,
    /// Answers of DNS servers, by response code: 0 NOERROR, 3 NXDOMAIN, ...
    #[serde(default)]
    pub responses: Counted<u8>,
    /// How it is known who called whom, in flows.
    #[serde(default)]
    pub known: BTreeMap<Evidence, u64>,
}

/// Upper bounds of handshake times, in microseconds. Those within a node take tens of them, those within a zone less than a millisecond,
/// and one whose SYN was sent again more than a second.
pub const HANDSHAKE_BOUNDS: [u64; 12] =
    [100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 500_000, 1_000_000, 5_000_000];

/// Times from the client's SYN to its acknowledgment of the server's, each connection's once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshakes {
    /// How many took no longer than each of [`HANDSHAKE_BOUNDS`], but longer than the one before; the last one took longer than all.
    pub buckets: [u64; HANDSHAKE_BOUNDS.len() + 1],
    /// Of all of them.
    pub total: Duration,
    /// The shortest; zero if none was seen.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
}

impl Handshakes {
    /// Counts one.
    pub fn add(&mut self, time: Duration) {
        let bucket = HANDSHAKE_BOUNDS.partition_point(|bound| Duration::from_micros(*bound) < time);
        let mut one = Self { total: time, min: time, max: time, ..Self::default() };
        one.buckets[bucket] = 1;
        self.merge(&one);
    }

    /// Adds those of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.min = match (self.count(), other.count()) {
            (_, 0) => self.min,
            (0, _) => other.min,
            _ => self.min.min(other.min),
        };
        self.max = self.max.max(other.max);
        self.total = self.total.saturating_add(other.total);
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(bucket, count)| *bucket += count);
    }

    /// How many were seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Of those that were seen, if any was.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        let nanoseconds = self.total.as_nanos().checked_div(self.count().into())?;
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }
}

impl Traffic {
    /// How many ports, services and response codes it has.
    fn details(&self) -> usize {
        self.ports.len() + self.services.len() + self.pod_ports.len() + self.responses.len()
    }
}

/// Bounds of the map.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Edges. Beyond it, what a client calls is [`Party::Other`].
    pub edges: usize,
    /// Named servers outside of the cluster, of a client. Beyond it, they have no name: a pod may ask for any number of names.
    pub external: usize,
    /// Ports, and services, that are remembered of an edge.
    pub details: usize,
    /// Ports, services and response codes of all edges.
    pub all_details: usize,
    /// An edge of which nothing was seen for so long is forgotten.
    pub forget_after: Option<Duration>,
}

impl Bounds {
    /// With the edges of clients to what is folded.
    const fn most(self) -> usize {
        self.edges + self.edges / 8
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            edges: 10_000,
            external: 1000,
            details: 64,
            // Most edges have one port, at the service and at the pod, and one service.
            all_details: 100_000,
            forget_after: Some(Duration::from_secs(30 * 24 * 60 * 60)),
        }
    }
}

/// All edges.
#[derive(Clone, Debug, Default)]
pub struct Map {
    bounds: Bounds,
    /// Copies of the map share its edges, and what was seen of those that have not changed since.
    edges: BTreeMap<Arc<Edge>, Arc<Traffic>>,
    /// Ports, services and response codes of all edges.
    details: usize,
    /// Clients, and how many named servers outside of the cluster they have.
    external: BTreeMap<Party, usize>,
    /// Flows whose edge found no room.
    pub folded: u64,
    /// Flows that were translated to none of their service's endpoints.
    pub contradictions: u64,
    /// Ports, services and response codes of flows that found no room.
    pub details_dropped: u64,
}

impl Map {
    /// An empty map.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Adds an edge that an earlier run has saved. One that exists already is kept.
    pub fn restore(&mut self, edge: Edge, traffic: Traffic) {
        if self.edges.len() < self.bounds.most() && !self.edges.contains_key(&edge) {
            self.details += traffic.details();
            if is_named_external(&edge.server) {
                *self.external.entry(edge.client.clone()).or_default() += 1;
            }
            self.edges.insert(Arc::new(edge), Arc::new(traffic));
        }
    }

    /// Forgets edges of which nothing was seen for long.
    pub fn expire(&mut self, now: Timestamp) {
        let Some(age) = self.bounds.forget_after else { return };
        self.edges.retain(|edge, traffic| {
            let is_kept = now.since(traffic.last) <= age;
            if !is_kept {
                self.details -= traffic.details();
                if is_named_external(&edge.server)
                    && let Some(count) = self.external.get_mut(&edge.client)
                {
                    *count -= 1;
                }
            }
            is_kept
        });
        self.external.retain(|_, count| *count > 0);
    }

    /// Forgets all edges, and what was seen of them.
    pub fn clear(&mut self) {
        self.edges.clear();
        self.external.clear();
        (self.details, self.folded, self.details_dropped) = (0, 0, 0);
    }

    /// All edges, in order.
    pub fn edges(&self) -> impl Iterator<Item = (&Edge, &Traffic)> + Clone {
        self.edges.iter().map(|(edge, traffic)| (&**edge, &**traffic))
    }

    /// How many edges it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    /// Whether it has no edge.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }

    /// Counts a flow that was announced; its record will follow.
    pub fn open(&mut self, flow: &NamedRecord<'_>) {
        self.count(flow, false);
    }

    /// Counts a record.
    pub fn record(&mut self, flow: &NamedRecord<'_>) {
        self.count(flow, true);
    }

    fn count(&mut self, flow: &NamedRecord<'_>, with_counts: bool) {
        if !counts(flow) {
            return;
        }
        let record = flow.record;
        self.contradictions += u64::from(record.is_first && flow.contradicts_endpoints());
        let bounds = self.bounds;
        let mut free = Free { all: bounds.all_details.saturating_sub(self.details), used: 0, dropped: 0 };
        let traffic = self.traffic(edge(flow), record.start, record.is_first);
        traffic.first = traffic.first.min(record.start);
        traffic.last = traffic.last.max(record.to);
        if record.is_first {
            let kind = if record.preexisting { &mut traffic.preexisting } else { &mut traffic.connections };
            *kind += 1;
            free.count(&mut traffic.ports, (record.protocol, flow.server.port), 1, bounds.details);
            if let Some((service, _)) = flow.service {
                let name = (service.namespace.clone(), service.name.clone());
                free.count(&mut traffic.services, name, 1, bounds.details);
            }
            // Of two ports, the lower one need not be the server's, unless a service declares it.
            let is_guessed = record.opener == Opener::Port && flow.service.is_none();
            if let Some(port) = flow.pod_port().filter(|_| record.failure.is_none() && !is_guessed) {
                free.count(&mut traffic.pod_ports, (record.protocol, port), 1, bounds.details);
            }
            for evidence in flow.evidence() {
                *traffic.known.entry(evidence).or_default() += 1;
            }
        }
        if with_counts {
            let [(sent, _), (received, _)] = flow.directions();
            traffic.sent += sent.payload;
            traffic.received += received.payload;
            if let Some(failure) = record.failure {
                *traffic.failed.entry(failure).or_default() += 1;
            }
            // All records of a connection have it. One that was announced is not over, so it is counted with its first counts.
            if let Some(handshake) = record.handshake.filter(|_| record.from == record.start) {
                traffic.handshakes.add(handshake);
            }
            for (code, count) in &record.responses {
                free.count(&mut traffic.responses, *code, u64::from(*count), bounds.details);
            }
        }
        self.details += free.used;
        self.details_dropped += free.dropped;
    }

    fn traffic(&mut self, mut edge: Edge, start: Timestamp, is_first: bool) -> &mut Traffic {
        if !self.edges.contains_key(&edge) {
            let has_room = self.edges.len() < self.bounds.edges;
            let names = self.external.get(&edge.client).copied().unwrap_or_default();
            if has_room && is_named_external(&edge.server) && names >= self.bounds.external {
                self.folded += u64::from(is_first);
                edge.server = Party::External { name: None };
            } else if !has_room {
                self.folded += u64::from(is_first);
                edge.server = Party::Other;
                if self.edges.len() >= self.bounds.most() && !self.edges.contains_key(&edge) {
                    edge.client = Party::Other;
                }
            } else if is_named_external(&edge.server) {
                *self.external.entry(edge.client.clone()).or_default() += 1;
            }
        }
        let traffic = self.edges.entry(Arc::new(edge));
        Arc::make_mut(traffic.or_insert_with(|| Arc::new(Traffic { first: start, ..Traffic::default() })))
    }
}

const fn is_named_external(party: &Party) -> bool {
    matches!(party, Party::External { name: Some(_) })
}

/// Room for details.
struct Free {
    all: usize,
    used: usize,
    dropped: u64,
}

impl Free {
    /// Counts a detail of an edge, if there is room for it.
    fn count<Key: Ord>(&mut self, details: &mut Counted<Key>, key: Key, by: u64, bound: usize) {
        match details.add(key, by, details.len() < bound && self.used < self.all) {
            Some(is_new) => self.used += usize::from(is_new),
            None => self.dropped += 1,
        }
    }
}

/// Whether something was called in a record.
pub(crate) fn counts(flow: &NamedRecord<'_>) -> bool {
    is_call(flow) && !is_empty(flow.record)
}

/// A record that only ends a flow, without frames since the one before. The pods of such a flow may be forgotten by then.
fn is_empty(record: &Record) -> bool {
    !record.is_first && record.sent.frames == 0 && record.received.frames == 0 && record.failure.is_none()
}

/// Neither neighbour discovery nor errors, which count as what they are about, nor what is sent to many.
fn is_call(flow: &NamedRecord<'_>) -> bool {
    let is_echo = match flow.record.protocol {
        packet::ICMP => flow.record.icmp.is_none_or(|(kind, _)| matches!(kind, 0 | 8)),
        packet::ICMPV6 => flow.record.icmp.is_none_or(|(kind, _)| matches!(kind, 128 | 129)),
        _ => true,
    };
    // A frame whose ports are cut off: its direction is unknown.
    let has_ports = matches!(flow.record.protocol, packet::TCP | packet::UDP | packet::SCTP);
    if has_ports && flow.server.port == 0 {
        return false;
    }
    let server = flow.server.address;
    let is_for_many = server.is_multicast() || matches!(server, IpAddr::V4(address) if address.is_broadcast());
    is_echo && !is_for_many
}

/// How a failure is called in all outputs.
#[must_use]
pub fn failure_name(failure: Failure) -> &'static str {
    match failure {
        Failure::Refused => "refused",
        Failure::NoAnswer => "noAnswer",
        Failure::Unreachable => "unreachable",
    }
}

fn edge(flow: &NamedRecord<'_>) -> Edge {
    let client = match flow.client_workload() {
        Some(workload) => of_workload(workload),
        None => of_owner(flow.client_owner, None),
    };
    let server = match flow.server_workload() {
        Some(workload) => of_workload(workload),
        None => of_owner(flow.server_owner, flow.external_name().map(Cow::into_owned)),
    };
    Edge { client, server }
}

fn of_workload((namespace, workload): (&str, &Workload)) -> Party {
    Party::Workload { namespace: namespace.to_owned(), workload: workload.clone() }
}

fn of_owner(owner: Owner<'_>, name: Option<String>) -> Party {
    match owner {
        Owner::Pod(pod) => of_workload((&pod.namespace, &pod.workload)),
        Owner::Service(service) => Party::Service { namespace: service.namespace.clone(), name: service.name.clone() },
        Owner::Node(node) => Party::Node { name: node.name.clone() },
        Owner::External(network) => {
            Party::External { name: name.or_else(|| network.map(|network| network.name().into_owned())) }
        }
    }
}

#[cfg(test)]
mod tests;
