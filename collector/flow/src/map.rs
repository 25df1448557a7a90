//! Who calls whom.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Failure, Record, Timestamp,
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
    #[serde(with = "pairs")]
    pub ports: BTreeMap<(u8, u16), u64>,
    /// The services whose addresses it used.
    #[serde(with = "pairs")]
    pub services: BTreeMap<(String, String), u64>,
    /// How long the handshakes of TCP connections took.
    #[serde(default)]
    pub handshakes: Handshakes,
    /// How it is known who called whom, in flows.
    #[serde(default)]
    pub known: BTreeMap<Evidence, u64>,
}

/// Times from the client's SYN to its acknowledgment of the server's, each connection's once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshakes {
    /// How many were seen.
    pub count: u64,
    /// Of all of them.
    pub total: Duration,
    /// The shortest; zero if none was seen.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
}

impl Handshakes {
    /// Counts one.
    pub fn add(&mut self, handshake: Duration) {
        self.min = if self.count == 0 { handshake } else { self.min.min(handshake) };
        self.max = self.max.max(handshake);
        self.count += 1;
        self.total = self.total.saturating_add(handshake);
    }

    /// Of those that were seen, if any was.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        let nanoseconds = self.total.as_nanos().checked_div(self.count.into())?;
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }
}

/// Bounds of the map.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Edges. Beyond it, what a client calls is [`Party::Other`].
    pub edges: usize,
    /// Ports and services that are remembered of an edge.
    pub details: usize,
}

impl Bounds {
    /// With the edges of clients to what is folded.
    const fn most(self) -> usize {
        self.edges + self.edges / 8
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self { edges: 50_000, details: 64 }
    }
}

/// All edges.
#[derive(Clone, Debug, Default)]
pub struct Map {
    bounds: Bounds,
    edges: BTreeMap<Edge, Traffic>,
    /// Flows whose edge found no room.
    pub folded: u64,
    /// Flows that were translated to none of their service's endpoints.
    pub contradictions: u64,
}

impl Map {
    /// An empty map.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Whether it has an edge.
    #[must_use]
    pub fn contains(&self, edge: &Edge) -> bool {
        self.edges.contains_key(edge)
    }

    /// Adds an edge that an earlier run has saved. One that exists already is kept.
    pub fn restore(&mut self, edge: Edge, traffic: Traffic) {
        if self.edges.len() < self.bounds.most() {
            self.edges.entry(edge).or_insert(traffic);
        }
    }

    /// Forgets all edges, and what was seen of them.
    pub fn clear(&mut self) {
        self.edges.clear();
        self.folded = 0;
    }

    /// All edges, in order.
    pub fn edges(&self) -> impl Iterator<Item = (&Edge, &Traffic)> {
        self.edges.iter()
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
        let record = flow.record;
        if !is_call(flow) || is_empty(record) {
            return;
        }
        self.contradictions += u64::from(record.is_first && flow.contradicts_endpoints());
        let details = self.bounds.details;
        let traffic = self.traffic(edge(flow), record.start);
        traffic.first = traffic.first.min(record.start);
        traffic.last = traffic.last.max(record.to);
        if record.is_first {
            let kind = if record.preexisting { &mut traffic.preexisting } else { &mut traffic.connections };
            *kind += 1;
            count_detail(&mut traffic.ports, (record.protocol, flow.server.port), details);
            if let Some((service, _)) = flow.service {
                count_detail(&mut traffic.services, (service.namespace.clone(), service.name.clone()), details);
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
        }
    }

    fn traffic(&mut self, mut edge: Edge, start: Timestamp) -> &mut Traffic {
        if self.edges.len() >= self.bounds.edges && !self.edges.contains_key(&edge) {
            self.folded += 1;
            edge.server = Party::Other;
            if self.edges.len() >= self.bounds.most() && !self.edges.contains_key(&edge) {
                edge.client = Party::Other;
            }
        }
        self.edges.entry(edge).or_insert_with(|| Traffic { first: start, ..Traffic::default() })
    }
}

fn count_detail<Key: Ord>(details: &mut BTreeMap<Key, u64>, key: Key, bound: usize) {
    if details.len() < bound || details.contains_key(&key) {
        *details.entry(key).or_default() += 1;
    }
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
        None => of_owner(flow.server_owner, flow.external_name()),
    };
    Edge { client, server }
}

fn of_workload((namespace, workload): (&str, &Workload)) -> Party {
    Party::Workload { namespace: namespace.to_owned(), workload: workload.clone() }
}

fn of_owner(owner: Owner<'_>, name: Option<&str>) -> Party {
    match owner {
        Owner::Pod(pod) => of_workload((&pod.namespace, &pod.workload)),
        Owner::Service(service) => Party::Service { namespace: service.namespace.clone(), name: service.name.clone() },
        Owner::Node(node) => Party::Node { name: node.name.clone() },
        Owner::External(label) => Party::External { name: name.or(label).map(str::to_owned) },
    }
}

/// Maps as lists of pairs: keys of JSON objects are strings.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

    pub fn serialize<Key: Serialize, S: Serializer>(
        map: &BTreeMap<Key, u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, Key: DeserializeOwned + Ord, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Key, u64>, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
