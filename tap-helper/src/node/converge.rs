use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use podtap_model::{DesiredSender, Receiver, State, Vni};
use tracing::{debug, info, warn};

use super::{
    Node, names::owners, netns::Netns, pods::PodNetns, probes::ProbeSource, readers::Readers,
    received_probes::receive_programs, resources::Running, sources::receivers,
};
use crate::{
    ahead,
    bpf::Settings,
    execute::Executor,
    failure::{Failure, Status},
    logs::Repeated,
    marks::{Mark, is_ours},
    names::sender_hash,
    namespace::NamespaceId,
    observe::{NetnsKind, Observed},
    plan::{Plan, Requested, plan},
    resource::{Resource, SenderKey},
    settings::settings,
    step::{Action, Step},
    target,
};

/// Observations that suffice for any change: one round creates devices, one completes them, one finds nothing to do; a
/// failure adds the round that removes what it left.
const ROUNDS: u32 = 8;

/// How long namespaces are reconciled before something else is done, such as finding a pod that has just started.
const TURN: Duration = Duration::from_millis(20);

impl Node {
    /// Reconciles the namespaces that are due, for the length of a turn at least: new ones first, then those that have waited longest. The
    /// others remain due. What was executed in new ones is observed in a later turn: in a burst of pods, none waits until another one has
    /// been verified.
    pub(super) async fn converge_due(&mut self, now: Instant) {
        let start = Instant::now();
        for (id, is_new) in self.due(now) {
            self.converge(id, now).await;
            if !is_new {
                self.last_in_turn = Some(id);
            }
            if start.elapsed() >= TURN {
                break;
            }
        }
    }

    /// The namespaces that are due, and whether they are new, in the order in which they are reconciled.
    fn due(&self, now: Instant) -> Vec<(NamespaceId, bool)> {
        let is_due = |(id, netns): &(&NamespaceId, &Netns)| netns.is_due(now) || self.resources.retry_is_due(**id, now);
        let due = self.netns.iter().filter(is_due).map(|(id, netns)| (*id, netns.is_new)).collect();
        in_turn(due, self.last_in_turn)
    }

    /// Whether no namespace is due.
    #[must_use]
    pub fn is_settled(&self, now: Instant) -> bool {
        self.due(now).is_empty()
    }

    /// Observes a namespace, plans, executes, and repeats that until nothing is left to do: what is reported as active was observed. The
    /// first time, returns when everything was executed, and the namespace remains due.
    pub(super) async fn converge(&mut self, id: NamespaceId, now: Instant) {
        let mut failures: BTreeMap<Resource, u32> = BTreeMap::new();
        let mut restored = false;
        let with_routes = self.pods.in_netns(id).any(|pod| pod.addresses.is_empty());
        for _ in 0..ROUNDS {
            let Some(netns) = self.netns.get_mut(&id) else { return };
            netns.dirty = false;
            let observed = match netns.observe(with_routes).await {
                Ok(observed) => observed,
                Err(error) => {
                    // One that cannot be read does not come before the others again.
                    netns.is_new = false;
                    return self.unobservable(id, &Failure::kernel(&error), now);
                }
            };
            netns.readers.observed(&observed, now);
            let plan = plan(&self.requested(id, now), &observed);
            let proceeds = |resource: &Resource| {
                failures.get(resource).is_none_or(|count| *count < 2) && !self.is_held(resource, &plan, now)
            };
            let actions: Vec<Action> =
                plan.actions.iter().filter(|action| proceeds(&action.resource)).cloned().collect();
            if actions.is_empty() {
                if let Some(netns) = self.netns.get_mut(&id) {
                    netns.restored = restored;
                }
                return self.settle(id, &plan, &observed, now);
            }
            self.take_over_probes(id, &observed);
            restored |= actions.iter().any(|action| self.restores(action));
            for resource in self.execute(id, &actions, now).await {
                *failures.entry(resource).or_default() += 1;
            }
            // The next round completes a device that was created.
            let creates = |action: &Action| matches!(action.step, Step::CreateDevice { .. } | Step::CreatePair { .. });
            if let Some(netns) = self.netns.get_mut(&id).filter(|netns| netns.is_new)
                && !actions.iter().any(creates)
            {
                (netns.is_new, netns.dirty) = (false, true);
                return;
            }
        }
        self.unobservable(id, &Failure::contested(), now);
    }

