//! Does one step of a plan.

use std::{collections::BTreeMap, os::fd::AsFd};

use nix::errno::Errno;
use tap_wire::Reason;

use crate::{
    bpf::{BpfError, Maps, Programs, Settings},
    failure::{Failure, sentence},
    marks::{Cookie, GROUP},
    names::{DEVICE_MTU, sender_vnis},
    netlink::{
        Hook, NetlinkError, NewPair, NewVxlan, RouteSocket, Slot, Vxlan, add_clsact, add_destination, add_drop_filter,
        add_mirror_filter, add_redirect_filter, create_pair, create_vxlan, delete_link, filters, links, offloads,
        put_mirror_program, put_verdict_program, qdiscs, remove_clsact, remove_destination, remove_filter, rename_link,
        set_alias, silence_link, turn_off, up_link,
    },
    step::{Action, Item, Step},
};

/// `LOOPBACK_IFINDEX` (include/net/flow.h): the number of that device in every namespace.
const LOOPBACK: u32 = 1;
const ETHTOOL: &str =
    "ethtool's netlink family (Linux 5.8, CONFIG_ETHTOOL_NETLINK), which every receiver needs that is not raw";
const CLS_BPF: &str = "the BPF classifier (CONFIG_NET_CLS_BPF)";
const MIRRED: &str = "the mirred action (CONFIG_NET_ACT_MIRRED) or the BPF classifier (CONFIG_NET_CLS_BPF)";

/// Where steps are done.
pub struct Executor<'a, N> {
    /// The namespace of the devices.
    pub namespace: &'a N,
    /// A socket in it.
    pub socket: &'a mut RouteSocket,
    /// A socket in the node's own: the tunnels' UDP sockets belong there.
    pub node: &'a mut RouteSocket,
    /// Interfaces that got their clsact from this executor.
    pub clsacts: Vec<u32>,
    /// Programs that were loaded by this executor and may not be in filters yet.
    pub programs: BTreeMap<Item, Programs>,
    /// Programs that nobody has yet: loading takes the verifier a tenth of a second, in which a pod may say its first word.
    pub spare: &'a mut Option<Programs>,
}

