use std::collections::BTreeSet;

use podtap_model::{DesiredSender, Endpoint, Reason};

use super::{Planner, priority, program::ProgramPlan, set_alias};
use crate::{
    bpf::Settings,
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
    pub(super) fn sender(&mut self, sender: &DesiredSender, settings: &Settings) -> Vec<Action> {
        let key = SenderKey::of(sender);
        let resource = Resource::Sender(key.clone());
        let steps = self.tapped_interface(sender).and_then(|interface| {
            self.plan.results.insert(resource.clone(), Ok(interface.name.clone()));
            self.sender_on(sender, settings, &key, &interface)
        });
        match steps {
            Ok(steps) => steps.into_iter().map(|step| Action { resource: resource.clone(), step }).collect(),
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
                    "Another program added an ingress qdisc to {}, where PodTap needs clsact. Make that program use clsact; if it is not in the pod, ask the cluster's administrator.",
                    interface.name,
                ),
            ));
        }
        Ok(interface.clone())
    }

    fn sender_on(
        &mut self,
        sender: &DesiredSender,
        settings: &Settings,
        key: &SenderKey,
        interface: &Link,
    ) -> Result<Vec<Step>, Failure> {
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
        let Some(device) = self.sender_device(key, ipv6).cloned() else {
            self.check_loadable(key)?;
            // The next round finds the device and plans the rest. `cleanup` removes filters of a previous device.
            return Ok(vec![Step::CreateDevice { name: sender_device(key), vxlan: vxlan_settings(), ipv6, alias }]);
        };
        let mirrors = self.mirrors(sender, key, interface.index, device.index);
        let programs = self.plan_programs(settings, device.index, &mirrors);
        if programs.as_ref().is_ok_and(ProgramPlan::loads) {
            self.check_loadable(key)?;
        }
        self.kept.devices.push(device.index);
        self.kept.interfaces.push(interface.index);
        let exceeds = |error| Failure::refused(Reason::InvalidSpec, format!("The tap exceeds a limit: {error}."));
        let programs = programs.map_err(exceeds)?;
        let closing = self.close(&device);
        let goes_down = closing.contains(&Step::Down(device.index));
        let resource = Resource::Sender(key.clone());
        let marking = closing.into_iter().chain(set_alias(&device, &alias));
        self.marking.extend(marking.map(|step| Action { resource: resource.clone(), step }));
        let mut steps = Vec::new();
        steps.extend(self.undivert(device.index));
        if self.observed.has_root_qdisc(device.index) {
            steps.push(Step::RemoveRootQdisc(device.index));
        }
        steps.extend(self.configure_link(&device));
        steps.extend(programs.steps);

        let removed = steps.contains(&Step::RemoveEntries(device.index, ZERO));
        let existing = if removed { Vec::new() } else { self.observed.destinations(device.index) };
        // The new ones are added first, so that the device is never without a destination.
        let added = destinations.iter().filter(|to| !existing.contains(to));
        steps.extend(added.map(|to| Step::AddDestination(device.index, *to)));
        let removed = existing.iter().filter(|to| !destinations.contains(to));
        steps.extend(removed.map(|to| Step::RemoveDestination(device.index, *to)));
        if !device.up || goes_down {
            steps.push(Step::Up(device.index));
        }
        if !has_clsact {
            let alias_if_theirs = Mark::Sender(SenderMark { clsact_ours: false, ..mark.clone() }).alias();
            steps.push(Step::AddClsact { interface: interface.index, device: device.index, alias_if_theirs });
        }
        for (hook, position) in mirrors {
            let cookie = Cookie { owner: sender_hash(key), hook, clsact_ours: mark.clsact_ours };
            let replaced = programs.replaced.contains(&hook);
            match self.mirror((interface.index, device.index), cookie, position, replaced) {
                Ok(step) => steps.extend(step),
                Err(failure) => {
                    self.plan.results.insert(Resource::Sender(key.clone()), Err(failure));
                }
            }
        }
        Ok(steps)
    }

    /// Why a sender that needs other programs has to be refused for now. Then everything that exists of it is kept as it is: what
    /// mirrors on mirrors what was once requested, while anything else could be more than that. Only a device without its clamp is set
    /// down.
    fn check_loadable(&mut self, key: &SenderKey) -> Result<(), Failure> {
        let Some(failure) = self.unloadable.get(key) else { return Ok(()) };
        for link in self.observed.ours() {
            if let Some(Mark::Sender(mark)) = Mark::of(link)
                && (&mark.tap, &mark.pod) == (&key.tap, &key.pod)
            {
                self.kept.devices.push(link.index);
                self.kept.interfaces.push(mark.interface_index);
                if self.is_open(link) {
                    let action = Action { resource: Resource::Sender(key.clone()), step: Step::Down(link.index) };
                    self.plan.actions.push(action);
                }
            }
        }
        for (position, filter) in self.observed.filters.iter().enumerate() {
            if Cookie::of(filter).is_some_and(|cookie| cookie.owner == sender_hash(key)) {
                self.kept.filters.push(position);
                self.kept.interfaces.push(filter.id.interface);
                // Also where it mirrors to, if the mark on that device is one of another version.
                self.kept.devices.extend(filter.mirror.as_ref().map(|mirror| mirror.to));
            }
        }
        Err(failure.clone())
    }

    /// The steps after which frames leave a device only through the clamp: without the clamp it is set down, and filters of others at
    /// its egress, which could precede the clamp, are removed.
    fn close(&self, device: &Link) -> Vec<Step> {
        let clamp = self.clamp(device.index);
        let others = self.filters(device.index, Hook::Egress).map(|(_, filter)| &filter.id);
        let others: BTreeSet<FilterId> = others
            .filter(|id| clamp.is_none_or(|clamp| clamp.id != **id))
            .map(|id| match clamp {
                Some(clamp) if clamp.id.same_classifier(id) => id.clone(),
                _ => id.classifier(),
            })
            .collect();
        let removals = others.into_iter().map(Step::RemoveFilter);
        self.is_open(device).then_some(Step::Down(device.index)).into_iter().chain(removals).collect()
    }

    /// Whether frames can leave a device without passing a clamp.
    fn is_open(&self, device: &Link) -> bool {
        // An eBPF program is ours: a pod cannot load one. It may be one of another version, which checks as well.
        device.up && self.clamp(device.index).is_none_or(|filter| filter.program.is_none())
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
        let hooks =
            [(Hook::Ingress, sender.tap.direction.has_ingress()), (Hook::Egress, sender.tap.direction.has_egress())];
        let requested = hooks.into_iter().filter_map(|(hook, requested)| requested.then_some(hook));
        requested
            .map(|hook| {
                let matches = |filter: &Filter| {
                    let same =
                        Cookie::of(filter).is_some_and(|found| found.owner == sender_hash(key) && found.hook == hook);
                    let mirrors = filter.mirror.as_ref().is_some_and(|mirror| mirror.as_ours && mirror.to == device);
                    // A filter of this kind can get another program.
                    let kind = filter.id.kind == "bpf";
                    same && mirrors && kind && filter.id.chain == 0 && priority::is_in_range(filter.id.priority)
                };
                (hook, self.filters(interface, hook).find(|(_, filter)| matches(filter)).map(|(position, _)| position))
            })
            .collect()
    }

    /// Keeps a sender's filter at a hook, or plans one. `replaced` is whether the program of an existing one is replaced.
    fn mirror(
        &mut self,
        (interface, device): (u32, u32),
        cookie: Cookie,
        position: Option<usize>,
        replaced: bool,
    ) -> Result<Option<Step>, Failure> {
        let hook = cookie.hook;
        if let Some(position) = position {
            self.kept.filters.push(position);
            let id = &self.observed.filters[position].id;
            let target = FilterTarget { interface, hook, priority: id.priority, handle: id.handle };
            return Ok(replaced.then_some(Step::AttachMirror { target, device, cookie }));
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
        let priority = priority::lowest_free(hook, taken).ok_or_else(priority::exhausted)?;
        self.kept.priorities.push((interface, hook, priority));
        let target = FilterTarget { interface, hook, priority, handle: 0 };
        Ok(Some(Step::AttachMirror { target, device, cookie }))
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
