use podtap_model::{FrameFormat, Reason, Receiver};

use super::Planner;
use crate::{
    failure::Failure,
    marks::{Cookie, Mark, Part, ReceiverMark, is_ours},
    names::{SOURCE_PORTS, receiver_device, receiver_hash, receiver_veth_pair},
    netlink::{Filter, Hook, Link, REDIRECT_PRIORITY, Vxlan},
    resource::Resource,
    step::{Action, Step},
};

impl Planner<'_> {
    /// Plans one receiver: keeps the existing resources that match it, and returns the steps for the missing ones.
    pub(super) fn receiver(&mut self, receiver: &Receiver) -> Vec<Action> {
        let resource = Resource::receiver(receiver);
        if let Err(failure) = self.name_is_free(receiver) {
            self.plan.results.insert(resource, Err(failure));
            return Vec::new();
        }
        self.plan.results.insert(resource.clone(), Ok(receiver.interface_name.to_string()));
        self.kept.names.push(receiver.interface_name.to_string());
        let steps = if receiver.frame_format == FrameFormat::Raw {
            self.raw_receiver(receiver)
        } else {
            self.receiver_with_veth_pair(receiver)
        };
        steps.into_iter().map(|step| Action { resource: resource.clone(), step }).collect()
    }

    /// A VXLAN device that consumers read themselves.
    fn raw_receiver(&mut self, receiver: &Receiver) -> Vec<Step> {
        let Some(device) = self.vxlan_device(receiver, Part::Interface).cloned() else {
            return vec![create_vxlan_device(receiver, Part::Interface)];
        };
        self.kept.devices.push(device.index);
        let mut steps = self.remove_forwarding(device.index);
        steps.extend(self.configure_link(&device, &alias(receiver, Part::Interface)));
        steps.extend(publish(&device, &receiver.interface_name));
        steps
    }

    /// A VXLAN device that redirects frames to the peer of the interface that consumers read.
    ///
    /// The interface gets its name last: a consumer that waits for it finds a complete receiver.
    fn receiver_with_veth_pair(&mut self, receiver: &Receiver) -> Vec<Step> {
        let vxlan = self.vxlan_device(receiver, Part::Vxlan).cloned();
        let pair = self.veth_pair(receiver).map(|pair| pair.map(Clone::clone));
        let mut steps = Vec::new();
        match &vxlan {
            None => steps.push(create_vxlan_device(receiver, Part::Vxlan)),
            Some(vxlan) => {
                self.kept.devices.push(vxlan.index);
                steps.extend(self.remove_forwarding(vxlan.index));
                steps.extend(self.configure_link(vxlan, &alias(receiver, Part::Vxlan)));
            }
        }
        match &pair {
            None => steps.push(Step::CreatePair {
                names: receiver_veth_pair(receiver.vni.get()),
                aliases: [Part::Peer, Part::Interface].map(|part| alias(receiver, part)),
            }),
            Some(devices) => {
                for (device, part) in devices.iter().zip([Part::Peer, Part::Interface]) {
                    self.kept.devices.push(device.index);
                    steps.extend(self.configure_link(device, &alias(receiver, part)));
                    let offloads = self.observed.offloads(device.index);
                    if !offloads.is_empty() {
                        steps.push(Step::TurnOff(device.index, offloads.to_vec()));
                    }
                }
            }
        }
        if let (Some(vxlan), Some([peer, interface])) = (vxlan, pair) {
            steps.extend(self.redirect(receiver, vxlan.index, peer.index));
            steps.extend([&vxlan, &peer].into_iter().filter(|link| !link.up).map(|link| Step::Up(link.index)));
            steps.extend(publish(&interface, &receiver.interface_name));
        }
        steps
    }

    /// The steps that remove all forwarding entries of a receiver's device: nothing is to leave it.
    fn remove_forwarding(&self, device: u32) -> Vec<Step> {
        let destinations = self.observed.destinations(device).into_iter().map(|to| Step::RemoveDestination(device, to));
        self.undivert(device).chain(destinations).collect()
    }

    /// The receiver's VXLAN device, if one exists that need not be recreated. It may belong to another tap, whose alias is then replaced.
    fn vxlan_device(&self, receiver: &Receiver, part: Part) -> Option<&Link> {
        let vxlan = vxlan_settings(receiver);
        // Earlier versions dropped before any other filter, which would hide frames from the redirect.
        let drops_first = |(_, filter): (usize, &Filter)| filter.drops_all && filter.id.priority <= REDIRECT_PRIORITY;
        let mut devices = self.devices(receiver, part).filter(|(_, mark)| mark.ipv6 == receiver.ipv6);
        let found = devices.find(|(link, _)| {
            let name = match part {
                Part::Interface => may_have_name(link, receiver, &receiver_device(receiver.vni.get())),
                _ => link.name == receiver_device(receiver.vni.get()),
            };
            let can_redirect = part == Part::Interface || !self.filters(link.index, Hook::Ingress).any(drops_first);
            name && can_redirect && link.vxlan == Some(vxlan)
        });
        found.map(|(link, _)| link)
    }

    /// The receiver's veth pair, peer and interface, if it need not be recreated.
    fn veth_pair(&self, receiver: &Receiver) -> Option<[&Link; 2]> {
        let [peer_name, interface_name] = receiver_veth_pair(receiver.vni.get());
        let (peer, _) = self.devices(receiver, Part::Peer).find(|(link, _)| link.name == peer_name)?;
        let (interface, _) = self.devices(receiver, Part::Interface).find(|(link, _)| link.peer == Some(peer.index))?;
        (peer.peer == Some(interface.index) && may_have_name(interface, receiver, &interface_name))
            .then_some([peer, interface])
    }

    /// The reusable devices of a receiver whose alias has the role of a part.
    fn devices(&self, receiver: &Receiver, part: Part) -> impl Iterator<Item = (&Link, ReceiverMark)> {
        let vni = receiver.vni.get();
        self.observed.links.iter().filter_map(move |link| match Mark::of(link)? {
            Mark::Receiver(mark) if (mark.part, mark.vni) == (part, vni) && self.reusable(link) => Some((link, mark)),
            _ => None,
        })
    }

    /// Keeps the filter that redirects from the VXLAN device to the peer, or plans one.
    fn redirect(&mut self, receiver: &Receiver, from: u32, to: u32) -> Option<Step> {
        let cookie = Cookie { owner: receiver_hash(receiver.vni.get()), hook: Hook::Ingress, clsact_ours: false };
        let matches = |filter: &Filter| {
            let redirects = filter.mirror.as_ref().is_some_and(|mirror| mirror.redirects && mirror.to == to);
            redirects
                && Cookie::of(filter) == Some(cookie)
                && (filter.id.chain, filter.id.priority) == (0, REDIRECT_PRIORITY)
        };
        let found = self.filters(from, Hook::Ingress).find(|(_, filter)| matches(filter));
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
            format!("Another interface is already named {name}. Choose another interfaceName."),
        ))
    }
}