impl<N: AsFd> Executor<'_, N> {
    /// Does it. That something to be removed is not there is no failure.
    pub fn run(&mut self, action: &Action) -> Result<(), Failure> {
        match &action.step {
            Step::CreateDevice { name, vxlan, ipv6, alias } => self.create(
                &action.item,
                &NewVxlan { name, vxlan: *vxlan, ipv6: *ipv6, mtu: DEVICE_MTU, group: GROUP },
                alias,
            ),
            Step::CreatePair { names, aliases } => self.create_pair(names, aliases),
            Step::TurnOff(device, names) => self.turn_off(*device, names),
            Step::SetAlias(device, alias) => done(set_alias(self.socket, *device, alias)),
            Step::Silence(device) => done(silence_link(self.socket, *device, DEVICE_MTU)),
            Step::AddDeviceClsact(device) => done(add_clsact(self.socket, *device)),
            Step::AddDrop(device) => self.add_drop(*device),
            Step::AddRedirect { from, to, cookie } => {
                add_redirect_filter(self.socket, *from, *to, &cookie.bytes()).map_err(|error| feature(&error, MIRRED))
            }
            Step::AddDestination(device, to) => done(add_destination(self.socket, *device, *to)),
            Step::RemoveDestination(device, to) => removed(remove_destination(self.socket, *device, *to)),
            Step::Rename(device, name) => self.rename(*device, name),
            Step::Up(device) => self.up(*device),
            Step::AddClsact { interface, device, alias_if_theirs } => {
                self.add_clsact(*interface, *device, alias_if_theirs)
            }
            Step::RemoveClsact(interface) => self.remove_clsact(*interface),
            Step::AddFilter { interface, hook, priority, device, cookie } => {
                self.add_filter((*interface, *hook), *priority, *device, *cookie)
            }
            Step::LoadPrograms { settings, before } => self.load(&action.item, settings, *before),
            Step::AttachClamp(slot) => self.attach_clamp(&action.item, *slot),
            Step::PutFilter { slot, device, cookie } => self.put_filter(&action.item, *slot, *device, *cookie),
            Step::Configure { program, settings } => {
                Maps::adopt(*program).and_then(|mut maps| maps.configure(settings)).map_err(|e| unprogrammed(&e))
            }
            Step::RemoveFilter(id) => removed(remove_filter(self.socket, id)),
            Step::DeleteDevice(device) => removed(delete_link(self.socket, *device)),
        }
    }

    fn create(&mut self, item: &Item, new: &NewVxlan<'_>, alias: &str) -> Result<(), Failure> {
        match item {
            Item::Sender(key) => {
                let mut last = Ok(());
                for vni in sender_vnis(key) {
                    last = create_vxlan(
                        self.node,
                        self.namespace,
                        &NewVxlan { vxlan: Vxlan { vni, ..new.vxlan }, ..new.clone() },
                    );
                    if !matches!(&last, Err(error) if error.errno == Errno::EEXIST) {
                        break;
                    }
                }
                last.map_err(|error| feature(&error, "VXLAN devices (CONFIG_VXLAN)"))?;
            }
            _ => create_vxlan(self.node, self.namespace, new).map_err(|error| receiver_refused(&error, new))?,
        }
        self.mark(new.name, alias)
    }

    /// Does what a request that makes a device cannot.
    fn mark(&mut self, name: &str, alias: &str) -> Result<(), Failure> {
        let mut found = links(self.socket).map_err(|error| Failure::kernel(&error))?.into_iter();
        let Some(index) = found.find(|link| link.name == name).map(|link| link.index) else {
            let message = format!("Device {name} vanished right after it was made. This is tried again.");
            return Err(Failure::failed(Reason::Kernel, message));
        };
        done(set_alias(self.socket, index, alias))?;
        done(silence_link(self.socket, index, DEVICE_MTU))
    }

    fn create_pair(&mut self, names: &[String; 2], aliases: &[String; 2]) -> Result<(), Failure> {
        // First whether its settings can be read and changed at all, by those of the loopback device: a pair with unknown ones would
        // look complete.
        offloads(self.socket, LOOPBACK).map_err(|error| feature(&error, ETHTOOL))?;
        let new = NewPair { names: [&names[0], &names[1]], mtu: DEVICE_MTU, group: GROUP };
        let lacking = "veth devices (CONFIG_VETH), which every receiver needs that is not raw";
        create_pair(self.socket, new).map_err(|error| feature(&error, lacking))?;
        names.iter().zip(aliases).try_for_each(|(name, alias)| self.mark(name, alias))
    }

    fn turn_off(&mut self, device: u32, names: &[String]) -> Result<(), Failure> {
        turn_off(self.socket, device, names).map_err(|error| feature(&error, ETHTOOL))
    }

    fn add_drop(&mut self, device: u32) -> Result<(), Failure> {
        add_drop_filter(self.socket, device).map_err(|error| feature(&error, CLS_BPF))
    }

    fn rename(&mut self, device: u32, name: &str) -> Result<(), Failure> {
        rename_link(self.socket, device, name).map_err(|error| match error.errno {
            Errno::EEXIST => Failure::refused(
                Reason::NameTaken,
                sentence(&error, "Something else has an interface of that name: choose another interfaceName."),
            ),
            _ => Failure::kernel(&error),
        })
    }

    fn up(&mut self, device: u32) -> Result<(), Failure> {
        let Err(error) = up_link(self.socket, device) else { return Ok(()) };
        if error.errno != Errno::EADDRINUSE {
            return Err(Failure::kernel(&error));
        }
        let found = links(self.socket).unwrap_or_default().into_iter().find(|link| link.index == device);
        let port = found.and_then(|link| link.vxlan).map_or(0, |vxlan| vxlan.port);
        Err(Failure::failed(
            Reason::PortTaken,
            sentence(
                &error,
                &format!(
                    "Another program of the node, or a VXLAN device of another make, has UDP port {port}: \
                     free it, or set another receiverPort in the PodTapPolicy."
                ),
            ),
        ))
    }

    fn add_clsact(&mut self, interface: u32, device: u32, alias_if_theirs: &str) -> Result<(), Failure> {
        match add_clsact(self.socket, interface) {
            Ok(()) => {
                self.clsacts.push(interface);
                Ok(())
            }
            // Another sender of the same plan had the same step.
            Err(error) if error.errno == Errno::EEXIST && self.clsacts.contains(&interface) => Ok(()),
            // Somebody else put one there since the observation. Not ours then, whatever it is; plan again.
            Err(error) if error.errno == Errno::EEXIST => {
                done(set_alias(self.socket, device, alias_if_theirs))?;
                Err(Failure::kernel(&error))
            }
            Err(error) => Err(feature(&error, "the clsact qdisc (CONFIG_NET_SCH_INGRESS)")),
        }
    }

    /// Looks once more before it removes: somebody may have put a filter there since the observation.
    fn remove_clsact(&mut self, interface: u32) -> Result<(), Failure> {
        for hook in [Hook::Ingress, Hook::Egress] {
            match filters(self.socket, interface, hook) {
                Ok(found) if found.iter().any(|filter| filter.id.handle != 0) => return Ok(()),
                Err(error) if !error.is_gone() && error.errno != Errno::EINVAL => return Err(Failure::kernel(&error)),
                _ => {}
            }
        }
        match remove_clsact(self.socket, interface) {
            // "Cannot find specified qdisc on specified device"
            Err(error) if error.errno == Errno::EINVAL && !self.has_qdisc(interface) => Ok(()),
            result => removed(result),
        }
    }

    fn has_qdisc(&mut self, interface: u32) -> bool {
        qdiscs(self.socket).is_ok_and(|found| found.iter().any(|qdisc| qdisc.interface == interface))
    }

    fn add_filter(&mut self, at: (u32, Hook), priority: u16, device: u32, cookie: Cookie) -> Result<(), Failure> {
        add_mirror_filter(self.socket, at, priority, device, &cookie.bytes()).map_err(|error| feature(&error, MIRRED))
    }

    fn load(&mut self, item: &Item, settings: &Settings, before: Option<u32>) -> Result<(), Failure> {
        // One that went meanwhile has no counters to go on with.
        let before = before.and_then(|program| Maps::adopt(program).ok());
        let suits = |spare: &mut Programs| before.is_none() && spare.maps().supports(settings);
        let programs = match self.spare.take_if(suits) {
            Some(mut spare) => spare.maps_mut().configure(settings).map(|()| spare),
            None => Programs::load(settings, before.as_ref()),
        };
        self.programs.insert(item.clone(), programs.map_err(|error| unprogrammed(&error))?);
        Ok(())
    }

    fn attach_clamp(&mut self, item: &Item, slot: Slot) -> Result<(), Failure> {
        let programs = self.programs.get(item).ok_or_else(not_loaded)?;
        put_verdict_program(self.socket, slot, programs.clamp()).map_err(|error| feature(&error, CLS_BPF))
    }

    fn put_filter(&mut self, item: &Item, slot: Slot, device: u32, cookie: Cookie) -> Result<(), Failure> {
        let programs = self.programs.get(item).ok_or_else(not_loaded)?;
        let program = match slot.hook {
            Hook::Ingress => programs.ingress(),
            Hook::Egress => programs.egress(),
        };
        put_mirror_program(self.socket, slot, program, device, &cookie.bytes()).map_err(|error| feature(&error, MIRRED))
    }
}

