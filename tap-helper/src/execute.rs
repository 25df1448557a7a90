//! Executes one step of a plan.

use std::{collections::BTreeMap, os::fd::AsFd};

use nix::errno::Errno;
use podtap_model::Reason;

use crate::{
    bpf::{Maps, Programs, Receive, Settings},
    deadline::Deadline,
    failure::{Failure, program_failure, sentence},
    marks::{Cookie, GROUP},
    names::{DEVICE_MTU, sender_vnis},
    netlink::{
        Classifier, Connection, FilterTarget, Hook, NetlinkError, NewPair, NewVxlan, Vxlan, add_clsact,
        add_destination, add_drop_filter, attach_mirror_program, attach_redirect_program, attach_verdict_program,
        create_pair, create_vxlan, delete_link, disable_autoconf, down_link, filters, links, offloads, qdiscs,
        remove_clsact, remove_destination, remove_entries, remove_filter, remove_root_qdisc, rename_link, set_alias,
        turn, up_link,
    },
    program_sets::{ProgramSets, SetSlot},
    resource::Resource,
    step::{Action, Predecessor, Step},
};

/// `LOOPBACK_IFINDEX` (include/net/flow.h): the ifindex of that device in every namespace.
const LOOPBACK: u32 = 1;
const ETHTOOL: &str = "ethtool's netlink family (Linux 5.8, CONFIG_ETHTOOL_NETLINK), which every receiver needs";
const CLS_BPF: &str = "the BPF classifier (CONFIG_NET_CLS_BPF)";
const MIRRED: &str = "the mirred action (CONFIG_NET_ACT_MIRRED) or the BPF classifier (CONFIG_NET_CLS_BPF)";

/// Where steps are executed.
pub struct Executor<'a, N> {
    /// The namespace of the devices.
    pub namespace: &'a N,
    /// A connection in it.
    pub netlink: &'a Connection,
    /// A connection in the node's own: the UDP sockets of VXLAN devices belong there.
    pub node: &'a Connection,
    /// Interfaces to which this executor added a clsact.
    pub clsacts: Vec<u32>,
    /// The program sets of this node's taps.
    pub program_sets: &'a mut ProgramSets,
    /// Where in them the senders are whose programs this executor attaches.
    pub slots: BTreeMap<Resource, SetSlot>,
    /// When the senders stop mirroring.
    pub deadlines: BTreeMap<Resource, Deadline>,
}