fn vxlan_settings(receiver: &Receiver) -> Vxlan {
    Vxlan { vni: receiver.vni.get(), port: receiver.port, source_ports: SOURCE_PORTS, learning: false, addresses: 1 }
}

fn alias(receiver: &Receiver, part: Part) -> String {
    let mark = ReceiverMark { part, tap: receiver.tap.uid.to_string(), vni: receiver.vni.get(), ipv6: receiver.ipv6 };
    Mark::Receiver(mark).alias()
}

fn create_vxlan_device(receiver: &Receiver, part: Part) -> Step {
    Step::CreateDevice {
        name: receiver_device(receiver.vni.get()),
        vxlan: vxlan_settings(receiver),
        ipv6: receiver.ipv6,
        alias: alias(receiver, part),
    }
}

/// Whether a device has the requested name, or can still get it: not every kernel renames a device that is up.
fn may_have_name(link: &Link, receiver: &Receiver, temporary: &str) -> bool {
    link.name == *receiver.interface_name || !link.up && link.name == temporary
}

/// Steps that give an interface its name and then set it up.
fn publish(link: &Link, name: &str) -> impl Iterator<Item = Step> {
    let rename = (link.name != name).then(|| Step::Rename(link.index, name.to_owned()));
    rename.into_iter().chain((!link.up).then_some(Step::Up(link.index)))
}
