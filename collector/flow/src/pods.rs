//! What each pod sends and receives, with whomever it speaks.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Failure, Timestamp, map,
    named::NamedRecord,
    names::{Owner, Pod, Workload},
};

/// A pod of which nothing was seen for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60 * 60);

/// Counters of pods, up to a number of them. Those of pods that find no room are counted together.
#[derive(Debug)]
pub struct Pods {
    most: usize,
    /// Namespace and name. A pod of a `StatefulSet` is counted with the one before it.
    by_name: BTreeMap<(String, String), PodTraffic>,
    others: [RoleTraffic; 2],
}

/// What was seen of a pod.
#[derive(Clone, Debug)]
pub struct PodTraffic {
    /// What it belongs to.
    pub workload: Workload,
    /// By [`Role`].
    pub roles: [RoleTraffic; 2],
    last: Timestamp,
}

/// On which side of a connection a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It opens them.
    Client,
    /// It is called.
    Server,
}

/// What a pod did in one role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoleTraffic {
    /// Flows that were seen from their beginning.
    pub connections: u64,
    /// Attempts that failed, by reason.
    pub failed: BTreeMap<Failure, u64>,
    /// Payload of TCP and UDP that it sent, in bytes.
    pub sent: u64,
    /// Payload that it received, in bytes.
    pub received: u64,
}

impl RoleTraffic {
    fn absorb(&mut self, other: &Self) {
        let Self { connections, failed, sent, received } = other;
        self.connections += connections;
        for (failure, count) in failed {
            *self.failed.entry(*failure).or_default() += count;
        }
        self.sent += sent;
        self.received += received;
    }
}

impl Pods {
    /// Of at most so many pods.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, by_name: BTreeMap::new(), others: Default::default() }
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
        if !map::counts(flow) {
            return;
        }
        let record = flow.record;
        let connections = u64::from(record.is_first && !record.preexisting);
        let mut seen = RoleTraffic { connections, ..RoleTraffic::default() };
        if with_counts {
            seen.failed.extend(record.failure.map(|failure| (failure, 1)));
            let [(sent, _), (received, _)] = flow.directions();
            (seen.sent, seen.received) = (sent.payload, received.payload);
        }
        if let Owner::Pod(pod) = flow.client_owner {
            self.add(pod, Role::Client, &seen, record.to);
        }
        if let Some(pod) = flow.server_pod() {
            (seen.sent, seen.received) = (seen.received, seen.sent);
            self.add(pod, Role::Server, &seen, record.to);
        }
    }

    fn add(&mut self, pod: &Pod, role: Role, seen: &RoleTraffic, at: Timestamp) {
        let key = (pod.namespace.clone(), pod.name.clone());
        let has_room = self.by_name.len() < self.most || self.by_name.contains_key(&key);
        if !has_room {
            self.others[role as usize].absorb(seen);
            return;
        }
        let traffic = self.by_name.entry(key).or_insert_with(|| PodTraffic {
            workload: pod.workload.clone(),
            roles: Default::default(),
            last: at,
        });
        traffic.last = traffic.last.max(at);
        traffic.roles[role as usize].absorb(seen);
    }

    /// Forgets pods of which nothing was seen for an hour.
    pub fn expire(&mut self, now: Timestamp) {
        self.by_name.retain(|_, pod| now.since(pod.last) <= FORGOTTEN_AFTER);
    }

    /// Namespaces and names of pods, and what was seen of them.
    pub fn iter(&self) -> impl Iterator<Item = (&(String, String), &PodTraffic)> {
        self.by_name.iter()
    }

    /// Of pods that found no room, by [`Role`].
    #[must_use]
    pub const fn others(&self) -> &[RoleTraffic; 2] {
        &self.others
    }
}
