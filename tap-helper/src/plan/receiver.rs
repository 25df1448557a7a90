use podtap_model::{FrameFormat, Reason, Receiver};

use super::Planner;
use crate::{
    failure::Failure,
    marks::{Cookie, Mark, Part, ReceiverMark, is_ours},
    names::{SOURCE_PORTS, receiver_device, receiver_hash, receiver_pair},
    netlink::{Filter, Hook, Link, REDIRECT_PRIORITY, Vxlan},
    step::{Action, Resource, Step},
};

impl Planner<'_> {
    /// Plans one receiver: keeps what is right of the observed state, and returns the steps for what is not there.
    pub(super) fn receiver(&mut self, receiver: &Receiver) -> Vec<Action> {
        let resource = Resource::receiver(receiver);
        if let Err(failure) = self.name_is_free(receiver) {
            self.plan.outcomes.insert(resource, Err(failure));
            return Vec::new();
        }
        self.plan.outcomes.insert(resource.clone(), Ok(receiver.interface_name.to_string()));
        self.kept.names.push(receiver.interface_name.to_string());
        let steps = if receiver.frame_format == FrameFormat::Raw {
            self.raw_receiver(receiver)
        } else {
            self.receiver_with_pair(receiver)
        };
        steps.into_iter().map(|step| Action { resource: resource.clone(), step }).collect()
    }

    /// A VXLAN device that consumers read themselves.
    fn raw_receiver(&mut self, receiver: &Receiver) -> Vec<Step> {
        let Some(device) = self.receiver_tunnel(receiver, Part::Interface).cloned() else {
            return vec![create_tunnel(receiver, Part::Interface)];
        };
        self.kept.devices.push(device.index);
        let mut steps = self.configure_link(&device, &alias(receiver, Part::Interface));
        steps.extend(publish(&device, &receiver.interface_name));
        steps
    }

    /// A VXLAN device from which frames go to the near end of a pair, whose far end consumers read.
    ///
    /// The named interface comes last: whoever waits for it finds all of it.
    fn receiver_with_pair(&mut self, receiver: &Receiver) -> Vec<Step> {
        let tunnel = self.receiver_tunnel(receiver, Part::Tunnel).cloned();
        let pair = self.receiver_pair(receiver).map(|pair| pair.map(Clone::clone));
        let mut steps = Vec::new();
        match &tunnel {
            None => steps.push(create_tunnel(receiver, Part::Tunnel)),
            Some(tunnel) => {
                self.kept.devices.push(tunnel.index);
                steps.extend(self.configure_link(tunnel, &alias(receiver, Part::Tunnel)));
            }
        }
        match &pair {
            None => steps.push(Step::CreatePair {
                names: receiver_pair(receiver.vni.get()),
                aliases: [Part::Near, Part::Interface].map(|part| alias(receiver, part)),
            }),
            Some(ends) => {
                for (end, part) in ends.iter().zip([Part::Near, Part::Interface]) {
                    self.kept.devices.push(end.index);
                    steps.extend(self.configure_link(end, &alias(receiver, part)));
                    let offloads = self.observed.offloads(end.index);
                    if !offloads.is_empty() {
                        steps.push(Step::TurnOff(end.index, offloads.to_vec()));
                    }
                }
            }
        }
        if let (Some(tunnel), Some([near, far])) = (tunnel, pair) {
            steps.extend(self.redirect(receiver, tunnel.index, near.index));
            steps.extend([&tunnel, &near].into_iter().filter(|link| !link.up).map(|link| Step::Up(link.index)));
            steps.extend(publish(&far, &receiver.interface_name));
        }
        steps
    }

    /// The receiver's VXLAN device, if there is one that need not be made anew. The tap may be another one: then it changes hands.
    fn receiver_tunnel(&self, receiver: &Receiver, part: Part) -> Option<&Link> {
        let vxlan = wanted_vxlan(receiver);
        // As earlier versions did, which would hide frames from the redirect.
        let drops_first = |(_, filter): (usize, &Filter)| filter.drops_all && filter.id.priority <= REDIRECT_PRIORITY;
        let mut devices = self.devices(receiver, part).filter(|(_, mark)| mark.ipv6 == receiver.ipv6);
        let found = devices.find(|(link, _)| {
            let name = match part {
                Part::Interface => may_have_name(link, receiver, &receiver_device(receiver.vni.get())),
                _ => link.name == receiver_device(receiver.vni.get()),
            };
            let open = part == Part::Interface || !self.filters(link.index, Hook::Ingress).any(drops_first);
            name && open && link.vxlan == Some(vxlan)
        });
        found.map(|(link, _)| link)
    }

    /// The ends of the receiver's pair, if it need not be made anew.
    fn receiver_pair(&self, receiver: &Receiver) -> Option<[&Link; 2]> {
        let [near_name, far_name] = receiver_pair(receiver.vni.get());
        let (near, _) = self.devices(receiver, Part::Near).find(|(link, _)| link.name == near_name)?;
        let (far, _) = self.devices(receiver, Part::Interface).find(|(link, _)| link.peer == Some(near.index))?;
        (near.peer == Some(far.index) && may_have_name(far, receiver, &far_name)).then_some([near, far])
    }

    /// The devices of a receiver that say to be a part of it.
    fn devices(&self, receiver: &Receiver, part: Part) -> impl Iterator<Item = (&Link, ReceiverMark)> {
        let vni = receiver.vni.get();
        self.observed.links.iter().filter_map(move |link| match Mark::of(link)? {
            Mark::Receiver(mark) if (mark.part, mark.vni) == (part, vni) && self.reusable(link) => Some((link, mark)),
            _ => None,
        })
    }

    /// Keeps the right filter that leads from the VXLAN device to the pair, or plans one.
    fn redirect(&mut self, receiver: &Receiver, from: u32, to: u32) -> Option<Step> {
        let cookie = Cookie { owner: receiver_hash(receiver.vni.get()), hook: Hook::Ingress, clsact_ours: false };
        let right = |filter: &Filter| {
            let leads = filter.mirror.as_ref().is_some_and(|mirror| mirror.redirects && mirror.to == to);
            leads
                && Cookie::of(filter) == Some(cookie)
                && (filter.id.chain, filter.id.priority) == (0, REDIRECT_PRIORITY)
        };
        let found = self.filters(from, Hook::Ingress).find(|(_, filter)| right(filter));
        match found {
            Some((position, _)) => {
                self.kept.filters.push(position);
                None
            }
            None => Some(Step::AddRedirect { from, to, cookie }),
        }
    }

    fn name_is_free(&self, receiver: &Receiver) -> Result<(), Failure> {
        let name = &receiver.interface_name;
        let holder = self.observed.links.iter().find(|link| link.name == **name);
        let foreign = holder.is_some_and(|link| !is_ours(link));
        if !foreign && !self.kept.names.iter().any(|kept| *kept == **name) {
            return Ok(());
        }
        Err(Failure::refused(
            Reason::InterfaceNameConflict,
            format!(
                "There is an interface {name} already that belongs to something else. Choose another interfaceName."
            ),
        ))
    }
}

