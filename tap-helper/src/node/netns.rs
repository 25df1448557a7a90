use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use podtap_model::Vni;

use super::{Change, pace::Pace, probes::ProbeSource, readers::Readers};
use crate::{
    failure::Status,
    logs::Repeated,
    namespace::{Namespace, NamespaceId, PidfdRef},
    netlink::{Connection, Event, NetlinkError, NetnsError, Subscription},
    observe::{NetnsKind, Observed, observe},
    resource::Resource,
};

/// Repairs within [`WINDOW`] after which they slow down: another program undoes them, and the helper should not spin.
const REPAIRS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(2);

/// The state of a network namespace that matters: entered once, and subscribed to since.
pub(super) struct Netns {
    pub(super) namespace: Rc<Namespace>,
    pub(super) netlink: Connection,
    subscription: Subscription,
    /// Reports the end of the process by which the namespace was found; none for the node's own.
    pub(super) process: Option<PidfdRef>,
    pub(super) kind: NetnsKind,
    /// Something may have changed.
    pub(super) dirty: bool,
    /// It was never reconciled.
    pub(super) is_new: bool,
    /// In the node's own namespace: devices whose events matter.
    pub(super) watched: BTreeSet<u32>,
    /// In the node's own namespace: names whose events matter.
    pub(super) names: BTreeSet<String>,
    /// Resources that are no longer requested, and why they still exist.
    pub(super) leftovers: BTreeMap<Resource, Status>,
    /// Whether the last reconciliation had to restore something that was in place before.
    pub(super) restored: bool,
    /// The VNIs with which the senders of each tap send, by its UID.
    pub(super) sent_vnis: BTreeMap<String, BTreeSet<Vni>>,
    /// The UDP port and the VNI of each receiver.
    pub(super) receivers: BTreeSet<(u16, u32)>,
    /// The program of each receiver, by the hash of the receiver.
    pub(super) receive_programs: BTreeMap<u64, u32>,
    /// Who reads its receivers.
    pub(super) readers: Readers,
    /// The senders that may send probes.
    pub(super) probe_sources: Vec<ProbeSource>,
    /// Observations that failed.
    pub(super) unobservable: Repeated,
    pace: Pace,
    repairs: (Option<Instant>, u32),
}

impl Netns {
    /// Enters a namespace.
    pub(super) fn new(
        namespace: Rc<Namespace>,
        process: Option<PidfdRef>,
        kind: NetnsKind,
    ) -> Result<Self, NetnsError> {
        // The subscription is opened before the first observation, so that no event in between is missed.
        let subscription = Subscription::open(&namespace, kind == NetnsKind::Pod)?;
        let netlink = Connection::open(&namespace)?;
        let netlink = if kind == NetnsKind::Node { netlink.unlimited() } else { netlink };
        Ok(Self {
            namespace,
            netlink,
            subscription,
            process,
            kind,
            dirty: true,
            is_new: true,
            watched: BTreeSet::new(),
            names: BTreeSet::new(),
            leftovers: BTreeMap::new(),
            restored: false,
            sent_vnis: BTreeMap::new(),
            receivers: BTreeSet::new(),
            receive_programs: BTreeMap::new(),
            readers: Readers::default(),
            probe_sources: Vec::new(),
            unobservable: Repeated::default(),
            pace: Pace::default(),
            repairs: (None, 0),
        })
    }

    /// Enters the namespace of a process.
    pub(super) fn of_process(pid: u32, kind: NetnsKind) -> Result<Self, NetnsError> {
        let process = match kind {
            NetnsKind::Pod => Some(PidfdRef::to(pid)?),
            NetnsKind::Node => None,
        };
        Self::new(Rc::new(Namespace::of_process(pid)?), process, kind)
    }

    /// Ready when something has changed, or the process ended.
    pub(super) fn poll_changed(&mut self, id: NamespaceId, context: &mut Context<'_>) -> Poll<Change> {
        if let Some(process) = &self.process
            && process.poll_ended(context).is_ready()
        {
            return Poll::Ready(Change::ProcessEnded(id));
        }
        // Further events tell nothing new until it is observed, but of readers: a flood of them in a pod's namespace is left to the kernel,
        // which drops what is not read.
        if self.dirty && (self.kind == NetnsKind::Pod || !self.readers.any_idle()) {
            return Poll::Pending;
        }
        ready!(self.subscription.poll_changed(context));
        Poll::Ready(Change::Netns(id))
    }

    /// Observes the namespace, with its default routes if they matter; events until now are outdated then.
    pub(super) async fn observe(&mut self, with_routes: bool) -> Result<Observed, NetlinkError> {
        let events = self.subscription.take();
        self.segment_for_readers(&events).await;
        let mut observed = observe(&self.netlink, self.kind).await?;
        if with_routes {
            observed.read_default_routes(&self.netlink).await?;
        }
        Ok(observed)
    }

    /// Takes the events since the last observation, and records whether they matter.
    pub(super) fn take_events(&mut self, now: Instant) -> Vec<Event> {
        let events = self.subscription.take();
        let matters = |event: &Event| match (self.kind, event) {
            (NetnsKind::Pod, _) | (_, Event::Lost | Event::Action) => true,
            (NetnsKind::Node, Event::Link { index, name, .. }) => {
                self.watched.contains(index) || self.names.contains(name)
            }
            (NetnsKind::Node, Event::Classifier { interface }) => self.watched.contains(interface),
            (NetnsKind::Node, Event::Destination | Event::Address | Event::Route) => false,
        };
        if !self.dirty && events.iter().any(matters) {
            self.dirty = true;
            self.slow_down(now);
        }
        events
    }

    /// Counts changes, and delays the reaction if there are too many.
    fn slow_down(&mut self, now: Instant) {
        let (start, count) = self.repairs;
        let recent = start.filter(|start| now.duration_since(*start) < WINDOW);
        self.repairs = (Some(recent.unwrap_or(now)), if recent.is_some() { count + 1 } else { 1 });
        // The delay is not extended: with a change per second it would never end.
        if self.repairs.1 > REPAIRS && self.pace.is_due(now) {
            self.pace.wait_until(now + SLOW);
        }
    }

    /// Whether another program keeps changing what is restored here, and the next reconciliation waits: what was observed last may not
    /// be true any more.
    pub(super) fn is_contested(&self) -> bool {
        // Without a pause, a dirty namespace is reconciled before anything is reported.
        self.dirty && self.restored
    }

    /// When it is due to be reconciled.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.dirty.then(|| self.pace.due_at())
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.dirty && self.pace.is_due(now)
    }
}