    /// Keeps what the receivers' programs have recorded, one of which may be about to be replaced.
    fn take_over_probes(&mut self, id: NamespaceId, observed: &Observed) {
        if let Some(netns) = self.netns.get_mut(&id) {
            netns.receive_programs = receive_programs(observed);
            self.received_probes.take_over(&netns.receive_programs);
        }
    }

    /// Whether an action restores what was in place. Other settings, and readers, are no reason to suspect another program.
    fn restores(&self, action: &Action) -> bool {
        let was_active = self.resources.get(&action.resource).is_some_and(|state| state.status == Status::ACTIVE);
        let is_no_repair = matches!(
            action.step,
            Step::Configure { .. }
                | Step::StartSegmenting(..)
                | Step::StopSegmenting(..)
                | Step::RecordUnreportedReader(..)
        );
        was_active && !is_no_repair
    }

    /// Whether the steps of a resource have to wait because it failed recently. Steps that remove its remains do not wait.
    fn is_held(&self, resource: &Resource, plan: &Plan, now: Instant) -> bool {
        let accepted = plan.results.get(resource).is_some_and(Result::is_ok);
        (accepted && self.resources.is_pausing(resource, now)) || self.leftover_is_pausing(resource, now)
    }

    fn leftover_is_pausing(&self, resource: &Resource, now: Instant) -> bool {
        !self.is_requested(resource) && self.resources.is_pausing(resource, now)
    }

    fn is_requested(&self, resource: &Resource) -> bool {
        let Some(desired) = &self.desired else { return false };
        match resource {
            Resource::Sender(key) => desired.senders.iter().any(|sender| SenderKey::of(sender) == *key),
            Resource::Receiver(tap, vni) => {
                desired.receivers.iter().any(|receiver| *receiver.tap.uid == **tap && receiver.vni.get() == *vni)
            }
            Resource::Leftover => false,
        }
    }

