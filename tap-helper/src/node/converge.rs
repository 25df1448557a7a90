use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use tap_wire::{Reason, Receiver, Sender, State, Status};

use super::{Node, pods::Place};
use crate::{
    execute::Executor,
    failure::Failure,
    marks::is_ours,
    namespace::NamespaceId,
    observe::{Observed, Scope},
    plan::{Plan, Wanted, plan},
    settings::settings,
    step::{Action, Item, SenderKey, Step},
};

/// Looks at a namespace that are enough for anything: one round makes devices, one completes them, one finds nothing to do; a
/// failure adds the round that removes what it left.
const ROUNDS: u32 = 8;

impl Node {
    /// Observes a namespace, plans, executes, and again until nothing is left to do: what is reported as active was seen so.
    pub(super) fn converge(&mut self, id: NamespaceId, now: Instant) {
        let mut failures: BTreeMap<Item, u32> = BTreeMap::new();
        for _ in 0..ROUNDS {
            let Some(space) = self.spaces.get_mut(&id) else { return };
            space.dirty = false;
            let observed = match space.observe() {
                Ok(observed) => observed,
                Err(error) => return self.unobservable(id, &Failure::kernel(&error), now),
            };
            let plan = plan(&self.wanted(id, now), &observed);
            let goes_on =
                |item: &Item| failures.get(item).is_none_or(|count| *count < 2) && !self.is_held(item, &plan, now);
            let actions: Vec<Action> = plan.actions.iter().filter(|action| goes_on(&action.item)).cloned().collect();
            if actions.is_empty() {
                return self.settle(id, &plan, &observed, now);
            }
            for item in self.execute(id, &actions, now) {
                *failures.entry(item).or_default() += 1;
            }
        }
        let failure = Failure::failed(
            Reason::Kernel,
            "What is put in place here is changed again at once: another program manages the same interface. Find out which, and make it leave PodTap's filters alone.".to_owned(),
        );
        self.unobservable(id, &failure, now);
    }

    /// Whether the steps of an item have to wait: it failed a moment ago. Those that remove what it left do not wait.
    fn is_held(&self, item: &Item, plan: &Plan, now: Instant) -> bool {
        let wanted = plan.outcomes.get(item).is_some_and(Result::is_ok);
        (wanted && self.items.is_pausing(item, now)) || self.leftover_is_pausing(item, now)
    }

    fn leftover_is_pausing(&self, item: &Item, now: Instant) -> bool {
        !self.is_wanted(item) && self.items.is_pausing(item, now)
    }

    fn is_wanted(&self, item: &Item) -> bool {
        let Some(desired) = &self.desired else { return false };
        match item {
            Item::Sender(key) => desired.senders.iter().any(|sender| SenderKey::of(sender) == *key),
            Item::Receiver(tap, vni) => {
                desired.receivers.iter().any(|receiver| receiver.tap == *tap && receiver.vni == *vni)
            }
            Item::Leftover => false,
        }
    }

