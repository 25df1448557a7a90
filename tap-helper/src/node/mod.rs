//! One node: its desired state, the namespaces that matter, and how one is reconciled with the other.
//!
//! [`Node::set_desired`] takes a new desired state, [`Node::changed`] waits for events, [`Node::handle`] records them, and
//! [`Node::reconcile`] does whatever is due, at the latest at the [`Node::deadline`]. Each runs to its end before the next: nothing else owns
//! the state, and nothing waits for longer than the kernel takes for a request.

mod converge;
mod counters;
mod find;
mod metadata;
mod names;
mod netns;
mod pace;
mod packet_sockets;
mod paths;
mod pods;
mod preload;
mod probes;
mod readers;
mod received_probes;
mod renewal;
mod report;
mod resources;
mod sources;
mod sweep;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    io,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use podtap_model::{DesiredState, UnixTime};
use tracing::info;

use crate::{
    bpf::{Monotonic, frag_list_safe},
    deadline::{ClockReading, Renewals},
    failure::Failure,
    namespace::{Namespace, NamespaceId},
    netlink::{Connection, NetlinkError, NetnsError},
    program_sets::ProgramSets,
    resource::Resource,
    validate,
};
use counters::CounterRequests;
use metadata::MetadataSource;
use netns::Netns;
use packet_sockets::PacketSockets;
use paths::Paths;
use pods::{PodNetns, Pods};
use probes::Probes;
use received_probes::ReceivedProbes;
use resources::{Resources, changed, with_other_peers};
use sources::Sources;
use sweep::Sweep;

/// How often everything is reconciled without an event: the safety net for what no event reports.
const FULL_RECONCILE: Duration = Duration::from_secs(60);

/// Why the helper cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The node's namespace cannot be entered.
    #[error(
        "cannot enter the node's network namespace ({0}): the helper needs hostPID and the capabilities SYS_ADMIN and SYS_PTRACE"
    )]
    Namespace(#[source] io::Error),
    /// No netlink socket in it.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The processes cannot be listed.
    #[error("cannot list processes: {0}")]
    Processes(#[source] io::Error),
}

impl From<NetnsError> for NodeError {
    fn from(error: NetnsError) -> Self {
        match error {
            NetnsError::Enter(error) => Self::Namespace(error),
            NetnsError::Netlink(error) => Self::Netlink(error),
        }
    }
}

/// Something that changed on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Something in a namespace.
    Netns(NamespaceId),
    /// The process by which a namespace was found ended.
    ProcessEnded(NamespaceId),
    /// A route or a device of the node.
    Paths,
    /// Connections are translated.
    Translations,
    /// Programs were loaded ahead.
    ProgramsLoaded,
}

/// A node and those of its namespaces that are tapped or contain resources of ours.
pub struct Node {
    namespace: Rc<Namespace>,
    netlink: Connection,
    desired: Option<DesiredState>,
    /// Resources that are refused before any of their namespace is observed.
    invalid: BTreeMap<Resource, Failure>,
    renewals: Renewals,
    frag_list_safe: bool,
    program_sets: ProgramSets,
    /// Whether programs may have to be loaded ahead.
    preload_is_due: bool,
    paths: Paths,
    sources: Sources,
    pods: Pods,
    resources: Resources,
    netns: BTreeMap<NamespaceId, Netns>,
    counter_requests: CounterRequests,
    probes: Probes,
    metadata: MetadataSource,
    received_probes: ReceivedProbes,
    packet_sockets: PacketSockets,
    sweep: Sweep,
    /// When to poll for readers next.
    next_poll: Option<Instant>,
    next_full_reconcile: Option<Instant>,
    /// The namespace with which the last turn ended.
    last_in_turn: Option<NamespaceId>,
    restarts: u32,
}

