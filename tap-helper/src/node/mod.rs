//! One node: its desired state, the namespaces that matter, and how one is reconciled with the other.
//!
//! [`Node::set_desired`] takes a new desired state, [`Node::changed`] waits for events, [`Node::handle`] records them, and
//! [`Node::reconcile`] does whatever is due, at the latest at the [`Node::deadline`]. Each runs to its end before the next: nothing else owns
//! the state, and nothing waits for longer than the kernel takes for a request.

mod converge;
mod counters;
mod names;
mod netns;
mod paths;
mod pods;
mod preloaded;
mod renewal;
mod report;
mod resources;
mod sources;
mod watch;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    future::poll_fn,
    io,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use podtap_model::{DesiredState, UnixTime};
use tracing::{info, warn};

use crate::{
    bpf::{Monotonic, frag_list_safe},
    deadline::{ClockReading, Renewals},
    failure::Failure,
    namespace::{Namespace, NamespaceId, PidfdRef, namespaces, pids},
    netlink::{Connection, NetlinkError, NetnsError},
    observe::NetnsKind,
    resource::Resource,
    validate,
};
use netns::Netns;
use paths::Paths;
use pods::Pods;
use preloaded::Preloaded;
use resources::Resources;
use sources::Sources;

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
    preloaded: Preloaded,
    paths: Paths,
    sources: Sources,
    pods: Pods,
    resources: Resources,
    netns: BTreeMap<NamespaceId, Netns>,
    next_full_reconcile: Option<Instant>,
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
            preloaded: Preloaded::new(Instant::now()),
            paths: Paths::default(),
            sources: Sources::default(),
            pods: Pods::default(),
            resources: Resources::default(),
            netns: BTreeMap::new(),
            next_full_reconcile: None,
        })
    }

    /// Loads programs for the next sender, if there are none. To be called when nothing else is left to do.
    pub fn preload(&mut self, now: Instant) {
        self.preloaded.load(now);
    }

    /// The node's own namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Takes a new desired state. The first one also adopts what earlier helpers left in any namespace.
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
        self.resources.forget_changed(self.desired.as_ref(), &desired);
        self.pods.set(validate::pods(&desired), now);
        let receives = desired.receivers.iter().any(|receiver| receiver.pod.is_none());
        self.paths.set_destinations(desired.senders.iter(), &self.namespace, &self.netlink).await?;
        self.invalid = invalid(&desired, &self.paths);
        self.sources.set(&desired, now);
        let is_first = self.desired.replace(desired).is_none();
        if is_first {
            self.adopt_leftovers().await?;
        }
        if receives {
            self.open_own_netns()?;
        }
        self.search(now).await?;
        self.mark_all_dirty();
        let is_idle = self.netns.is_empty() && is_empty(self.desired.as_ref());
        self.next_full_reconcile = (!is_idle).then_some(now + FULL_RECONCILE);
        Ok(())
    }

    /// Reconciles what is due.
    pub async fn reconcile(&mut self, now: Instant) -> Result<(), NodeError> {
        self.expire(now).await?;
        if self.preloaded.load_again(now) {
            self.mark_all_dirty();
        }
        if self.pods.watch_is_due(now) {
            self.search(now).await?;
        }
        if self.next_full_reconcile.is_some_and(|moment| moment <= now) {
            self.next_full_reconcile = (!self.netns.is_empty()).then_some(now + FULL_RECONCILE);
            self.refresh_paths().await;
            self.sources.check_at(now);
            self.mark_all_dirty();
        }
        // Before any receiver is created.
        if self.sources.install(&self.namespace, now) {
            self.mark_all_dirty();
        }
        let due: Vec<NamespaceId> = self
            .netns
            .iter()
            .filter(|(id, netns)| netns.is_due(now) || self.resources.retry_is_due(**id, now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.converge(id, now).await;
        }
        self.sources.remove(&self.namespace, now);
        self.write_deadlines();
        Ok(())
    }

    /// When [`Self::reconcile`] has something to do even without an event; none: never.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let netns = self.netns.values().filter_map(Netns::due_at);
        // A node without senders needs no programs.
        let has_senders = self.desired.as_ref().is_some_and(|desired| !desired.senders.is_empty());
        let load = self.preloaded.retry_at().filter(|_| has_senders);
        let retry = self.resources.next_retry();
        let (deadline, sources) = (self.next_deadline(), self.sources.due_at());
        let moments = [self.pods.watch_due_at(), self.next_full_reconcile, retry, load, deadline, sources];
        moments.into_iter().flatten().chain(netns).min()
    }

    /// Waits until something changes. Cancel safe: a change that is not handled is reported again.
    pub async fn changed(&mut self) -> Vec<Change> {
        poll_fn(|context| {
            let mut changes = Vec::new();
            if self.paths.poll_changed(context).is_ready() {
                changes.push(Change::Paths);
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
                    netns.process_events(now);
                }
                Ok(())
            }
            Change::ProcessEnded(id) => self.process_ended(id, now).await,
            Change::Paths => {
                self.refresh_paths().await;
                Ok(())
            }
        }
    }

    async fn refresh_paths(&mut self) {
        if self.paths.refresh(&self.netlink).await {
            self.invalid = self.desired.as_ref().map(|desired| invalid(desired, &self.paths)).unwrap_or_default();
            self.mark_all_dirty();
        }
    }

    fn mark_all_dirty(&mut self) {
        for netns in self.netns.values_mut() {
            netns.dirty = true;
        }
    }

    /// Finds what earlier helpers left, in every namespace with a process.
    async fn adopt_leftovers(&mut self) -> Result<(), NodeError> {
        let pids = pids().map_err(NodeError::Processes)?;
        for (id, pid) in namespaces(&pids) {
            if self.netns.contains_key(&id) {
                continue;
            }
            let kind = if id == self.namespace.id() { NetnsKind::Node } else { NetnsKind::Pod };
            // Nothing can be removed where the process has ended, or from a namespace that the helper may not enter.
            let Ok(mut netns) = Netns::of_process(pid, kind) else { continue };
            if netns.observe().await.is_ok_and(|observed| observed.has_ours()) {
                let id = netns.namespace.id();
                info!(process = pid, "found what an earlier tap-helper left in the namespace of this process");
                self.netns.insert(id, netns);
            }
        }
        Ok(())
    }

    fn open_own_netns(&mut self) -> Result<(), NodeError> {
        if !self.netns.contains_key(&self.namespace.id()) {
            let netns = Netns::of_process(1, NetnsKind::Node)?;
            self.netns.insert(netns.namespace.id(), netns);
        }
        Ok(())
    }

    /// Looks for the pods whose namespace is unknown.
    async fn search(&mut self, now: Instant) -> Result<(), NodeError> {
        for (uid, candidate) in self.pods.search(&self.namespace, now).await.map_err(NodeError::Processes)? {
            let id = candidate.namespace.id();
            if let Entry::Vacant(entry) = self.netns.entry(id) {
                match Netns::new(candidate.namespace, Some(candidate.pidfd), NetnsKind::Pod) {
                    Ok(netns) => {
                        entry.insert(netns);
                    }
                    // The process has just ended, or the helper lacks a capability. The search continues.
                    Err(error) => {
                        warn!(pod = uid, %error, "cannot enter the pod's network namespace; retrying");
                        continue;
                    }
                }
            }
            self.pods.found(&uid, id, now);
            info!(pod = self.place(id), "pod runs");
            if let Some(netns) = self.netns.get_mut(&id) {
                netns.dirty = true;
            }
        }
        Ok(())
    }

    /// Finds another process for a namespace, or releases the namespace, so that the kernel can delete it.
    async fn process_ended(&mut self, id: NamespaceId, now: Instant) -> Result<(), NodeError> {
        let pids = pids().map_err(NodeError::Processes)?;
        let process = if self.pods.any_in(id) {
            self.pods.another_process(id, &pids)
        } else {
            namespaces(&pids).get(&id).and_then(|pid| PidfdRef::to(*pid).ok())
        };
        if let (Some(process), Some(netns)) = (process, self.netns.get_mut(&id)) {
            netns.process = Some(process);
            return Ok(());
        }
        info!(pod = self.place(id), "pod ended");
        self.pods.forget(id, now);
        // The namespace may outlive its processes: CRI-O keeps it mounted between two runs of a pod's only container. Until then, no
        // helper could find our resources in it, so they are removed now.
        self.converge(id, now).await;
        self.netns.remove(&id);
        self.resources.forget_netns(id);
        self.search(now).await
    }
}

/// The node's own clock, for what the API server's is not known for.
fn node_clock() -> ClockReading {
    ClockReading { at: Monotonic::now(), time: UnixTime::from(SystemTime::now()) }
}

fn is_empty(desired: Option<&DesiredState>) -> bool {
    desired.is_none_or(|desired| desired.senders.is_empty() && desired.receivers.is_empty())
}

/// The resources that are refused because of their spec, or because a destination is an address of the node.
fn invalid(desired: &DesiredState, paths: &Paths) -> BTreeMap<Resource, Failure> {
    let is_local = |address| paths.is_local(address);
    let senders = desired.senders.iter();
    let senders = senders.map(|sender| (Resource::sender(sender), validate::sender(sender, desired, is_local)));
    let receivers = desired.receivers.iter();
    let receivers = receivers.map(|receiver| (Resource::receiver(receiver), validate::receiver(receiver, desired)));
    senders.chain(receivers).filter_map(|(resource, result)| Some((resource, result.err()?))).collect()
}
