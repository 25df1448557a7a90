use podtap_model::{DesiredSender, Endpoint, Reason};

use super::{Planner, priority};
use crate::{
    failure::Failure,
    marks::{Cookie, Mark, SenderMark, config_hash},
    names::{SENDER_PORT, SENDER_VNIS, SOURCE_PORTS, sender_device, sender_hash},
    netlink::{Filter, FilterTarget, Hook, Link, QdiscKind, Vxlan},
    step::{Action, Resource, SenderKey, Step},
    target,
};

impl Planner<'_> {
    /// Plans one sender: keeps what is right of the observed state, and returns the steps for what is not there.
    pub(super) fn sender(&mut self, sender: &DesiredSender) -> Vec<Action> {
        let key = SenderKey::of(sender);
        let resource = Resource::Sender(key.clone());
        match self.tapped_interface(sender) {
            Ok(interface) => {
                self.plan.outcomes.insert(resource.clone(), Ok(interface.name.clone()));
                self.kept.interfaces.push(interface.index);
                self.sender_on(sender, &key, &resource, &interface)
            }
            Err(failure) => {
                self.plan.outcomes.insert(resource, Err(failure));
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
                    "An ingress qdisc of another program stands on {}, where PodTap needs clsact. Let that program use clsact, or remove it.",
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
        let destinations = wanted_destinations(sender);
        let ipv6 = destinations.first().is_some_and(|to| to.address.is_ipv6());
        let has_clsact = self.observed.qdisc(interface.index) == Some(QdiscKind::Clsact);
        let mark = SenderMark {
            tap: key.tap.clone(),
            pod: key.pod.clone(),
            interface: interface.name.clone(),
            interface_index: interface.index,
            ipv6,
            config: config_hash(sender.tap.direction, &destinations),
            // One that is missing will be made by us.
            clsact_ours: !has_clsact || self.observed.clsact_is_ours(interface.index),
        };
        let alias = Mark::Sender(mark.clone()).alias();
        let device = self.sender_device(key, ipv6).cloned();
        let Some(device) = device else {
            // What there is of filters leads nowhere; `cleanup` removes it, and the next round finds the device.
            let name = sender_device(key);
            actions.push(Action {
                resource: resource.clone(),
                step: Step::CreateDevice { name, vxlan: wanted_vxlan(), ipv6, alias },
            });
            return actions;
        };
        self.kept.devices.push(device.index);
        let mirrors = self.mirrors(sender, key, interface.index, device.index);
        let programming = match self.settings.get(key) {
            None => None,
            Some(settings) => match self.programming(settings, device.index, &mirrors) {
                Ok(programming) => Some(programming),
                Err(error) => {
                    let failure = Failure::refused(Reason::InvalidSpec, format!("The tap asks for too much: {error}."));
                    self.plan.outcomes.insert(resource.clone(), Err(failure));
                    return actions;
                }
            },
        };
        let mut push = |step| actions.push(Action { resource: resource.clone(), step });
        self.configure_link(&device, &alias).into_iter().for_each(&mut push);
        match &programming {
            Some(programming) => programming.steps.iter().cloned().for_each(&mut push),
            // Of a helper that could load programs.
            None => self.clamp(device.index).into_iter().for_each(|filter| push(Step::RemoveFilter(filter.id.clone()))),
        }

        let there: Vec<Endpoint> =
            self.observed.destinations.iter().filter(|(index, _)| *index == device.index).map(|(_, to)| *to).collect();
        // First the new ones, so that a change leaves no moment without any.
        for to in destinations.iter().filter(|to| !there.contains(to)) {
            push(Step::AddDestination(device.index, *to));
        }
        for to in there.iter().filter(|to| !destinations.contains(to)) {
            push(Step::RemoveDestination(device.index, *to));
        }
        if !device.up {
            push(Step::Up(device.index));
        }
        if !has_clsact {
            let alias_if_theirs = Mark::Sender(SenderMark { clsact_ours: false, ..mark.clone() }).alias();
            push(Step::AddClsact { interface: interface.index, device: device.index, alias_if_theirs });
        }
        for (hook, position) in mirrors {
            let cookie = Cookie { owner: sender_hash(key), hook, clsact_ours: mark.clsact_ours };
            let renewed = programming.as_ref().map(|programming| programming.renewed.contains(&hook));
            let step = self.mirror(resource, (interface.index, device.index), cookie, position, renewed);
            actions.extend(step.map(|step| Action { resource: resource.clone(), step }));
        }
        actions
    }

    /// The sender's device, if there is one that need not be made anew.
    fn sender_device(&self, key: &SenderKey, ipv6: bool) -> Option<&Link> {
        self.observed.links.iter().find(|link| {
            let Some(Mark::Sender(mark)) = Mark::of(link) else { return false };
            let same = mark.tap == key.tap && mark.pod == key.pod && mark.ipv6 == ipv6;
            same && self.reusable(link)
                && link.vxlan.is_some_and(|vxlan| {
                    SENDER_VNIS.contains(&vxlan.vni) && Vxlan { vni: 0, ..vxlan } == wanted_vxlan()
                })
        })
    }

    /// The wanted hooks of a sender, each with the position of the first right filter there.
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
        let wanted = hooks.into_iter().filter_map(|(hook, wanted)| wanted.then_some(hook));
        wanted
            .map(|hook| {
                let right = |filter: &Filter| {
                    let same =
                        Cookie::of(filter).is_some_and(|found| found.owner == sender_hash(key) && found.hook == hook);
                    let leads = filter.mirror.as_ref().is_some_and(|mirror| mirror.as_ours && mirror.to == device);
                    // Of this kind is every filter that a program can be put into, also in place of a classic one.
                    let kind = if programmed { filter.id.kind == "bpf" } else { filter.program.is_none() };
                    same && leads && kind && filter.id.chain == 0 && priority::is_in_range(filter.id.priority)
                };
                (hook, self.filters(interface, hook).find(|(_, filter)| right(filter)).map(|(position, _)| position))
            })
            .collect()
    }

    /// Keeps the right filter of a sender at a hook, or plans one. `renewed` is whether it gets another program; none if it has none.
    fn mirror(
        &mut self,
        resource: &Resource,
        (interface, device): (u32, u32),
        cookie: Cookie,
        position: Option<usize>,
        renewed: Option<bool>,
    ) -> Option<Step> {
        let hook = cookie.hook;
        if let Some(position) = position {
            self.kept.filters.push(position);
            let id = &self.observed.filters[position].id;
            let target = FilterTarget { interface, hook, priority: id.priority, handle: id.handle };
            return (renewed == Some(true)).then_some(Step::AttachMirror { target, device, cookie });
        }
        let taken = |priority: u16| {
            // A classifier without filters holds its priority, too.
            let observed = self
                .observed
                .filters
                .iter()
                .any(|filter| filter.id.interface == interface && filter.id.priority == priority);
            observed || self.kept.priorities.iter().any(|given| given.0 == interface && given.2 == priority)
        };
        let Some(priority) = priority::lowest_free(hook, taken) else {
            self.plan.outcomes.insert(resource.clone(), Err(priority::exhausted()));
            return None;
        };
        self.kept.priorities.push((interface, hook, priority));
        Some(match renewed {
            None => Step::AddFilter { interface, hook, priority, device, cookie },
            Some(_) => {
                Step::AttachMirror { target: FilterTarget { interface, hook, priority, handle: 0 }, device, cookie }
            }
        })
    }
}

/// What all sender devices have in common; each finds a VNI of its own.
fn wanted_vxlan() -> Vxlan {
    Vxlan { vni: 0, port: SENDER_PORT, source_ports: SOURCE_PORTS, learning: false }
}

fn wanted_destinations(sender: &DesiredSender) -> Vec<Endpoint> {
    let mut found = sender.tap.destinations.clone();
    found.sort_unstable();
    found.dedup();
    found
}