impl Node {
    /// The node that the helper runs on. Changes nothing.
    pub fn open() -> Result<Self, NodeError> {
        let namespace = Rc::new(Namespace::node().map_err(NodeError::Namespace)?);
        let netlink = Connection::open(&namespace)?;
        Ok(Self {
            namespace,
            netlink,
            desired: None,
            invalid: BTreeMap::new(),
            renewals: Renewals::new(node_clock()),
            frag_list_safe: frag_list_safe(),
            program_sets: ProgramSets::new(Instant::now()),
            preload_is_due: false,
            paths: Paths::default(),
            sources: Sources::default(),
            pods: Pods::default(),
            resources: Resources::default(),
            netns: BTreeMap::new(),
            counter_requests: CounterRequests::default(),
            probes: Probes::default(),
            metadata: MetadataSource::default(),
            received_probes: ReceivedProbes::default(),
            packet_sockets: PacketSockets::default(),
            sweep: Sweep::default(),
            next_poll: None,
            next_full_reconcile: None,
            last_in_turn: None,
            restarts: 0,
        })
    }

    /// With the number of times that the helper was restarted in its container, for reports.
    #[must_use]
    pub fn restarted(self, restarts: u32) -> Self {
        Self { restarts, ..self }
    }

    /// Takes a new desired state. With the first one, the search begins for what earlier helpers left in any namespace.
    pub async fn set_desired(&mut self, desired: DesiredState, now: Instant) -> Result<(), NodeError> {
        if self.desired.is_none() {
            self.renewals = Renewals::new(node_clock());
        }
        if let Some(time) = desired.now {
            self.renewals.confirm(ClockReading { at: Monotonic::now(), time });
        }
        let desired = self.renewals.without_expired(&desired, Monotonic::now()).unwrap_or(desired);
        self.request(desired, now).await
    }

    async fn request(&mut self, desired: DesiredState, now: Instant) -> Result<(), NodeError> {
        if self.paths.set_destinations(desired.senders.iter(), &self.namespace, &self.netlink).await? {
            self.mark_all_dirty();
        }
        let none = DesiredState::default();
        let previous = self.desired.as_ref().unwrap_or(&none);
        let mut changed = changed(previous, &desired);
        let other_peers = with_other_peers(previous, &desired);
        let refused = validate::refused(&desired, |address| self.paths.is_local(address));
        // Whether a resource is refused depends on others, too.
        let is_changed = |resource: &&Resource| refused.get(*resource) != self.invalid.get(*resource);
        changed.extend(refused.keys().chain(self.invalid.keys()).filter(is_changed).cloned().collect::<Vec<_>>());
        self.invalid = refused;
        self.resources.forget_changed(&changed, &desired);
        changed.extend(other_peers);
        self.pods.set(validate::pods(&desired), now);
        self.metadata.set(desired.senders.iter(), &self.namespace, now);
        let receives = desired.receivers.iter().any(|receiver| receiver.pod.is_none());
        self.sources.set(&desired, now);
        let is_first = self.desired.replace(desired).is_none();
        self.probes.outdated = true;
        self.write_deadlines();
        if is_first {
            self.start_sweep()?;
        }
        if receives {
            self.open_own_netns()?;
        }
        self.search(now).await?;
        self.mark_dirty(&changed);
        self.forget_programs();
        // Updates do not postpone it.
        self.next_full_reconcile.get_or_insert(now + FULL_RECONCILE);
        Ok(())
    }

    /// Reconciles what is due.
    pub async fn reconcile(&mut self, now: Instant) -> Result<(), NodeError> {
        self.expire(now).await?;
        if self.program_sets.retry_at().is_some_and(|moment| moment <= now) {
            self.preload_is_due = true;
        }
        if self.pods.watch_is_due(now) {
            self.search(now).await?;
        }
        if self.next_full_reconcile.is_some_and(|moment| moment <= now) {
            self.next_full_reconcile = Some(now + FULL_RECONCILE);
            self.refresh_paths().await;
            self.sources.update_at(now);
            self.mark_all_dirty();
            self.start_sweep()?;
        } else if self.paths.is_due(now) {
            self.refresh_paths().await;
        }
        // Before any receiver is created.
        self.update_sources(now);
        if self.sweep.is_due(now) {
            self.sweep_step().await;
        }
        self.poll_readers(now).await;
        self.converge_due(now).await;
        // After any is removed.
        self.update_sources(now);
        self.write_deadlines();
        let is_outdated = self.probes.outdated;
        self.send_probes(now);
        self.send_metadata(now, is_outdated);
        self.read_probes(now);
        self.hand_over_packet_sockets(now);
        Ok(())
    }