    /// The desired state of a namespace.
    fn requested(&self, id: NamespaceId, now: Instant) -> Requested<'_> {
        let Some(desired) = &self.desired else { return Requested::default() };
        let attempted = |resource: Resource| {
            !self.invalid.contains_key(&resource) && !self.resources.is_rolled_back(&resource, now)
        };
        let sender = |sender: &&DesiredSender| {
            self.pods.netns_of(&sender.pod.uid) == PodNetns::Own(id) && attempted(Resource::sender(sender))
        };
        let receiver = |receiver: &&Receiver| {
            let here = match &receiver.pod {
                Some(pod) => self.pods.netns_of(&pod.uid) == PodNetns::Own(id),
                None => id == self.namespace.id(),
            };
            here && attempted(Resource::receiver(receiver)) && self.sources.failure(receiver).is_none()
        };
        let with_settings = |sender| (sender, settings(sender, self.paths.of(sender), self.frag_list_safe));
        let senders: Vec<(&DesiredSender, Settings)> =
            desired.senders.iter().filter(sender).map(with_settings).collect();
        let failure = |(sender, settings): &(&DesiredSender, Settings)| {
            let key = SenderKey::of(sender);
            self.program_sets.failure(&key, settings).cloned().map(|failure| (key, failure))
        };
        let readers = self.netns.get(&id).map(|netns| &netns.readers);
        Requested {
            recently_read: readers.map(|readers| readers.recent(now)).unwrap_or_default(),
            unreported: readers.map(Readers::unreported).unwrap_or_default(),
            unloadable: senders.iter().filter_map(failure).collect(),
            senders,
            receivers: desired.receivers.iter().filter(receiver).collect(),
            probe_ether_type: desired.probe_ether_type,
        }
    }

    /// Executes all actions, except further ones of resources that failed. Returns these resources.
    async fn execute(&mut self, id: NamespaceId, actions: &[Action], now: Instant) -> BTreeSet<Resource> {
        let Some(netns) = self.netns.get(&id) else { return BTreeSet::new() };
        let senders = self.desired.iter().flat_map(|desired| &desired.senders);
        let deadlines = senders.map(|sender| (Resource::sender(sender), self.renewals.deadline(sender))).collect();
        let mut executor = Executor {
            namespace: &*netns.namespace,
            netlink: &netns.netlink,
            node: &self.netlink,
            clsacts: Vec::new(),
            program_sets: &mut self.program_sets,
            slots: BTreeMap::new(),
            deadlines,
        };
        let owners = owners(self.desired.as_ref(), actions);
        let mut failed: BTreeSet<Resource> = BTreeSet::new();
        for action in actions {
            if failed.contains(&action.resource) {
                continue;
            }
            let result = executor.run(action).await;
            // The preloaded set, or room in one.
            self.preload_is_due |= matches!(action.step, Step::LoadPrograms { .. });
            if matches!(action.step, Step::CreateDevice { .. } | Step::CreatePair { .. }) {
                // A failed step may have created a device, too.
                self.resources.created(&action.resource, id);
            }
            if let Err(failure) = result {
                warn!(step = %action.step, of = owners[&action.resource], error = failure.message, "step failed");
                failed.insert(action.resource.clone());
                self.resources.failed(&action.resource, id, &failure, now);
            }
        }
        for (resource, slot) in std::mem::take(&mut executor.slots) {
            // Before the next observation: its deadline may have to be moved.
            let programs = self.program_sets.programs(&slot).and_then(|programs| programs.ids().ok());
            if let Some([classifier, ..]) = programs.filter(|_| !failed.contains(&resource)) {
                self.resources.set_running(&resource, id, Some(Running::new(classifier, &slot)));
            }
        }
        for action in actions.iter().filter(|action| !failed.contains(&action.resource)) {
            info!(step = %action.step, of = owners[&action.resource], "done");
            debug!(step = ?action.step, "details");
        }
        failed
    }

    /// Records the result of an observation after which no step is left to execute now.
    fn settle(&mut self, id: NamespaceId, plan: &Plan, observed: &Observed, now: Instant) {
        for (resource, result) in &plan.results {
            match result {
                Ok(_) if self.resources.is_pausing(resource, now) => {}
                Ok(interface) => {
                    let addresses = self.addresses(resource, interface, observed);
                    self.resources.active(resource, id, interface, addresses);
                }
                Err(failure) => self.resources.refused(resource, id, failure),
            }
            if let Resource::Sender(key) = resource {
                self.resources.set_degraded(resource, ahead::hidden(observed, sender_hash(key)));
            }
            if let Resource::Sender(key) = resource {
                let running = observed.classifier(sender_hash(key)).map(Running::from);
                self.resources.set_running(resource, id, running);
            }
        }
        let actions = plan.actions.iter().map(|action| action.resource.clone());
        let stuck: BTreeSet<Resource> = actions.filter(|resource| !self.is_requested(resource)).collect();
        let planned: BTreeSet<Resource> = plan.results.keys().cloned().collect();
        let exists =
            |resource: &Resource| self.is_requested(resource) || planned.contains(resource) || stuck.contains(resource);
        let stays: BTreeSet<Resource> = self.resources.of(id).filter(|resource| exists(resource)).cloned().collect();
        self.resources.forget_removed(id, |resource| stays.contains(resource));
        let leftovers = stuck.into_iter().map(|resource| {
            let why = self.resources.get(&resource).map(|state| state.status.message.clone()).unwrap_or_default();
            (resource, Status { message: why, ..Status::REMOVING })
        });
        let leftovers = leftovers.collect();
        let is_empty = !observed.has_ours() && !self.pods.any_in(id) && !self.has_node_receiver(id);
        let Some(netns) = self.netns.get_mut(&id) else { return };
        netns.is_new = false;
        netns.unobservable = Repeated::default();
        netns.leftovers = leftovers;
        netns.receivers = receivers(observed);
        netns.sent_vnis = sent_vnis(observed);
        netns.receive_programs = receive_programs(observed);
        netns.probe_sources = ProbeSource::all(observed);
        self.probes.outdated = true;
        netns.watched = observed.ours().filter(|link| is_ours(link)).map(|link| link.index).collect();
        netns.names = match (netns.kind, &self.desired) {
            (NetnsKind::Node, Some(desired)) => {
                desired.receivers.iter().map(|receiver| receiver.interface_name.to_string()).collect()
            }
            _ => BTreeSet::new(),
        };
        if is_empty {
            self.netns.remove(&id);
            self.resources.forget_netns(id);
        }
    }

    /// What a report says about the addresses of a sender's interface: peers need it.
    fn addresses(&self, resource: &Resource, interface: &str, observed: &Observed) -> Vec<IpAddr> {
        let Resource::Sender(key) = resource else { return Vec::new() };
        let mut senders = self.desired.iter().flat_map(|desired| &desired.senders);
        let sender = senders.find(|sender| SenderKey::of(sender) == *key);
        let sender = sender.filter(|sender| sender.tap.options.deduplicate.is_some());
        sender.map_or_else(Vec::new, |sender| target::addresses(observed, &sender.pod, interface))
    }

    fn has_node_receiver(&self, id: NamespaceId) -> bool {
        let receivers = self.desired.iter().flat_map(|desired| &desired.receivers);
        id == self.namespace.id() && receivers.into_iter().any(|receiver| receiver.pod.is_none())
    }

    /// Records that the state of a namespace is unknown.
    fn unobservable(&mut self, id: NamespaceId, failure: &Failure, now: Instant) {
        let requested = self.requested(id, now);
        let senders = requested.senders.iter().map(|(sender, _)| Resource::sender(sender));
        let receivers = requested.receivers.iter().map(|receiver| Resource::receiver(receiver));
        let mut resources: Vec<Resource> = senders.chain(receivers).collect();
        if resources.is_empty() {
            resources.push(Resource::Leftover);
        }
        for resource in resources {
            match failure.state {
                // Until something changes in it.
                State::Refused => self.resources.refused(&resource, id, failure),
                _ => self.resources.failed(&resource, id, failure, now),
            }
        }
        if let Some(times) = self.netns.get_mut(&id).and_then(|netns| netns.unobservable.failed(now)) {
            warn!(place = self.netns_name(id), error = failure.message, times, "cannot read the state");
        }
    }
}

