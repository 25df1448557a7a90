use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use tap_wire::Status;

use crate::{
    namespace::{Anchor, Namespace, within},
    netlink::{Event, Monitor, NetlinkError, RouteSocket},
    observe::{Observed, Scope, observe},
    step::Item,
};

/// Repairs within [`WINDOW`] after which they are slowed down: somebody else undoes them, and one should not spin.
const REPAIRS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(2);

/// A network namespace that matters, entered once and listened to since.
pub(super) struct Space {
    pub(super) namespace: Namespace,
    pub(super) socket: RouteSocket,
    pub(super) monitor: Monitor,
    /// Tells when the process by which the namespace was found ends; none for the node's own.
    pub(super) anchor: Option<Anchor>,
    pub(super) scope: Scope,
    /// Something may have changed.
    pub(super) dirty: bool,
    /// In the node's own namespace: devices whose events matter.
    pub(super) watched: BTreeSet<u32>,
    /// In the node's own namespace: names whose events matter.
    pub(super) names: BTreeSet<String>,
    /// Items that are not wanted, with why they are still there.
    pub(super) leftovers: BTreeMap<Item, Status>,
    not_before: Option<Instant>,
    repairs: (Option<Instant>, u32),
}

impl Space {
    /// Enters a namespace.
    pub(super) fn new(namespace: Namespace, anchor: Option<Anchor>, scope: Scope) -> io::Result<Self> {
        // First the ears, then the first look: nothing that happens in between is missed.
        let has_senders = scope == Scope::Pod;
        let opened = within(&namespace, || Ok::<_, NetlinkError>((Monitor::open(has_senders)?, RouteSocket::open()?)))?;
        let (monitor, socket) = opened.map_err(io::Error::other)?;
        Ok(Self {
            namespace,
            socket,
            monitor,
            anchor,
            scope,
            dirty: true,
            watched: BTreeSet::new(),
            names: BTreeSet::new(),
            leftovers: BTreeMap::new(),
            not_before: None,
            repairs: (None, 0),
        })
    }

    /// Enters the namespace of a process.
    pub(super) fn of_process(pid: u32, scope: Scope) -> io::Result<Self> {
        let anchor = match scope {
            Scope::Pod => Some(Anchor::on(pid)?),
            Scope::Node => None,
        };
        Self::new(Namespace::of_process(pid)?, anchor, scope)
    }

    /// Looks at it; what was heard until now is old then.
    pub(super) fn observe(&mut self) -> Result<Observed, NetlinkError> {
        self.monitor.take();
        observe(&mut self.socket, self.scope)
    }

    /// Hears what changed.
    pub(super) fn listen(&mut self, now: Instant) {
        let events = self.monitor.take();
        let matters = |event: &Event| match (self.scope, event) {
            (Scope::Pod, _) | (_, Event::Lost) => true,
            (Scope::Node, Event::Link { index, name }) => self.watched.contains(index) || self.names.contains(name),
            (Scope::Node, Event::Classifier { interface }) => self.watched.contains(interface),
            (Scope::Node, Event::Destination { .. } | Event::Address) => false,
        };
        if events.iter().any(matters) {
            self.dirty = true;
            self.slow_down(now);
        }
    }

    /// Counts changes that were heard, and delays the answer if there are too many.
    fn slow_down(&mut self, now: Instant) {
        let (start, count) = self.repairs;
        let recent = start.filter(|start| now.duration_since(*start) < WINDOW);
        self.repairs = (Some(recent.unwrap_or(now)), if recent.is_some() { count + 1 } else { 1 });
        // Not further and further: with a change per second it would never be looked at.
        if self.repairs.1 > REPAIRS && self.not_before.is_none_or(|moment| moment <= now) {
            self.not_before = Some(now + SLOW);
        }
    }

    /// When it is to be looked at.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.dirty.then(|| self.not_before.unwrap_or_else(Instant::now))
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.dirty && self.not_before.is_none_or(|moment| moment <= now)
    }
}