fn done(result: Result<(), NetlinkError>) -> Result<(), Failure> {
    result.map_err(|error| Failure::kernel(&error))
}

fn not_loaded() -> Failure {
    Failure::failed(Reason::Kernel, "The tap's programs are not loaded. This is tried again.".to_owned())
}

fn unprogrammed(error: &BpfError) -> Failure {
    match error {
        BpfError::TooManyRules(_) | BpfError::TooManyNetworks(_) | BpfError::Expression(_) => {
            Failure::refused(Reason::Invalid, format!("The tap asks for too much: {error}."))
        }
        BpfError::Rejected { .. } => Failure::failed(
            Reason::KernelFeature,
            format!("The node's kernel does not take the tap's programs: {error}. A simpler filter may help."),
        ),
        _ => Failure::failed(
            Reason::Kernel,
            format!("The tap's programs are not in place: {error}. This is tried again."),
        ),
    }
}

fn removed(result: Result<(), NetlinkError>) -> Result<(), Failure> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        result => done(result),
    }
}

fn feature(error: &NetlinkError, what: &str) -> Failure {
    match error.errno {
        Errno::ENOENT | Errno::EOPNOTSUPP => Failure::failed(
            Reason::KernelFeature,
            sentence(error, &format!("The node's kernel lacks {what}: load its module, or use another kernel.")),
        ),
        _ => Failure::kernel(error),
    }
}

fn receiver_refused(error: &NetlinkError, new: &NewVxlan<'_>) -> Failure {
    match error.errno {
        Errno::EEXIST => Failure::failed(
            Reason::PortTaken,
            sentence(
                error,
                &format!(
                    "Another VXLAN device of this node has VNI {} on UDP port {}: choose another VNI, or another port.",
                    new.vxlan.vni, new.vxlan.port,
                ),
            ),
        ),
        _ => feature(error, "VXLAN devices (CONFIG_VXLAN)"),
    }
}
