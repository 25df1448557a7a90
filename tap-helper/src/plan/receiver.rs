use podtap_model::{FrameFormat, Reason, Receiver};

use super::{Planner, set_alias};
use crate::{
    bpf::ReceiveSettings,
    failure::Failure,
    marks::{Cookie, Mark, Part, ReceiverMark, is_ours},
    names::{SOURCE_PORTS, receiver_device, receiver_hash, receiver_veth_pair},
    netlink::{Filter, FilterTarget, Hook, Link, REDIRECT_PRIORITY, Vxlan},
    readers::is_read,
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
        let steps = self.receiver_steps(receiver);
        steps.into_iter().map(|step| Action { resource: resource.clone(), step }).collect()
    }

    /// A VXLAN device that redirects frames to the peer of the interface that consumers read, so that these see no probes.
    ///
    /// The interface gets its name last: a consumer that waits for it finds a complete receiver.
    fn receiver_steps(&mut self, receiver: &Receiver) -> Vec<Step> {
        let vxlan = self.vxlan_device(receiver).cloned();
        let pair = self.veth_pair(receiver).map(|pair| pair.map(Clone::clone));
        let mut steps = Vec::new();
        match &vxlan {
            None => steps.push(create_vxlan_device(receiver)),
            Some(vxlan) => {
                self.kept.devices.push(vxlan.index);
                steps.extend(self.remove_forwarding(vxlan.index));
                steps.extend(set_alias(vxlan, &alias(receiver, Part::Vxlan)));
                steps.extend(self.configure_link(vxlan));
            }
        }
        match &pair {
            None => steps.push(Step::CreatePair {
                names: receiver_veth_pair(receiver.vni.get()),
                aliases: [Part::Peer, Part::Interface].map(|part| alias(receiver, part)),
            }),
            Some([peer, interface]) => {
                let known = had_unreported_reader(peer);
                let aliases = [peer_alias(receiver, known), alias(receiver, Part::Interface)];
                for (device, alias) in [peer, interface].into_iter().zip(aliases) {
                    self.kept.devices.push(device.index);
                    steps.extend(set_alias(device, &alias));
                    steps.extend(self.configure_link(device));
                }
                let unreported = !is_raw(receiver) && (known || self.unreported.contains(&interface.index));
                if unreported && !known {
                    steps.push(Step::RecordUnreportedReader(peer.index, peer_alias(receiver, true)));
                }
                steps.extend(
                    self.offloads_that_are_on(interface.index).map(|on| Step::TurnOffloadsOff(interface.index, on)),
                );
                let is_read = unreported || is_read(interface, self.observed);
                steps.extend(if is_read || self.recently_read.contains(&interface.index) {
                    self.offloads_that_are_on(peer.index).map(|on| Step::StartSegmenting(peer.index, on))
                } else {
                    self.stop_segmenting(peer.index)
                });
            }
        }
        if let (Some(vxlan), Some([peer, interface])) = (vxlan, pair) {
            steps.extend(self.redirect(receiver, vxlan.index, peer.index));
            steps.extend([&vxlan, &peer].into_iter().filter(|link| !link.up).map(|link| Step::Up(link.index)));
            steps.extend(publish(&interface, &receiver.interface_name));
        }
        steps
    }

    fn offloads_that_are_on(&self, device: u32) -> Option<Vec<String>> {
        self.observed.offloads(device).map(|offloads| offloads.on.clone()).filter(|on| !on.is_empty())
    }

    /// Turns on what a peer sends with, unless some of it is on: not every kernel has to be able to turn on all.
    fn stop_segmenting(&self, peer: u32) -> Option<Step> {
        let offloads = self.observed.offloads(peer)?;
        let sends = |name: &&String| name.starts_with("tx-");
        let off: Vec<String> = offloads.off.iter().filter(sends).cloned().collect();
        (!off.is_empty() && !offloads.on.iter().any(|name| sends(&name))).then_some(Step::StopSegmenting(peer, off))
    }

    /// The steps that remove all forwarding entries of a receiver's device: nothing is to leave it.
    fn remove_forwarding(&self, device: u32) -> Vec<Step> {
        let destinations = self.observed.destinations(device).into_iter().map(|to| Step::RemoveDestination(device, to));
        self.undivert(device).chain(destinations).collect()
    }

    /// The receiver's VXLAN device, if one exists that need not be recreated. It may belong to another tap, whose alias is then replaced.
    fn vxlan_device(&self, receiver: &Receiver) -> Option<&Link> {
        let vxlan = vxlan_settings(receiver);
        let mut devices = self.devices(receiver, Part::Vxlan).filter(|(_, mark)| mark.ipv6 == receiver.ipv6);
        let name = receiver_device(receiver.vni.get());
        devices.find(|(link, _)| link.name == name && link.vxlan == Some(vxlan)).map(|(link, _)| link)
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
            Mark::Receiver(mark) => {
                let same = (mark.part, mark.vni, mark.raw) == (part, vni, is_raw(receiver));
                (same && self.reusable(link)).then_some((link, mark))
            }
            Mark::Sender(_) => None,
        })
    }

    /// Keeps the filter that redirects from the VXLAN device to the peer, replaces its program, or plans one.
    fn redirect(&mut self, receiver: &Receiver, from: u32, to: u32) -> Option<Step> {
        let cookie = Cookie { owner: receiver_hash(receiver.vni.get()), hook: Hook::Ingress, clsact_ours: false };
        let settings = ReceiveSettings {
            tap: receiver.tap.uid.to_string(),
            probe_ether_type: self.probe_ether_type,
            metadata: receiver.metadata,
        };
        let matches = |filter: &Filter| {
            let redirects = filter.mirror.as_ref().is_some_and(|mirror| mirror.redirects && mirror.to == to);
            redirects
                && Cookie::of(filter) == Some(cookie)
                && (filter.id.chain, filter.id.priority, &*filter.id.kind) == (0, REDIRECT_PRIORITY, "bpf")
        };
        let found = self.filters(from, Hook::Ingress).find(|(_, filter)| matches(filter));
        let mut handle = 0;
        if let Some((position, filter)) = found {
            self.kept.filters.push(position);
            if self.observed.receive_program(filter) == Some(settings.fingerprint()) {
                return None;
            }
            handle = filter.id.handle;
        }
        let target = FilterTarget { interface: from, hook: Hook::Ingress, priority: REDIRECT_PRIORITY, handle };
        Some(Step::AttachRedirect { target, to, settings, cookie })
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

fn is_raw(receiver: &Receiver) -> bool {
    receiver.frame_format == FrameFormat::Raw
}

/// Whether a reader of the receiver was found that the kernel does not report.
pub(super) fn had_unreported_reader(peer: &Link) -> bool {
    matches!(Mark::of(peer), Some(Mark::Receiver(mark)) if mark.unreported_reader)
}

fn alias(receiver: &Receiver, part: Part) -> String {
    Mark::Receiver(mark(receiver, part)).alias()
}

fn peer_alias(receiver: &Receiver, unreported_reader: bool) -> String {
    Mark::Receiver(ReceiverMark { unreported_reader, ..mark(receiver, Part::Peer) }).alias()
}

fn mark(receiver: &Receiver, part: Part) -> ReceiverMark {
    let (tap, vni) = (receiver.tap.uid.to_string(), receiver.vni.get());
    ReceiverMark { part, tap, vni, ipv6: receiver.ipv6, raw: is_raw(receiver), unreported_reader: false }
}

fn create_vxlan_device(receiver: &Receiver) -> Step {
    Step::CreateDevice {
        name: receiver_device(receiver.vni.get()),
        vxlan: vxlan_settings(receiver),
        ipv6: receiver.ipv6,
        alias: alias(receiver, Part::Vxlan),
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