impl<N: AsFd> Executor<'_, N> {
    /// Executes an action. Removing something that does not exist is not a failure.
    pub async fn run(&mut self, action: &Action) -> Result<(), Failure> {
        let netlink = self.netlink;
        match &action.step {
            Step::CreateDevice { name, vxlan, ipv6, alias } => {
                let new = NewVxlan { name, vxlan: *vxlan, ipv6: *ipv6, mtu: DEVICE_MTU, group: GROUP };
                self.create(&action.resource, &new, alias).await
            }
            Step::CreatePair { names, aliases } => self.create_pair(names, aliases).await,
            Step::StopSegmenting(device, names) => {
                turn(netlink, *device, names, true).await.map_err(|error| feature(&error, ETHTOOL))
            }
            Step::TurnOffloadsOff(device, names) | Step::StartSegmenting(device, names) => {
                turn(netlink, *device, names, false).await.map_err(|error| feature(&error, ETHTOOL))
            }
            Step::SetAlias(device, alias) | Step::RecordUnreportedReader(device, alias) => {
                to_failure(set_alias(netlink, *device, alias).await)
            }
            Step::DisableAutoconf(device) => to_failure(disable_autoconf(netlink, *device, DEVICE_MTU).await),
            Step::AddDeviceClsact(device) => to_failure(add_clsact(netlink, *device).await),
            Step::RemoveRootQdisc(device) => ignore_gone(remove_root_qdisc(netlink, *device).await),
            Step::AddDrop(device) => add_drop_filter(netlink, *device).await.map_err(|error| feature(&error, CLS_BPF)),
            Step::AttachRedirect { target, to, settings, cookie } => {
                let program = Receive::load(settings).map_err(|error| program_failure(&error))?;
                let classifier = Classifier { program: program.program(), classid: 0 };
                let attached = attach_redirect_program(netlink, *target, classifier, *to, &cookie.bytes()).await;
                attached.map_err(|error| feature(&error, MIRRED))
            }
            Step::AddDestination(device, to) => to_failure(add_destination(netlink, *device, *to).await),
            Step::RemoveDestination(device, to) => ignore_gone(remove_destination(netlink, *device, *to).await),
            Step::RemoveEntries(device, mac) => ignore_gone(remove_entries(netlink, *device, *mac).await),
            Step::Rename(device, name) => self.rename(*device, name).await,
            Step::Up(device) => self.up(*device).await,
            Step::Down(device) => to_failure(down_link(netlink, *device).await),
            Step::AddClsact { interface, device, alias_if_theirs } => {
                self.add_clsact(*interface, *device, alias_if_theirs).await
            }
            Step::RemoveClsact(interface) => self.remove_clsact(*interface).await,
            Step::LoadPrograms { settings, predecessor } => self.load(&action.resource, settings, *predecessor).await,
            Step::AttachClamp(target) => self.attach_clamp(&action.resource, *target).await,
            Step::AttachMirror { target, device, cookie } => {
                self.attach_mirror(&action.resource, *target, *device, *cookie).await
            }
            Step::Configure { program, settings } => Maps::adopt(*program)
                .and_then(|mut maps| maps.configure(settings))
                .map_err(|error| program_failure(&error)),
            Step::RemoveFilter(id) => ignore_gone(remove_filter(netlink, id).await),
            Step::DeleteDevice(device) => ignore_gone(delete_link(netlink, *device).await),
        }
    }

    async fn create(&self, resource: &Resource, new: &NewVxlan<'_>, alias: &str) -> Result<(), Failure> {
        if let Resource::Sender(key) = resource {
            let mut last = Ok(());
            for vni in sender_vnis(key) {
                let new = NewVxlan { vxlan: Vxlan { vni, ..new.vxlan }, ..new.clone() };
                last = create_vxlan(self.node, self.namespace, &new).await;
                if !matches!(&last, Err(error) if error.errno == Errno::EEXIST) {
                    break;
                }
            }
            last.map_err(|error| feature(&error, "VXLAN devices (CONFIG_VXLAN)"))?;
        } else {
            let created = create_vxlan(self.node, self.namespace, new).await;
            created.map_err(|error| receiver_refused(&error, new))?;
        }
        self.mark(new.name, alias).await
    }

    /// Configures what the request that creates a device cannot.
    async fn mark(&self, name: &str, alias: &str) -> Result<(), Failure> {
        let mut found = links(self.netlink).await.map_err(|error| Failure::kernel(&error))?.into_iter();
        let Some(index) = found.find(|link| link.name == name).map(|link| link.index) else {
            let message = format!("Device {name} vanished right after it was created. This is retried.");
            return Err(Failure::failed(Reason::KernelError, message));
        };
        to_failure(set_alias(self.netlink, index, alias).await)?;
        to_failure(disable_autoconf(self.netlink, index, DEVICE_MTU).await)
    }

    async fn create_pair(&self, names: &[String; 2], aliases: &[String; 2]) -> Result<(), Failure> {
        // First check on the loopback device whether offload settings can be read at all: a pair whose settings are unknown
        // would look complete.
        offloads(self.netlink, LOOPBACK).await.map_err(|error| feature(&error, ETHTOOL))?;
        let new = NewPair { names: [&names[0], &names[1]], mtu: DEVICE_MTU, group: GROUP };
        let feature_name = "veth devices (CONFIG_VETH), which every receiver needs";
        create_pair(self.netlink, new).await.map_err(|error| feature(&error, feature_name))?;
        for (name, alias) in names.iter().zip(aliases) {
            self.mark(name, alias).await?;
        }
        Ok(())
    }

    async fn rename(&self, device: u32, name: &str) -> Result<(), Failure> {
        rename_link(self.netlink, device, name).await.map_err(|error| match error.errno {
            Errno::EEXIST => Failure::refused(
                Reason::InterfaceNameConflict,
                sentence(&error, "Another interface has that name: choose another interfaceName."),
            ),
            _ => Failure::kernel(&error),
        })
    }

    async fn up(&self, device: u32) -> Result<(), Failure> {
        let Err(error) = up_link(self.netlink, device).await else { return Ok(()) };
        if error.errno != Errno::EADDRINUSE {
            return Err(Failure::kernel(&error));
        }
        let found = links(self.netlink).await.unwrap_or_default().into_iter().find(|link| link.index == device);
        let port = found.and_then(|link| link.vxlan).map_or(0, |vxlan| vxlan.port);
        Err(Failure::failed(
            Reason::PortInUse,
            sentence(
                &error,
                &format!(
                    "Another program of the node, or a VXLAN device with other settings, uses UDP port {port}: \
                     ask the cluster's administrator to free it, or to set another receiverPort in the PodTapPolicy."
                ),
            ),
        ))
    }

    async fn add_clsact(&mut self, interface: u32, device: u32, alias_if_theirs: &str) -> Result<(), Failure> {
        match add_clsact(self.netlink, interface).await {
            Ok(()) => {
                self.clsacts.push(interface);
                Ok(())
            }
            // Another sender of the same plan has the same step.
            Err(error) if error.errno == Errno::EEXIST && self.clsacts.contains(&interface) => Ok(()),
            // Another program has added one since the observation, so it is not ours. The error makes the helper plan again.
            Err(error) if error.errno == Errno::EEXIST => {
                to_failure(set_alias(self.netlink, device, alias_if_theirs).await)?;
                Err(Failure::kernel(&error))
            }
            Err(error) => Err(feature(&error, "the clsact qdisc (CONFIG_NET_SCH_INGRESS)")),
        }
    }

    /// Checks for filters again before it removes a clsact: another program may have added one since the observation.
    async fn remove_clsact(&self, interface: u32) -> Result<(), Failure> {
        for hook in [Hook::Ingress, Hook::Egress] {
            match filters(self.netlink, interface, hook).await {
                Ok(found) if found.iter().any(|filter| filter.id.handle != 0) => return Ok(()),
                Err(error) if !error.is_gone() && error.errno != Errno::EINVAL => return Err(Failure::kernel(&error)),
                _ => {}
            }
        }
        match remove_clsact(self.netlink, interface).await {
            // "Cannot find specified qdisc on specified device"
            Err(error) if error.errno == Errno::EINVAL && !self.has_qdisc(interface).await => Ok(()),
            result => ignore_gone(result),
        }
    }

    async fn has_qdisc(&self, interface: u32) -> bool {
        qdiscs(self.netlink).await.is_ok_and(|found| found.iter().any(|qdisc| qdisc.interface == interface))
    }

    async fn load(
        &mut self,
        resource: &Resource,
        settings: &Settings,
        predecessor: Option<Predecessor>,
    ) -> Result<(), Failure> {
        let (Resource::Sender(sender), Some(deadline)) = (resource, self.deadlines.get(resource)) else {
            return Err(not_loaded());
        };
        let slot = self.program_sets.assign(sender, settings, *deadline, predecessor).await;
        self.slots.insert(resource.clone(), slot.map_err(|error| program_failure(&error))?);
        Ok(())
    }

    /// The programs of a sender, and its class ID.
    fn programs(&self, resource: &Resource) -> Result<(&Programs, u32), Failure> {
        let found = self.slots.get(resource).and_then(|slot| Some((self.program_sets.programs(slot)?, slot.classid)));
        found.ok_or_else(not_loaded)
    }

    async fn attach_clamp(&self, resource: &Resource, target: FilterTarget) -> Result<(), Failure> {
        let (programs, classid) = self.programs(resource)?;
        let classifier = Classifier { program: programs.clamp(), classid };
        let attached = attach_verdict_program(self.netlink, target, classifier).await;
        attached.map_err(|error| feature(&error, CLS_BPF))
    }

    async fn attach_mirror(
        &self,
        resource: &Resource,
        target: FilterTarget,
        device: u32,
        cookie: Cookie,
    ) -> Result<(), Failure> {
        let (programs, classid) = self.programs(resource)?;
        let program = match target.hook {
            Hook::Ingress => programs.ingress(),
            Hook::Egress => programs.egress(),
        };
        let classifier = Classifier { program, classid };
        let attached = attach_mirror_program(self.netlink, target, classifier, device, &cookie.bytes()).await;
        attached.map_err(|error| feature(&error, MIRRED))
    }
}

