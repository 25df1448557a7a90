use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use podtap_backoff::Backoff;
use podtap_model::{DesiredSender, DesiredState, PodDetails, Receiver, State, Tap};

use crate::{
    bpf::Monotonic,
    failure::{Failure, Status},
    namespace::NamespaceId,
    observe::Program,
    program_sets::SetSlot,
    resource::{Resource, SenderKey},
    retry::backoff,
};

/// The state of one resource.
#[derive(Clone, Debug)]
pub(super) struct ResourceState {
    pub(super) status: Status,
    pub(super) interface: String,
    /// The addresses of the pod that the interface has, for senders with deduplication.
    pub(super) addresses: Vec<IpAddr>,
    /// What may be missing from what a sender mirrors.
    pub(super) degraded: Option<String>,
    pub(super) netns: NamespaceId,
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// A device was created for it since it was last active.
    created: bool,
    /// The programs of a sender, as last observed or attached.
    pub(super) running: Option<Running>,
}

/// Running programs of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Running {
    /// The ID of one of its classifiers.
    pub(super) id: u32,
    /// The ID of the map with their configuration: the same for all senders of the set.
    pub(super) configs: u32,
    /// Its class ID.
    pub(super) classid: u32,
    /// When it stops mirroring; none if it mirrors nothing.
    pub(super) deadline: Option<Monotonic>,
}

impl Running {
    /// Programs that were just attached.
    pub(super) fn new(id: u32, slot: &SetSlot) -> Self {
        let SetSlot { configs, classid, deadline, .. } = *slot;
        Self { id, configs, classid, deadline: Some(deadline) }
    }
}

impl From<&Program> for Running {
    fn from(&Program { id, group, classid, deadline, .. }: &Program) -> Self {
        Self { id, configs: group, classid, deadline }
    }
}

/// The desired state of one resource.
#[derive(PartialEq)]
enum Spec<'a> {
    Sender(Cow<'a, DesiredSender>),
    Receiver(&'a Receiver),
}

fn specs(desired: &DesiredState) -> BTreeMap<Resource, Spec<'_>> {
    let senders =
        desired.senders.iter().map(|sender| (Resource::sender(sender), Spec::Sender(what_is_mirrored(sender))));
    let receivers = desired.receivers.iter();
    let receivers = receivers.map(|receiver| (Resource::receiver(receiver), Spec::Receiver(receiver)));
    senders.chain(receivers).collect()
}

/// Peers come and go with other pods, and details only describe the pod: that is no reason to report the sender as pending, or to forget
/// why it failed.
fn what_is_mirrored(sender: &DesiredSender) -> Cow<'_, DesiredSender> {
    if sender.tap.peers.is_empty() && *sender.details == PodDetails::default() {
        return Cow::Borrowed(sender);
    }
    let tap = Tap { peers: Vec::new(), ..Tap::clone(&sender.tap) };
    Cow::Owned(DesiredSender { tap: Arc::new(tap), details: Box::default(), ..sender.clone() })
}

/// The resources whose spec differs between two desired states, apart from peers and details, including those that only one of them has.
pub(super) fn changed(previous: &DesiredState, desired: &DesiredState) -> BTreeSet<Resource> {
    let (before, now) = (specs(previous), specs(desired));
    let removed = before.keys().filter(|resource| !now.contains_key(resource));
    let other = now.iter().filter(|(resource, spec)| before.get(resource) != Some(spec)).map(|(resource, _)| resource);
    removed.chain(other).cloned().collect()
}

/// The senders whose tap has other peers than before.
pub(super) fn with_other_peers(previous: &DesiredState, desired: &DesiredState) -> BTreeSet<Resource> {
    let peers = |sender: &DesiredSender| (sender.tap.uid.clone(), sender.tap.peers.clone());
    let before: BTreeMap<_, _> = previous.senders.iter().map(peers).collect();
    let differ = |sender: &&DesiredSender| before.get(&sender.tap.uid).is_some_and(|peers| *peers != sender.tap.peers);
    desired.senders.iter().filter(differ).map(Resource::sender).collect()
}

/// The state of each resource that has a namespace.
#[derive(Debug, Default)]
pub(super) struct Resources(BTreeMap<Resource, ResourceState>);

impl Resources {
    pub(super) fn get(&self, resource: &Resource) -> Option<&ResourceState> {
        self.0.get(resource)
    }