fn wanted_vxlan(receiver: &Receiver) -> Vxlan {
    Vxlan { vni: receiver.vni.get(), port: receiver.port, source_ports: SOURCE_PORTS, learning: false }
}

fn alias(receiver: &Receiver, part: Part) -> String {
    let mark = ReceiverMark { part, tap: receiver.tap.uid.to_string(), vni: receiver.vni.get(), ipv6: receiver.ipv6 };
    Mark::Receiver(mark).alias()
}

fn create_tunnel(receiver: &Receiver, part: Part) -> Step {
    Step::CreateDevice {
        name: receiver_device(receiver.vni.get()),
        vxlan: wanted_vxlan(receiver),
        ipv6: receiver.ipv6,
        alias: alias(receiver, part),
    }
}

/// Whether a device has the wanted name, or may still get it: one that is up may not be renamed by every kernel.
fn may_have_name(link: &Link, receiver: &Receiver, before: &str) -> bool {
    link.name == *receiver.interface_name || !link.up && link.name == before
}

/// Gives an interface its name, and then sets it up.
fn publish(link: &Link, name: &str) -> impl Iterator<Item = Step> {
    let rename = (link.name != name).then(|| Step::Rename(link.index, name.to_owned()));
    rename.into_iter().chain((!link.up).then_some(Step::Up(link.index)))
}
