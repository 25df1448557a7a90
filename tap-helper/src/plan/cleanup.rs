use std::mem;

use super::Planner;
use crate::{
    marks::{Cookie, Mark, is_ours},
    names::{receiver_hash, sender_hash},
    resource::{Resource, SenderKey},
    step::{Action, Step},
};

impl Planner<'_> {
    /// Plans the removal of everything of ours that is not kept: filters, then clsacts, then devices. The devices come last because
    /// their aliases record which clsacts are ours. Those that stay record it before the others are deleted, and no earlier: until then,
    /// an alias may be the only record about another interface. So the helper may end between any two steps.
    pub(super) fn cleanup(&mut self) {
        let mut removed = Vec::new();
        for (position, filter) in self.observed.filters.iter().enumerate() {
            let Some(cookie) = Cookie::of(filter) else { continue };
            let interface = filter.id.interface;
            let on_deleted_device =
                !self.kept.devices.contains(&interface) && self.observed.link(interface).is_some_and(is_ours);
            if filter.id.handle != 0 && !self.kept.filters.contains(&position) && !on_deleted_device {
                removed.push(position);
                self.push(self.owner(cookie), Step::RemoveFilter(filter.id.clone()));
            }
        }
        self.clsacts(&removed);
        let marking = mem::take(&mut self.marking);
        self.plan.actions.extend(marking);
        for link in self.observed.ours() {
            if !self.kept.devices.contains(&link.index) {
                self.push(owner_of(Mark::of(link).as_ref()), Step::DeleteDevice(link.index));
            }
        }
    }

    /// Plans the removal of each clsact of ours whose interface is no longer tapped, unless it has filters of others. A sender without a
    /// device does not keep it, but will add one again: if the helper ended before that device exists, nothing would tell that the clsact
    /// is ours.
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

    /// The resource that a filter belongs to, if it is requested or has a device.
    fn owner(&self, cookie: Cookie) -> Resource {
        let requested = self.plan.results.keys().cloned();
        let observed = self.observed.links.iter().map(|link| owner_of(Mark::of(link).as_ref()));
        requested
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
