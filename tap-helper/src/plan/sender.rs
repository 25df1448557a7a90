use std::collections::BTreeSet;

use podtap_model::{DesiredSender, Endpoint, Reason};

use super::{Planner, priority};
use crate::{
    failure::Failure,
    marks::{Cookie, Mark, SenderMark, config_hash},
    names::{SENDER_PORT, SENDER_VNIS, SOURCE_PORTS, sender_device, sender_hash},
    netlink::{Filter, FilterId, FilterTarget, Hook, Link, QdiscKind, Vxlan, ZERO},
    resource::{Resource, SenderKey},
    step::{Action, Step},
    target,
};

impl Planner<'_> {
    /// Plans one sender: keeps the existing resources that match it, and returns the steps for the missing ones.
    pub(super) fn sender(&mut self, sender: &DesiredSender) -> Vec<Action> {
        let key = SenderKey::of(sender);
        let resource = Resource::Sender(key.clone());
        match self.tapped_interface(sender) {
            Ok(interface) => {
                self.plan.results.insert(resource.clone(), Ok(interface.name.clone()));
                self.kept.interfaces.push(interface.index);
                self.sender_on(sender, &key, &resource, &interface)
            }
            Err(failure) => {
                self.plan.results.insert(resource, Err(failure));
                Vec::new()
            }
        }
    }

    fn tapped_interface(&self, sender: &DesiredSender) -> Result<Link, Failure> {
        let interface = target::interface(self.observed, &sender.pod, sender.tap.interface.as_deref())?;
        if self.observed.qdisc(interface.index) == Some(QdiscKind::Ingress) {
            return Err(Failure::refused(
                Reason::IngressQdiscConflict,
                format!(
                    "Another program added an ingress qdisc to {}, where PodTap needs clsact. Let that program use clsact, or remove it.",
                    interface.name,
                ),
            ));
        }
        Ok(interface.clone())
    }

    fn sender_on(
        &mut self,
        sender: &DesiredSender,
        key: &SenderKey,
        resource: &Resource,
        interface: &Link,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let destinations = requested_destinations(sender);
        let ipv6 = destinations.first().is_some_and(|to| to.address.is_ipv6());
        let has_clsact = self.observed.qdisc(interface.index) == Some(QdiscKind::Clsact);
        let mark = SenderMark {
            tap: key.tap.clone(),
            pod: key.pod.clone(),
            interface: interface.name.clone(),
            interface_index: interface.index,
            ipv6,
            config: config_hash(sender.tap.direction, &destinations),
            // If it is missing, PodTap will create it.
            clsact_ours: !has_clsact || self.observed.clsact_is_ours(interface.index),
        };
        let alias = Mark::Sender(mark.clone()).alias();
        let device = self.sender_device(key, ipv6).cloned();
        let Some(device) = device else {
            // The next round finds the device and plans the rest. `cleanup` removes filters of a previous device.
            let name = sender_device(key);
            actions.push(Action {
                resource: resource.clone(),
                step: Step::CreateDevice { name, vxlan: vxlan_settings(), ipv6, alias },
            });
            return actions;
        };
        self.kept.devices.push(device.index);
        let mirrors = self.mirrors(sender, key, interface.index, device.index);
        let programs = match self.settings.get(key) {
            None => None,
            Some(settings) => match self.plan_programs(settings, device.index, &mirrors) {
                Ok(programs) => Some(programs),
                Err(error) => {
                    let failure = Failure::refused(Reason::InvalidSpec, format!("The tap exceeds a limit: {error}."));
                    self.plan.results.insert(resource.clone(), Err(failure));
                    return actions;
                }
            },
        };
        let mut push = |step| actions.push(Action { resource: resource.clone(), step });
        let mut closed = if programs.is_some() { self.close(&device) } else { Vec::new() };
        closed.extend(self.undivert(device.index));
        closed.iter().cloned().for_each(&mut push);
        self.configure_link(&device, &alias).into_iter().for_each(&mut push);
        match &programs {
            Some(programs) => programs.steps.iter().cloned().for_each(&mut push),
            // Left by a helper that could load programs.
            None => self.clamp(device.index).into_iter().for_each(|filter| push(Step::RemoveFilter(filter.id.clone()))),
        }

        let removed = closed.contains(&Step::RemoveEntries(device.index, ZERO));
        let existing = if removed { Vec::new() } else { self.observed.destinations(device.index) };
        // The new ones are added first, so that the device is never without a destination.
        for to in destinations.iter().filter(|to| !existing.contains(to)) {
            push(Step::AddDestination(device.index, *to));
        }
        for to in existing.iter().filter(|to| !destinations.contains(to)) {
            push(Step::RemoveDestination(device.index, *to));
        }
        if !device.up || closed.contains(&Step::Down(device.index)) {
            push(Step::Up(device.index));
        }
        if !has_clsact {
            let alias_if_theirs = Mark::Sender(SenderMark { clsact_ours: false, ..mark.clone() }).alias();
            push(Step::AddClsact { interface: interface.index, device: device.index, alias_if_theirs });
        }
        for (hook, position) in mirrors {
            let cookie = Cookie { owner: sender_hash(key), hook, clsact_ours: mark.clsact_ours };
            let replaced = programs.as_ref().map(|programs| programs.replaced.contains(&hook));
            let step = self.mirror(resource, (interface.index, device.index), cookie, position, replaced);
            actions.extend(step.map(|step| Action { resource: resource.clone(), step }));
        }
        actions
    }

    /// The steps after which frames leave a device only through the clamp: without the clamp it is set down, and filters of others at
    /// its egress, which could precede the clamp, are removed.
    fn close(&self, device: &Link) -> Vec<Step> {
        let clamp = self.clamp(device.index);
        // An eBPF program is ours: a pod cannot load one. It may be one of another version, which checks as well.
        let open = device.up && clamp.is_none_or(|filter| filter.program.is_none());
        let others = self.filters(device.index, Hook::Egress).map(|(_, filter)| &filter.id);
        let others: BTreeSet<FilterId> = others
            .filter(|id| clamp.is_none_or(|clamp| clamp.id != **id))
            .map(|id| match clamp {
                Some(clamp) if clamp.id.same_classifier(id) => id.clone(),
                _ => id.classifier(),
            })
            .collect();
        let removals = others.into_iter().map(Step::RemoveFilter);
        open.then_some(Step::Down(device.index)).into_iter().chain(removals).collect()
    }

    /// The sender's device, if one exists that need not be recreated.
    fn sender_device(&self, key: &SenderKey, ipv6: bool) -> Option<&Link> {
        self.observed.links.iter().find(|link| {
            let Some(Mark::Sender(mark)) = Mark::of(link) else { return false };
            let same = mark.tap == key.tap && mark.pod == key.pod && mark.ipv6 == ipv6;
            same && self.reusable(link)
                && link.vxlan.is_some_and(|vxlan| {
                    SENDER_VNIS.contains(&vxlan.vni) && Vxlan { vni: 0, ..vxlan } == vxlan_settings()
                })
        })
    }

    /// The requested hooks of a sender, each with the position of the first matching filter.
    fn mirrors(
        &self,
        sender: &DesiredSender,
        key: &SenderKey,
        interface: u32,
        device: u32,
    ) -> Vec<(Hook, Option<usize>)> {
        let programmed = self.settings.contains_key(key);
        let hooks =
            [(Hook::Ingress, sender.tap.direction.has_ingress()), (Hook::Egress, sender.tap.direction.has_egress())];
        let requested = hooks.into_iter().filter_map(|(hook, requested)| requested.then_some(hook));
        requested
            .map(|hook| {
                let matches = |filter: &Filter| {
                    let same =
                        Cookie::of(filter).is_some_and(|found| found.owner == sender_hash(key) && found.hook == hook);
                    let mirrors = filter.mirror.as_ref().is_some_and(|mirror| mirror.as_ours && mirror.to == device);
                    // A filter of this kind can get a program, even if it has a classic one.
                    let kind = if programmed { filter.id.kind == "bpf" } else { filter.program.is_none() };
                    same && mirrors && kind && filter.id.chain == 0 && priority::is_in_range(filter.id.priority)
                };
                (hook, self.filters(interface, hook).find(|(_, filter)| matches(filter)).map(|(position, _)| position))
            })
            .collect()
    }

    /// Keeps a sender's filter at a hook, or plans one. `replaced` is whether its program is replaced; none if it has no program.
    fn mirror(
        &mut self,
        resource: &Resource,
        (interface, device): (u32, u32),
        cookie: Cookie,
        position: Option<usize>,
        replaced: Option<bool>,
    ) -> Option<Step> {
        let hook = cookie.hook;
        if let Some(position) = position {
            self.kept.filters.push(position);
            let id = &self.observed.filters[position].id;
            let target = FilterTarget { interface, hook, priority: id.priority, handle: id.handle };
            return (replaced == Some(true)).then_some(Step::AttachMirror { target, device, cookie });
        }
        let taken = |priority: u16| {
            // A classifier without filters takes a priority, too.
            let observed = self
                .observed
                .filters
                .iter()
                .any(|filter| filter.id.interface == interface && filter.id.priority == priority);
            observed || self.kept.priorities.iter().any(|assigned| assigned.0 == interface && assigned.2 == priority)
        };
        let Some(priority) = priority::lowest_free(hook, taken) else {
            self.plan.results.insert(resource.clone(), Err(priority::exhausted()));
            return None;
        };
        self.kept.priorities.push((interface, hook, priority));
        Some(match replaced {
            None => Step::AddFilter { interface, hook, priority, device, cookie },
            Some(_) => {
                Step::AttachMirror { target: FilterTarget { interface, hook, priority, handle: 0 }, device, cookie }
            }
        })
    }
}

/// The settings that all sender devices share. Each has a VNI of its own.
fn vxlan_settings() -> Vxlan {
    // One address, the zero address of the destinations: the kernel refuses entries for others.
    Vxlan { vni: 0, port: SENDER_PORT, source_ports: SOURCE_PORTS, learning: false, addresses: 1 }
}

fn requested_destinations(sender: &DesiredSender) -> Vec<Endpoint> {
    let mut found = sender.tap.destinations.clone();
    found.sort_unstable();
    found.dedup();
    found
}
