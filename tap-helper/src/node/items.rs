use std::{collections::BTreeMap, time::Instant};

use tap_wire::{Desired, Reason, Receiver, Sender, State, Status};

use crate::{
    backoff::Backoff,
    failure::Failure,
    namespace::NamespaceId,
    step::{Item, SenderKey},
};

/// What became of an item.
#[derive(Clone, Debug)]
pub(super) struct ItemState {
    pub(super) status: Status,
    pub(super) interface: String,
    pub(super) space: NamespaceId,
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// A device was made for it since it was last complete.
    created: bool,
}

/// What is wanted of one item.
#[derive(PartialEq)]
enum Wish<'a> {
    Sender(&'a Sender),
    Receiver(&'a Receiver),
}

fn wishes(desired: &Desired) -> BTreeMap<Item, Wish<'_>> {
    let senders = desired.senders.iter().map(|sender| (Item::Sender(SenderKey::of(sender)), Wish::Sender(sender)));
    let receivers = desired
        .receivers
        .iter()
        .map(|receiver| (Item::Receiver(receiver.tap.clone(), receiver.vni), Wish::Receiver(receiver)));
    senders.chain(receivers).collect()
}

/// What became of each item that has a namespace.
#[derive(Debug, Default)]
pub(super) struct Items(BTreeMap<Item, ItemState>);

impl Items {
    pub(super) fn get(&self, item: &Item) -> Option<&ItemState> {
        self.0.get(item)
    }

    /// Forgets the failures of what is wanted differently now. What is not wanted any more is being removed until a look at its
    /// namespace has shown that it is gone.
    pub(super) fn forget_changed(&mut self, previous: Option<&Desired>, desired: &Desired) {
        let before = previous.map(wishes).unwrap_or_default();
        let now = wishes(desired);
        self.0.retain(|item, state| match (now.get(item), before.get(item)) {
            (None, _) => {
                state.status = Status { state: State::Removing, reason: Reason::NotWanted, message: String::new() };
                (state.backoff, state.retry_at, state.created) = (Backoff::default(), None, false);
                *item != Item::Leftover
            }
            (wish, previous) => wish == previous,
        });
    }

    /// Those that are being removed.
    pub(super) fn removing(&self) -> impl Iterator<Item = (&crate::step::Item, &Status)> {
        self.0.iter().map(|(item, state)| (item, &state.status)).filter(|(_, status)| status.state == State::Removing)
    }

    pub(super) fn forget_space(&mut self, space: NamespaceId) {
        self.0.retain(|_, state| state.space != space);
    }

    /// Those of a namespace.
    pub(super) fn of(&self, space: NamespaceId) -> impl Iterator<Item = &crate::step::Item> {
        self.0.iter().filter(move |(_, state)| state.space == space).map(|(item, _)| item)
    }

    /// Forgets the items of a namespace that are not wanted, less those that are still being removed.
    pub(super) fn forget_removed(&mut self, space: NamespaceId, stays: impl Fn(&Item) -> bool) {
        self.0.retain(|item, state| state.space != space || stays(item));
    }

    fn entry(&mut self, item: &Item, space: NamespaceId) -> &mut ItemState {
        let fresh = || ItemState {
            status: Status { state: State::Waiting, reason: Reason::Established, message: String::new() },
            interface: String::new(),
            space,
            backoff: Backoff::default(),
            retry_at: None,
            created: false,
        };
        let state = self.0.entry(item.clone()).or_insert_with(fresh);
        if state.space != space {
            *state = fresh();
        }
        state
    }

    /// Everything of it is in place.
    pub(super) fn active(&mut self, item: &Item, space: NamespaceId, interface: &str) {
        let state = self.entry(item, space);
        state.status = Status { state: State::Active, reason: Reason::Established, message: String::new() };
        interface.clone_into(&mut state.interface);
        (state.backoff, state.retry_at, state.created) = (Backoff::default(), None, false);
    }

    /// It is not attempted, until something changes in its namespace.
    pub(super) fn refused(&mut self, item: &Item, space: NamespaceId, failure: &Failure) {
        let state = self.entry(item, space);
        state.status = failure.status();
        (state.backoff, state.retry_at, state.created) = (Backoff::default(), None, false);
    }

    /// A device was made for it.
    pub(super) fn created(&mut self, item: &Item, space: NamespaceId) {
        self.entry(item, space).created = true;
    }

    /// It failed, and is tried again later.
    pub(super) fn failed(&mut self, item: &Item, space: NamespaceId, failure: &Failure, now: Instant) {
        let state = self.entry(item, space);
        state.status = failure.status();
        state.retry_at = Some(state.backoff.failed(now));
    }

    /// Whether it waits for its next attempt.
    pub(super) fn is_pausing(&self, item: &Item, now: Instant) -> bool {
        self.0.get(item).and_then(|state| state.retry_at).is_some_and(|moment| moment > now)
    }

    /// Whether what there is of it was made by attempts that failed, and is to be removed again until the next one. What was once
    /// complete, or was found, stays as it is: half a mirror may be worth more than none.
    pub(super) fn is_rolled_back(&self, item: &Item, now: Instant) -> bool {
        self.is_pausing(item, now) && self.0.get(item).is_some_and(|state| state.created)
    }

    pub(super) fn retry_is_due(&self, space: NamespaceId, now: Instant) -> bool {
        self.0.values().any(|state| state.space == space && state.retry_at.is_some_and(|moment| moment <= now))
    }

    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.0.values().filter_map(|state| state.retry_at).min()
    }
}
