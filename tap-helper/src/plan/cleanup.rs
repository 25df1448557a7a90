use super::Planner;
use crate::{
    marks::{Cookie, Mark, is_ours},
    names::{receiver_hash, sender_hash},
    step::{Action, Resource, SenderKey, Step},
};

impl Planner<'_> {
    /// Plans the removal of everything of ours that has no place: filters, then clsacts, then devices. The devices last,
    /// since they say whose the clsacts are.
    pub(super) fn cleanup(&mut self) {
        let mut removed = Vec::new();
        for (position, filter) in self.observed.filters.iter().enumerate() {
            let Some(cookie) = Cookie::of(filter) else { continue };
            let interface = filter.id.interface;
            let goes_anyway =
                !self.kept.devices.contains(&interface) && self.observed.link(interface).is_some_and(is_ours);
            if filter.id.handle != 0 && !self.kept.filters.contains(&position) && !goes_anyway {
                removed.push(position);
                self.push(self.owner(cookie), Step::RemoveFilter(filter.id.clone()));
            }
        }
        self.clsacts(&removed);
        for link in self.observed.ours() {
            if !self.kept.devices.contains(&link.index) {
                self.push(owner_of(Mark::of(link).as_ref()), Step::DeleteDevice(link.index));
            }
        }
    }

    /// Removes each clsact of ours on interfaces that are not tapped any more and have no other filter in it.
    fn clsacts(&mut self, removed: &[usize]) {
        for qdisc in &self.observed.qdiscs {
            let interface = qdisc.interface;
            let ours = self.observed.clsact_is_ours(interface);
            let in_use = self.kept.interfaces.contains(&interface);
            let others = self.observed.filters.iter().enumerate().any(|(position, filter)| {
                filter.id.interface == interface && filter.id.handle != 0 && !removed.contains(&position)
            });
            if ours && !in_use && !others {
                self.push(self.clsact_owner(interface), Step::RemoveClsact(interface));
            }
        }
    }

    fn push(&mut self, resource: Resource, step: Step) {
        self.plan.actions.push(Action { resource, step });
    }

    /// What a filter belongs to, if its device still says which one that is, or it is wanted.
    fn owner(&self, cookie: Cookie) -> Resource {
        let wanted = self.plan.outcomes.keys().cloned();
        let observed = self.observed.links.iter().map(|link| owner_of(Mark::of(link).as_ref()));
        wanted
            .chain(observed)
            .find(|resource| match resource {
                Resource::Sender(key) => sender_hash(key) == cookie.owner,
                Resource::Receiver(_, vni) => receiver_hash(*vni) == cookie.owner,
                Resource::Leftover => false,
            })
            .unwrap_or(Resource::Leftover)
    }

    fn clsact_owner(&self, interface: u32) -> Resource {
        let mut marks = self.observed.links.iter().filter_map(Mark::of);
        let mark = marks.find(|mark| matches!(mark, Mark::Sender(mark) if mark.interface_index == interface));
        owner_of(mark.as_ref())
    }
}

fn owner_of(mark: Option<&Mark>) -> Resource {
    match mark {
        Some(Mark::Sender(mark)) => Resource::Sender(SenderKey { tap: mark.tap.clone(), pod: mark.pod.clone() }),
        Some(Mark::Receiver(mark)) => Resource::Receiver(mark.tap.clone(), mark.vni),
        None => Resource::Leftover,
    }
}