/// New ones first, then those after the last one of the previous turn. So each has its turn, also while others are always due again.
fn in_turn<T: Copy + Ord>(mut due: Vec<(T, bool)>, last: Option<T>) -> Vec<(T, bool)> {
    due.sort_unstable_by_key(|(id, is_new)| (!is_new, last.is_some_and(|last| *id <= last), *id));
    due
}

/// The VNIs of the destinations of each tap's senders.
fn sent_vnis(observed: &Observed) -> BTreeMap<String, BTreeSet<Vni>> {
    let mut found: BTreeMap<String, BTreeSet<Vni>> = BTreeMap::new();
    for device in observed.ours() {
        if let Some(Mark::Sender(mark)) = Mark::of(device) {
            let vnis = observed.destinations(device.index).into_iter().map(|destination| destination.vni);
            found.entry(mark.tap).or_default().extend(vnis);
        }
    }
    found.retain(|_, vnis| !vnis.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_namespace_has_its_turn() {
        // Turns in which there is time for one: ten of them are always due.
        let (mut last, mut new, mut served) = (None, vec![25, 12], Vec::new());
        for _ in 0..24 {
            let due = (0..10).chain([20]).chain(new.iter().copied()).map(|id| (id, new.contains(&id)));
            let (id, is_new) = in_turn(due.collect(), last)[0];
            served.push(id);
            if is_new {
                new.retain(|other| *other != id);
            } else {
                last = Some(id);
            }
        }
        let expected: Vec<u32> = [12, 25].into_iter().chain((0..10).chain([20]).cycle().take(22)).collect();
        assert_eq!(served, expected);
    }
}
