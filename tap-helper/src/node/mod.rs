//! One node: what is wanted of it, the namespaces that matter, and the way from one to the other.
//!
//! [`Node::want`] takes a new desired state, [`Node::turn`] does whatever is due now, [`Node::deadline`] says when
//! something will be due without an event, [`Node::descriptors`] what events to wait for. Nothing blocks for longer than the
//! kernel takes for a request.

mod converge;
mod counters;
mod items;
mod paths;
mod pods;
mod report;
mod space;
mod watch;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use tap_wire::Desired;

use crate::{
    bpf::{Features, Programs, Settings, probe},
    failure::Failure,
    log::Log,
    namespace::{Namespace, NamespaceId, namespaces, pids, within},
    netlink::{NetlinkError, RouteSocket},
    observe::Scope,
    step::{Item, SenderKey},
    validate,
};
use items::Items;
use paths::Paths;
use pods::{Place, Pods};
use space::Space;

/// How often everything is looked at again though nothing was heard: the safety net for what no event tells.
const FULL_LOOK: Duration = Duration::from_secs(60);

/// Why the helper cannot work at all.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The node's namespace cannot be entered.
    #[error(
        "cannot enter the node's network namespace ({0}): the helper needs hostPID and the capabilities SYS_ADMIN and SYS_PTRACE"
    )]
    Namespace(#[source] io::Error),
    /// No netlink socket there.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The processes cannot be listed.
    #[error("cannot list processes: {0}")]
    Processes(#[source] io::Error),
}

/// Something that an event was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Something changed in a namespace.
    Monitor(NamespaceId),
    /// The process that stands for a namespace ended.
    Anchor(NamespaceId),
    /// A route or a device of the node changed.
    Paths,
}

/// A node and all of its namespaces that are wanted, or hold something of ours.
pub struct Node {
    log: Log,
    own: Namespace,
    own_socket: RouteSocket,
    desired: Option<Desired>,
    /// What of the desired state is never attempted, from its description alone.
    invalid: BTreeMap<Item, Failure>,
    features: Features,
    /// Programs for the next sender.
    spare: Option<Programs>,
    paths: Paths,
    pods: Pods,
    items: Items,
    spaces: BTreeMap<NamespaceId, Space>,
    next_full_look: Option<Instant>,
}

impl Node {
    /// The node that the helper runs on. Touches nothing.
    pub fn open(log: Log) -> Result<Self, NodeError> {
        let own = Namespace::node().map_err(NodeError::Namespace)?;
        let own_socket = within(&own, RouteSocket::open).map_err(NodeError::Namespace)??;
        let (features, spare) = probe();
        tell_of_lacks(&features, log);
        Ok(Self {
            own,
            own_socket,
            desired: None,
            invalid: BTreeMap::new(),
            features,
            spare,
            paths: Paths::default(),
            pods: Pods::default(),
            items: Items::default(),
            spaces: BTreeMap::new(),
            next_full_look: None,
            log,
        })
    }

    /// Loads programs for the next sender, if there are none. To be called when everything else is done.
    pub fn prepare(&mut self) {
        if self.spare.is_none() && self.features.usable().is_ok() {
            // If they cannot be loaded now, the next sender says why.
            self.spare = Programs::load(&Settings::default(), None).ok();
        }
    }

    /// The node's own namespace.
    #[must_use]
    pub fn own(&self) -> &Namespace {
        &self.own
    }

    /// Takes a new desired state. The first one also brings what any helper left in whatever namespace.
    pub fn want(&mut self, desired: Desired, now: Instant) -> Result<(), NodeError> {
        self.items.forget_changed(self.desired.as_ref(), &desired);
        self.invalid = invalid(&desired);
        self.pods.want(validate::pods(&desired), now);
        let receives = desired.receivers.iter().any(|receiver| receiver.pod.is_none());
        if self.features.usable().is_ok() {
            self.paths.want(desired.senders.iter(), &self.own, &mut self.own_socket).map_err(NodeError::Namespace)?;
        }
        let is_first = self.desired.replace(desired).is_none();
        if is_first {
            self.sweep()?;
        }
        if receives {
            self.open_own_space()?;
        }
        self.search(now)?;
        for space in self.spaces.values_mut() {
            space.dirty = true;
        }
        let nothing = self.spaces.is_empty() && desired_is_empty(self.desired.as_ref());
        self.next_full_look = (!nothing).then_some(now + FULL_LOOK);
        Ok(())
    }

    /// Does what is due.
    pub fn turn(&mut self, now: Instant) -> Result<(), NodeError> {
        if self.pods.watch_is_due(now) {
            self.search(now)?;
        }
        if self.next_full_look.is_some_and(|moment| moment <= now) {
            self.next_full_look = (!self.spaces.is_empty()).then_some(now + FULL_LOOK);
            self.paths.look(&mut self.own_socket);
            for space in self.spaces.values_mut() {
                space.dirty = true;
            }
        }
        let due: Vec<NamespaceId> = self
            .spaces
            .iter()
            .filter(|(id, space)| space.is_due(now) || self.items.retry_is_due(**id, now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.converge(id, now);
        }
        Ok(())
    }

    /// When [`Self::turn`] has something to do even if nothing is heard; none: never.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let spaces = self.spaces.values().filter_map(Space::due_at);
        let moments = [self.pods.watch_due_at(), self.next_full_look, self.items.next_retry()];
        moments.into_iter().flatten().chain(spaces).min()
    }