    /// What a namespace is to hold now.
    fn wanted(&self, id: NamespaceId, now: Instant) -> Wanted<'_> {
        let Some(desired) = &self.desired else { return Wanted::default() };
        let attempted = |item: Item| !self.invalid.contains_key(&item) && !self.items.is_rolled_back(&item, now);
        let sender = |sender: &&Sender| {
            self.pods.place_of(&sender.pod.uid) == Place::In(id) && attempted(Item::Sender(SenderKey::of(sender)))
        };
        let receiver = |receiver: &&Receiver| {
            let here = match &receiver.pod {
                Some(pod) => self.pods.place_of(&pod.uid) == Place::In(id),
                None => id == self.own.id(),
            };
            here && attempted(Item::Receiver(receiver.tap.clone(), receiver.vni))
        };
        let senders: Vec<&Sender> = desired.senders.iter().filter(sender).collect();
        let told = |sender: &&Sender| {
            let settings = settings(sender, self.paths.mtu(sender), &self.features);
            (SenderKey::of(sender), settings)
        };
        let settings = match self.features.usable() {
            Ok(()) => senders.iter().map(told).collect(),
            Err(_) => BTreeMap::new(),
        };
        Wanted { senders, receivers: desired.receivers.iter().filter(receiver).collect(), settings }
    }

    /// Does what it can; the items of which something failed.
    fn execute(&mut self, id: NamespaceId, actions: &[Action], now: Instant) -> BTreeSet<Item> {
        let Some(space) = self.spaces.get_mut(&id) else { return BTreeSet::new() };
        let mut executor = Executor {
            namespace: &space.namespace,
            socket: &mut space.socket,
            node: &mut self.own_socket,
            clsacts: Vec::new(),
            programs: BTreeMap::new(),
            spare: &mut self.spare,
        };
        let mut failed: BTreeSet<Item> = BTreeSet::new();
        for action in actions {
            if failed.contains(&action.item) {
                continue;
            }
            let result = executor.run(action);
            if matches!(action.step, Step::CreateDevice { .. } | Step::CreatePair { .. }) {
                // Also if it failed: it may have made a part.
                self.items.created(&action.item, id);
            }
            if let Err(failure) = result {
                self.log.warn("step failed", &[("step", &format!("{:?}", action.step)), ("error", &failure.message)]);
                failed.insert(action.item.clone());
                self.items.failed(&action.item, id, &failure, now);
            }
        }
        for action in actions.iter().filter(|action| !failed.contains(&action.item)) {
            self.log.info("done", &[("step", &format!("{:?}", action.step))]);
        }
        failed
    }

    /// Takes down what a look found that has nothing to be done any more, at least now.
    fn settle(&mut self, id: NamespaceId, plan: &Plan, observed: &Observed, now: Instant) {
        for (item, outcome) in &plan.outcomes {
            match outcome {
                Ok(_) if self.items.is_pausing(item, now) => {}
                Ok(interface) => self.items.active(item, id, interface),
                Err(failure) => self.items.refused(item, id, failure),
            }
        }
        let stuck: BTreeSet<Item> =
            plan.actions.iter().map(|action| action.item.clone()).filter(|item| !self.is_wanted(item)).collect();
        let wanted: BTreeSet<Item> = plan.outcomes.keys().cloned().collect();
        let pausing = |item: &Item| self.is_wanted(item) || wanted.contains(item) || stuck.contains(item);
        let stays: BTreeSet<Item> = self.items.of(id).filter(|item| pausing(item)).cloned().collect();
        self.items.forget_removed(id, |item| stays.contains(item));
        let leftovers = stuck.into_iter().map(|item| {
            let why = self.items.get(&item).map(|state| state.status.message.clone()).unwrap_or_default();
            (item, Status { state: State::Removing, reason: Reason::NotWanted, message: why })
        });
        let leftovers = leftovers.collect();
        let is_empty = !observed.has_ours() && !self.pods.any_in(id) && !self.own_is_wanted(id);
        let Some(space) = self.spaces.get_mut(&id) else { return };
        space.leftovers = leftovers;
        space.watched = observed.ours().filter(|link| is_ours(link)).map(|link| link.index).collect();
        space.names = match (space.scope, &self.desired) {
            (Scope::Node, Some(desired)) => {
                desired.receivers.iter().map(|receiver| receiver.interface_name.clone()).collect()
            }
            _ => BTreeSet::new(),
        };
        if is_empty {
            self.spaces.remove(&id);
            self.items.forget_space(id);
        }
    }

    fn own_is_wanted(&self, id: NamespaceId) -> bool {
        let receivers = self.desired.iter().flat_map(|desired| &desired.receivers);
        id == self.own.id() && receivers.into_iter().any(|receiver| receiver.pod.is_none())
    }

    /// Nothing can be said of anything in a namespace.
    fn unobservable(&mut self, id: NamespaceId, failure: &Failure, now: Instant) {
        let wanted = self.wanted(id, now);
        let senders = wanted.senders.iter().map(|sender| Item::Sender(SenderKey::of(sender)));
        let receivers = wanted.receivers.iter().map(|receiver| Item::Receiver(receiver.tap.clone(), receiver.vni));
        let mut items: Vec<Item> = senders.chain(receivers).collect();
        if items.is_empty() {
            items.push(Item::Leftover);
        }
        for item in items {
            self.items.failed(&item, id, failure, now);
        }
        self.log.warn("namespace failed", &[("namespace", &id.inode().to_string()), ("error", &failure.message)]);
    }
}