    /// When [`Self::reconcile`] or [`Self::read_counters`] have something to do even without an event; none: never.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let netns = self.netns.values().filter_map(Netns::due_at);
        // A node without senders needs no programs.
        let has_senders = self.desired.as_ref().is_some_and(|desired| !desired.senders.is_empty());
        let load = self.program_sets.retry_at().filter(|_| has_senders && !self.preload_is_due);
        let retry = self.resources.next_retry();
        let (counters, sweep, sources) = (self.counter_requests.due_at(), self.sweep.due_at(), self.sources.due_at());
        let probes = [self.probes_due_at(), self.received_probes_due_at(), self.metadata.due_at()];
        let own = [self.pods.watch_due_at(), self.next_full_reconcile, self.poll_due_at(), retry, load];
        let own = own.into_iter().chain(probes).chain([self.packet_sockets_due_at()]);
        let moments = own.chain([self.next_deadline(), counters, sweep, sources, self.paths.due_at()]);
        moments.flatten().chain(netns).min()
    }

    /// Waits until something changes. Cancel safe: a change that is not handled is reported again.
    pub async fn changed(&mut self) -> Vec<Change> {
        poll_fn(|context| {
            let mut changes = Vec::new();
            if self.paths.poll_changed(context).is_ready() {
                changes.push(Change::Paths);
            }
            if self.metadata.poll_changed(context).is_ready() {
                changes.push(Change::Translations);
            }
            if self.program_sets.poll_loaded(context).is_ready() {
                changes.push(Change::ProgramsLoaded);
            }
            for (id, netns) in &mut self.netns {
                if let Poll::Ready(change) = netns.poll_changed(*id, context) {
                    changes.push(change);
                }
            }
            if changes.is_empty() { Poll::Pending } else { Poll::Ready(changes) }
        })
        .await
    }

    /// Records a change.
    pub async fn handle(&mut self, change: Change, now: Instant) -> Result<(), NodeError> {
        match change {
            Change::Netns(id) => {
                if let Some(netns) = self.netns.get_mut(&id) {
                    let events = netns.take_events(now);
                    netns.segment_for_readers(&events).await;
                }
                Ok(())
            }
            Change::ProcessEnded(id) => self.process_ended(id, now).await,
            Change::Paths => {
                self.paths.changed();
                Ok(())
            }
            Change::Translations => {
                self.metadata.take(now);
                Ok(())
            }
            Change::ProgramsLoaded => {
                self.preload_is_due = true;
                if self.program_sets.recovered() {
                    info!("eBPF programs can be loaded again");
                    self.mark_all_dirty();
                }
                Ok(())
            }
        }
    }

    async fn refresh_paths(&mut self) {
        if self.paths.refresh(&self.netlink).await {
            let is_local = |address| self.paths.is_local(address);
            self.invalid =
                self.desired.as_ref().map(|desired| validate::refused(desired, is_local)).unwrap_or_default();
            self.mark_all_dirty();
        }
    }

    fn mark_all_dirty(&mut self) {
        for netns in self.netns.values_mut() {
            netns.dirty = true;
        }
    }

    /// Marks the namespaces in which these resources are, or should be.
    fn mark_dirty(&mut self, resources: &BTreeSet<Resource>) {
        let mut ids: BTreeSet<NamespaceId> =
            resources.iter().filter_map(|resource| Some(self.resources.get(resource)?.netns)).collect();
        for sender in self.desired.iter().flat_map(|desired| &desired.senders) {
            if let PodNetns::Own(id) = self.pods.netns_of(&sender.pod.uid)
                && resources.contains(&Resource::sender(sender))
            {
                ids.insert(id);
            }
        }
        for receiver in self.desired.iter().flat_map(|desired| &desired.receivers) {
            let netns = match &receiver.pod {
                Some(pod) => self.pods.netns_of(&pod.uid),
                None => PodNetns::Own(self.namespace.id()),
            };
            if let PodNetns::Own(id) = netns
                && resources.contains(&Resource::receiver(receiver))
            {
                ids.insert(id);
            }
        }
        for (_, netns) in self.netns.iter_mut().filter(|(id, _)| ids.contains(id)) {
            netns.dirty = true;
        }
    }
}

/// The node's own clock, for what the API server's is not known for.
fn node_clock() -> ClockReading {
    ClockReading { at: Monotonic::now(), time: UnixTime::from(SystemTime::now()) }
}