fn to_failure(result: Result<(), NetlinkError>) -> Result<(), Failure> {
    result.map_err(|error| Failure::kernel(&error))
}

fn not_loaded() -> Failure {
    Failure::failed(Reason::KernelError, "The tap's programs are not loaded. This is retried.".to_owned())
}

fn ignore_gone(result: Result<(), NetlinkError>) -> Result<(), Failure> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        result => to_failure(result),
    }
}

fn feature(error: &NetlinkError, what: &str) -> Failure {
    match error.errno {
        Errno::ENOENT | Errno::EOPNOTSUPP => Failure::failed(
            Reason::KernelFeatureMissing,
            sentence(
                error,
                &format!("The node's kernel lacks {what}: ask the cluster's administrator to load its module."),
            ),
        ),
        _ => Failure::kernel(error),
    }
}

fn receiver_refused(error: &NetlinkError, new: &NewVxlan<'_>) -> Failure {
    match error.errno {
        Errno::EEXIST => Failure::failed(
            Reason::PortInUse,
            sentence(
                error,
                &format!(
                    "Another VXLAN device of this node has VNI {} on UDP port {}: set another vxlan.vni, or ask the cluster's administrator.",
                    new.vxlan.vni, new.vxlan.port,
                ),
            ),
        ),
        _ => feature(error, "VXLAN devices (CONFIG_VXLAN)"),
    }
}