    /// The senders that mirror, of the taps that `wants` selects.
    pub(super) fn active_senders<'a>(
        &self,
        desired: Option<&'a DesiredState>,
        wants: impl Fn(&Tap) -> bool,
    ) -> BTreeMap<SenderKey, (&'a DesiredSender, Running)> {
        let senders = desired.into_iter().flat_map(|desired| &desired.senders).filter(|sender| wants(&sender.tap));
        let active = senders.filter_map(|sender| {
            let state = self.get(&Resource::sender(sender))?;
            let running = state.running.filter(|_| state.status == Status::ACTIVE)?;
            Some((SenderKey::of(sender), (sender, running)))
        });
        active.collect()
    }

    /// Forgets the failures of resources whose spec has changed. A resource that is no longer requested stays in state `Removing` until an
    /// observation of its namespace shows that it is gone.
    pub(super) fn forget_changed(&mut self, changed: &BTreeSet<Resource>, desired: &DesiredState) {
        let now = specs(desired);
        self.0.retain(|resource, state| {
            if now.contains_key(resource) {
                return !changed.contains(resource);
            }
            state.status = Status::REMOVING;
            (state.backoff, state.retry_at, state.created) = (backoff(), None, false);
            *resource != Resource::Leftover
        });
    }

    /// Resources that are being removed.
    pub(super) fn removing(&self) -> impl Iterator<Item = (&Resource, &Status)> {
        self.0
            .iter()
            .map(|(resource, state)| (resource, &state.status))
            .filter(|(_, status)| status.state == State::Removing)
    }

    pub(super) fn forget_netns(&mut self, netns: NamespaceId) {
        self.0.retain(|_, state| state.netns != netns);
    }

    /// Resources of a namespace.
    pub(super) fn of(&self, netns: NamespaceId) -> impl Iterator<Item = &Resource> {
        self.0.iter().filter(move |(_, state)| state.netns == netns).map(|(resource, _)| resource)
    }

    /// Forgets the resources of a namespace, except those for which `stays` holds.
    pub(super) fn forget_removed(&mut self, netns: NamespaceId, stays: impl Fn(&Resource) -> bool) {
        self.0.retain(|resource, state| state.netns != netns || stays(resource));
    }

    fn entry(&mut self, resource: &Resource, netns: NamespaceId) -> &mut ResourceState {
        let fresh = || ResourceState {
            status: Status::PENDING,
            interface: String::new(),
            addresses: Vec::new(),
            degraded: None,
            netns,
            backoff: backoff(),
            retry_at: None,
            created: false,
            running: None,
        };
        let state = self.0.entry(resource.clone()).or_insert_with(fresh);
        if state.netns != netns {
            *state = fresh();
        }
        state
    }

    /// Records what may be missing from what a sender mirrors.
    pub(super) fn set_degraded(&mut self, resource: &Resource, degraded: Option<String>) {
        if let Some(state) = self.0.get_mut(resource) {
            state.degraded = degraded;
        }
    }

    /// Records the programs of a sender.
    pub(super) fn set_running(&mut self, resource: &Resource, netns: NamespaceId, running: Option<Running>) {
        self.entry(resource, netns).running = running;
    }

    /// The senders with running programs, also those that are being removed.
    pub(super) fn running_mut(&mut self) -> impl Iterator<Item = (&Resource, &mut Option<Running>)> {
        let all = self.0.iter_mut().map(|(resource, state)| (resource, &mut state.running));
        all.filter(|(_, running)| running.is_some())
    }

    /// Records that it is complete.
    pub(super) fn active(&mut self, resource: &Resource, netns: NamespaceId, interface: &str, addresses: Vec<IpAddr>) {
        let state = self.entry(resource, netns);
        state.status = Status::ACTIVE;
        interface.clone_into(&mut state.interface);
        state.addresses = addresses;
        (state.backoff, state.retry_at, state.created) = (backoff(), None, false);
    }

    /// Records that it is refused until something changes in its namespace.
    pub(super) fn refused(&mut self, resource: &Resource, netns: NamespaceId, failure: &Failure) {
        let state = self.entry(resource, netns);
        state.status = failure.status();
        (state.backoff, state.retry_at, state.created) = (backoff(), None, false);
    }

    /// Records that a device was created for it.
    pub(super) fn created(&mut self, resource: &Resource, netns: NamespaceId) {
        self.entry(resource, netns).created = true;
    }

    /// Records that it failed and is retried later.
    pub(super) fn failed(&mut self, resource: &Resource, netns: NamespaceId, failure: &Failure, now: Instant) {
        let state = self.entry(resource, netns);
        state.status = failure.status();
        state.retry_at = Some(now + state.backoff.pause());
    }

    /// Whether it waits for its next attempt.
    pub(super) fn is_pausing(&self, resource: &Resource, now: Instant) -> bool {
        self.0.get(resource).and_then(|state| state.retry_at).is_some_and(|moment| moment > now)
    }

    /// Whether its devices come from failed attempts and are removed until the next attempt. A resource that was once complete, or that an
    /// earlier helper created, stays: half a mirror may be better than none.
    pub(super) fn is_rolled_back(&self, resource: &Resource, now: Instant) -> bool {
        self.is_pausing(resource, now) && self.0.get(resource).is_some_and(|state| state.created)
    }

    pub(super) fn retry_is_due(&self, netns: NamespaceId, now: Instant) -> bool {
        self.0.values().any(|state| state.netns == netns && state.retry_at.is_some_and(|moment| moment <= now))
    }

    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.0.values().filter_map(|state| state.retry_at).min()
    }
}

#[cfg(test)]
mod tests {
    use podtap_model::Direction;

    use super::*;
    use crate::{fixtures, resource::SenderKey};

    fn desired(direction: Direction, pods: &[&str]) -> DesiredState {
        let of = |pod: &&str| {
            [("a", Direction::Both), ("b", direction)]
                .map(|(name, direction)| fixtures::sender(Tap { direction, ..fixtures::tap(name) }, fixtures::pod(pod)))
        };
        DesiredState { senders: pods.iter().flat_map(of).collect(), ..DesiredState::default() }
    }

    #[test]
    fn only_what_differs_has_changed() {
        let sender = |tap: &str, pod: &str| Resource::Sender(SenderKey { tap: tap.to_owned(), pod: pod.to_owned() });
        let before = desired(Direction::Both, &["web", "db"]);
        assert_eq!(changed(&before, &desired(Direction::Both, &["db", "web"])), BTreeSet::new());
        let tap = changed(&before, &desired(Direction::Egress, &["web", "db"]));
        assert_eq!(tap, BTreeSet::from([sender("b", "db"), sender("b", "web")]));
        let mut described = before.clone();
        described.senders[0].details.node = Some("n1".into());
        assert_eq!(changed(&before, &described), BTreeSet::new());
        let pods = changed(&before, &desired(Direction::Both, &["web", "next"]));
        let expected = ["db", "next"].iter().flat_map(|pod| ["a", "b"].map(|tap| sender(tap, pod)));
        assert_eq!(pods, expected.collect());
    }
}