    /// What to wait for.
    #[must_use]
    pub fn descriptors(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let mut all = Vec::with_capacity(self.spaces.len() * 2 + 1);
        all.extend(self.paths.descriptor().map(|descriptor| (Source::Paths, descriptor)));
        for (id, space) in &self.spaces {
            all.push((Source::Monitor(*id), space.monitor.as_fd()));
            all.extend(space.anchor.as_ref().map(|anchor| (Source::Anchor(*id), anchor.as_fd())));
        }
        all
    }

    /// Takes note of an event.
    pub fn heard(&mut self, source: Source, now: Instant) -> Result<(), NodeError> {
        match source {
            Source::Monitor(id) => {
                if let Some(space) = self.spaces.get_mut(&id) {
                    space.listen(now);
                }
                Ok(())
            }
            Source::Anchor(id) => self.process_ended(id, now),
            Source::Paths => {
                if self.paths.look(&mut self.own_socket) {
                    for space in self.spaces.values_mut() {
                        space.dirty = true;
                    }
                }
                Ok(())
            }
        }
    }

    /// Finds what earlier helpers left, in all namespaces that some process is in.
    fn sweep(&mut self) -> Result<(), NodeError> {
        let pids = pids().map_err(NodeError::Processes)?;
        for (id, pid) in namespaces(&pids) {
            if self.spaces.contains_key(&id) {
                continue;
            }
            let scope = if id == self.own.id() { Scope::Node } else { Scope::Pod };
            // A process that ended, or a namespace that nobody may enter, has nothing that could be removed from here.
            let Ok(mut space) = Space::of_process(pid, scope) else { continue };
            if space.observe().is_ok_and(|observed| observed.has_ours()) {
                let id = space.namespace.id();
                self.log.info("found", &[("namespace", &id.inode().to_string())]);
                self.spaces.insert(id, space);
            }
        }
        Ok(())
    }

    fn open_own_space(&mut self) -> Result<(), NodeError> {
        if !self.spaces.contains_key(&self.own.id()) {
            let space = Space::of_process(1, Scope::Node).map_err(NodeError::Namespace)?;
            self.spaces.insert(space.namespace.id(), space);
        }
        Ok(())
    }

    /// Looks for the pods that have no namespace yet.
    fn search(&mut self, now: Instant) -> Result<(), NodeError> {
        for (uid, candidate) in self.pods.search(&self.own, now).map_err(NodeError::Processes)? {
            let id = candidate.namespace.id();
            if let Entry::Vacant(place) = self.spaces.entry(id) {
                match Space::new(candidate.namespace, Some(candidate.anchor), Scope::Pod) {
                    Ok(space) => {
                        place.insert(space);
                    }
                    // It ended just now, or the helper lacks a right; the search goes on.
                    Err(error) => {
                        self.log.warn("cannot enter", &[("pod", &uid), ("error", &error.to_string())]);
                        continue;
                    }
                }
            }
            self.log.info("pod runs", &[("pod", &uid), ("namespace", &id.inode().to_string())]);
            self.pods.place(&uid, Place::In(id), now);
            if let Some(space) = self.spaces.get_mut(&id) {
                space.dirty = true;
            }
        }
        Ok(())
    }

    /// Finds another process for a namespace, or lets the namespace go, so that the kernel can.
    fn process_ended(&mut self, id: NamespaceId, now: Instant) -> Result<(), NodeError> {
        let pids = pids().map_err(NodeError::Processes)?;
        let anchor = if self.pods.any_in(id) {
            self.pods.another_process(id, &pids)
        } else {
            namespaces(&pids).get(&id).and_then(|pid| crate::namespace::Anchor::on(*pid).ok())
        };
        if let (Some(anchor), Some(space)) = (anchor, self.spaces.get_mut(&id)) {
            space.anchor = Some(anchor);
            return Ok(());
        }
        self.log.info("pod ended", &[("namespace", &id.inode().to_string())]);
        self.pods.leave(id, now);
        // The namespace may outlive its processes: CRI-O keeps it by a mount between two runs of a pod's only container. Nobody
        // would find what is ours in it until then, so it goes now.
        self.converge(id, now);
        self.spaces.remove(&id);
        self.items.forget_space(id);
        self.search(now)
    }
}

/// A word in the log for each thing that the kernel cannot do.
fn tell_of_lacks(features: &Features, log: Log) {
    let parts = [&features.ebpf, &features.rate_limit, &features.expression, &features.clamp];
    for error in parts.into_iter().filter_map(|part| part.as_ref().err()) {
        log.warn("eBPF lacks something", &[("error", &error.to_string())]);
    }
}

fn desired_is_empty(desired: Option<&Desired>) -> bool {
    desired.is_none_or(|desired| desired.senders.is_empty() && desired.receivers.is_empty())
}

/// The items that are refused for what they say.
fn invalid(desired: &Desired) -> BTreeMap<Item, Failure> {
    let senders =
        desired.senders.iter().map(|sender| (Item::Sender(SenderKey::of(sender)), validate::sender(sender, desired)));
    let receivers = desired
        .receivers
        .iter()
        .map(|receiver| (Item::Receiver(receiver.tap.clone(), receiver.vni), validate::receiver(receiver, desired)));
    senders.chain(receivers).filter_map(|(item, result)| Some((item, result.err()?))).collect()
}
