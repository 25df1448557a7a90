//! A network namespace in memory. It changes with each step of a plan as the kernel and the executor would change it.

use std::collections::BTreeMap;

use crate::{
    bpf::{Fingerprint, ReceiveSettings, Settings},
    marks::{Cookie, GROUP, Mark, Part},
    names::{DEVICE_MTU, sender_vnis},
    netlink::{
        DROP_PRIORITY, Filter, FilterId, FilterTarget, ForwardingEntry, Hook, InterfaceAddress, Link, LinkLayer,
        Mirror, Offloads, Qdisc, QdiscKind, Vxlan, ZERO,
    },
    observe::{Observed, Program},
    plan::{Plan, Requested, plan},
    resource::Resource,
    step::{Action, Predecessor, Step},
};

#[derive(Clone, Debug, Default)]
pub struct World {
    pub now: Observed,
    last_index: u32,
    last_handle: u32,
    last_program: u32,
    /// Group and fingerprint of the programs that this round loaded, and the sender's class ID.
    loaded: BTreeMap<Resource, (u32, Fingerprint, u32)>,
    last_classid: u32,
}

impl World {
    /// A pod's namespace: loopback, `eth0` with an address, and `net1` without one.
    pub fn of_pod() -> Self {
        let mut world = Self::default();
        for name in ["lo", "eth0", "net1"] {
            let layer = if name == "lo" { LinkLayer::Loopback } else { LinkLayer::Ethernet };
            let link = Link { name: name.to_owned(), up: true, mtu: 1500, layer, ..Link::default() };
            world.add_link(link);
        }
        let address = InterfaceAddress { interface: 2, address: [10, 88, 0, 5].into(), global: true };
        world.now.addresses.push(address);
        world.now.node_netns = Some(0);
        world
    }

    pub fn add_link(&mut self, link: Link) -> u32 {
        self.last_index += 1;
        self.now.links.push(Link { index: self.last_index, ..link });
        self.last_index
    }

    pub fn add_filter(&mut self, at: (u32, Hook), priority: u16, kind: &str, mirror: Option<Mirror>, drops_all: bool) {
        self.last_handle += 1;
        let (interface, hook) = at;
        let kind = kind.to_owned();
        let id = FilterId { interface, hook, chain: 0, priority, protocol: 3, kind, handle: self.last_handle };
        self.now.filters.push(Filter { id, drops_all, program: None, classid: 0, mirror });
    }

    pub fn add_qdisc(&mut self, interface: u32, kind: QdiscKind) {
        assert_eq!(self.now.qdisc(interface), None, "an interface has one clsact or ingress qdisc");
        self.now.qdiscs.push(Qdisc { interface, kind });
    }

    pub fn remove_qdisc(&mut self, interface: u32) {
        self.now.qdiscs.retain(|qdisc| qdisc.interface != interface);
        self.now.filters.retain(|filter| filter.id.interface != interface);
    }

    pub fn delete_link(&mut self, index: u32) {
        assert!(index > 3, "interfaces of the pod are not deleted");
        let Some(link) = self.now.link(index).cloned() else { return };
        self.remove_qdisc(index);
        self.now.links.retain(|link| link.index != index);
        self.now.forwarding.retain(|(device, _)| *device != index);
        // Filters that mirror to it stay; `tc` shows `*` for their device.
        for mirror in self.now.filters.iter_mut().filter_map(|filter| filter.mirror.as_mut()) {
            mirror.to = if mirror.to == index { 0 } else { mirror.to };
        }
        self.now.offloads.retain(|(device, _)| *device != index);
        // Deleting a veth device deletes its peer.
        if let Some(peer) = link.peer {
            self.delete_link(peer);
        }
    }

    /// Plans and executes until nothing is left to do. Returns the number of rounds and the last plan.
    pub fn converge(&mut self, requested: &Requested<'_>) -> (u32, Plan) {
        for round in 0.. {
            self.loaded.clear();
            let plan = plan(requested, &self.now);
            if plan.actions.is_empty() || round > 10 {
                return (round, plan);
            }
            for action in &plan.actions {
                self.act(action);
            }
        }
        unreachable!("the loop ends by itself")
    }

    pub fn act(&mut self, action: &Action) {
        match &action.step {
            Step::CreateDevice { name, vxlan, alias, .. } => self.create(&action.resource, name, *vxlan, alias),
            Step::CreatePair { names, aliases } => self.create_pair(names, aliases),
            Step::StopSegmenting(device, names) => self.turn(*device, names, true),
            Step::TurnOffloadsOff(device, names) | Step::StartSegmenting(device, names) => {
                self.turn(*device, names, false);
            }
            Step::AttachRedirect { target, to, settings, cookie } => {
                self.attach_redirect(*target, *to, settings, *cookie);
            }
            Step::SetAlias(device, alias) | Step::RecordUnreportedReader(device, alias) => {
                self.link(*device).alias.clone_from(alias);
            }
            Step::DisableAutoconf(device) => {
                (self.link(*device).autoconf_disabled, self.link(*device).mtu) = (true, DEVICE_MTU);
            }
            Step::AddDeviceClsact(interface) | Step::AddClsact { interface, .. } => {
                // The executor accepts a second request in the same plan.
                if self.now.qdisc(*interface).is_none() {
                    self.add_qdisc(*interface, QdiscKind::Clsact);
                }
            }
            Step::RemoveRootQdisc(device) => {
                assert!(self.now.has_root_qdisc(*device));
                self.now.qdiscs.retain(|qdisc| *qdisc != Qdisc { interface: *device, kind: QdiscKind::Root });
            }
            Step::AddDrop(device) => {
                assert_eq!(self.now.qdisc(*device), Some(QdiscKind::Clsact));
                self.add_filter((*device, Hook::Ingress), DROP_PRIORITY, "bpf", None, true);
            }
            Step::AddDestination(device, to) => {
                assert!(!self.now.destinations(*device).contains(to), "the destination is new");
                assert!(self.now.diverted(*device).is_empty(), "the kernel has room for one address");
                self.now.forwarding.push((*device, ForwardingEntry::Destination(*to)));
            }
            Step::RemoveDestination(device, to) => {
                self.now.forwarding.retain(|entry| *entry != (*device, ForwardingEntry::Destination(*to)));
            }
            Step::RemoveEntries(device, mac) => self.now.forwarding.retain(|(index, entry)| match entry {
                _ if index != device => true,
                ForwardingEntry::Destination(_) => *mac != ZERO,
                ForwardingEntry::Other(other) => mac != other,
            }),
            Step::Rename(device, name) => {
                assert!(!self.link(*device).up, "a device that is renamed is down");
                assert!(self.now.links.iter().all(|link| link.name != *name), "the name is free");
                self.link(*device).name.clone_from(name);
            }
            Step::Up(device) => {
                if part(self.link(*device)) == Some(Part::Interface) {
                    let on = self.now.offloads(*device).is_some_and(|offloads| !offloads.on.is_empty());
                    assert!(!on, "its offloads are off before frames arrive");
                }
                let is_sender = matches!(action.resource, Resource::Sender(_));
                let filters = || self.now.filters.iter().filter(|filter| filter.id.interface == *device);
                let clamps = filters().filter(|filter| filter.id.hook == Hook::Egress).count();
                assert!(!is_sender || clamps == 1, "only the clamp decides what leaves");
                self.link(*device).up = true;
            }
            Step::Down(device) => self.link(*device).up = false,
            Step::RemoveClsact(interface) => {
                if self.now.filters.iter().all(|filter| filter.id.interface != *interface || filter.id.handle == 0) {
                    self.remove_qdisc(*interface);
                }
            }
            Step::LoadPrograms { settings, predecessor } => self.load(&action.resource, settings, *predecessor),
            Step::AttachClamp(target) => {
                assert!(self.now.link(target.interface).is_some_and(|link| link.kind == "vxlan"));
                self.attach_program(&action.resource, *target, None);
            }
            Step::AttachMirror { target, device, cookie } => {
                assert!(
                    self.now.link(*device).is_some_and(|link| link.up),
                    "the device is up before a filter mirrors to it"
                );
                let is_clamp = |filter: &&Filter| (filter.id.interface, filter.id.hook) == (*device, Hook::Egress);
                assert!(
                    self.now.filters.iter().any(|filter| is_clamp(&filter)),
                    "the clamp is attached before the mirror"
                );
                self.attach_program(&action.resource, *target, Some((*device, *cookie)));
            }
            Step::Configure { program, settings } => {
                let found = self.program(*program);
                let fingerprint = settings.fingerprint().expect("the settings are valid");
                assert!(found.fingerprint.same_programs(&fingerprint));
                self.configure(found.group, fingerprint);
            }
            Step::RemoveFilter(id) => {
                let removes = |filter: &Filter| *id == filter.id || *id == filter.id.classifier();
                self.now.filters.retain(|filter| !removes(filter));
            }
            Step::DeleteDevice(device) => self.delete_link(*device),
        }
    }

    fn turn(&mut self, device: u32, names: &[String], on: bool) {
        let mut all = self.now.offloads.iter_mut();
        let (_, offloads) = all.find(|(index, _)| *index == device).expect("the device has offloads");
        let (from, to) = if on { (&mut offloads.off, &mut offloads.on) } else { (&mut offloads.on, &mut offloads.off) };
        let (changed, kept): (Vec<_>, Vec<_>) = from.drain(..).partition(|name| names.contains(name));
        assert_eq!(changed.len(), names.len(), "only what has to be changed is");
        to.extend(changed);
        *from = kept;
    }

    fn load(&mut self, resource: &Resource, settings: &Settings, predecessor: Option<Predecessor>) {
        let fingerprint = settings.fingerprint().expect("the settings are valid");
        self.last_classid += 1;
        let classid = predecessor.map_or(self.last_classid, |predecessor| predecessor.classid);
        let running = predecessor.map(|predecessor| self.program(predecessor.program));
        let shared = running.filter(|running| running.fingerprint.same_programs(&fingerprint));
        self.last_program += 1;
        let group = shared.map_or(self.last_program, |shared| shared.group);
        self.configure(group, fingerprint);
        self.loaded.insert(resource.clone(), (group, fingerprint, classid));
    }

    fn program(&self, id: u32) -> Program {
        let found = self.now.programs.iter().find(|program| program.id == id);
        *found.expect("a plan refers only to existing programs")
    }

    fn configure(&mut self, group: u32, fingerprint: Fingerprint) {
        for program in self.now.programs.iter_mut().filter(|program| program.group == group) {
            program.fingerprint = fingerprint;
        }
    }

    fn attach_program(&mut self, resource: &Resource, target: FilterTarget, to: Option<(u32, Cookie)>) {
        assert_eq!(self.now.qdisc(target.interface), Some(QdiscKind::Clsact));
        let (group, fingerprint, classid) =
            *self.loaded.get(resource).expect("programs are loaded before they are attached");
        let counters = crate::netlink::Counters::default();
        let mirror = to.map(|(to, cookie)| Mirror {
            to,
            as_ours: true,
            redirects: false,
            cookie: cookie.bytes().to_vec(),
            counters,
        });
        let same = |filter: &Filter| {
            (filter.id.interface, filter.id.priority, filter.id.hook)
                == (target.interface, target.priority, target.hook)
        };
        if target.handle == 0 {
            assert!(!self.now.filters.iter().any(same), "the priority is free");
            self.add_filter((target.interface, target.hook), target.priority, "bpf", mirror, false);
        }
        self.last_program += 1;
        let id = 1000 + self.last_program;
        let mut filters = self.now.filters.iter_mut();
        let filter = filters.find(|filter| same(filter) && (target.handle == 0 || filter.id.handle == target.handle));
        let filter = filter.expect("the filter exists");
        assert_eq!(filter.id.kind, "bpf");
        (filter.program, filter.classid) = (Some(id), classid);
        if target.handle != 0 {
            filter.mirror = to.map(|(to, cookie)| Mirror {
                to,
                as_ours: true,
                redirects: false,
                cookie: cookie.bytes().to_vec(),
                counters,
            });
        }
        self.now.programs.push(Program { id, classid, group, fingerprint, deadline: None });
    }

    fn attach_redirect(&mut self, target: FilterTarget, to: u32, settings: &ReceiveSettings, cookie: Cookie) {
        assert_eq!(self.now.qdisc(target.interface), Some(QdiscKind::Clsact));
        let at = (target.interface, target.hook);
        let before = |filter: &&Filter| {
            (filter.id.interface, filter.id.hook) == at
                && filter.id.priority <= target.priority
                && (target.handle == 0 || filter.id.handle != target.handle)
        };
        assert_eq!(self.now.filters.iter().find(before), None, "no filter precedes the redirect");
        assert_eq!(self.link(to).kind, "veth");
        let counters = crate::netlink::Counters::default();
        let mirror = Mirror { to, as_ours: false, redirects: true, cookie: cookie.bytes().to_vec(), counters };
        if target.handle == 0 {
            self.add_filter(at, target.priority, "bpf", Some(mirror), false);
        }
        self.last_program += 1;
        let id = 1000 + self.last_program;
        let handle = if target.handle == 0 { self.last_handle } else { target.handle };
        let mut filters = self.now.filters.iter_mut();
        let filter = filters.find(|filter| filter.id.handle == handle).expect("the filter exists");
        filter.program = Some(id);
        self.now.receive_programs.push((id, settings.fingerprint()));
    }

    fn create_pair(&mut self, names: &[String; 2], aliases: &[String; 2]) {
        let devices = names.iter().zip(aliases).zip([2, 1]);
        for ((name, alias), peer) in devices {
            assert!(self.now.links.iter().all(|link| link.name != *name), "the name {name} is free");
            let index = self.add_link(Link {
                name: name.clone(),
                autoconf_disabled: true,
                mtu: DEVICE_MTU,
                group: GROUP,
                alias: alias.clone(),
                kind: "veth".to_owned(),
                peer: Some(if peer == 2 { self.last_index + 2 } else { self.last_index }),
                ..Link::default()
            });
            if !is_raw(self.link(index)) {
                let on = ["tx-checksum-ip-generic", "tx-tcp-segmentation", "rx-gro"].map(str::to_owned).into();
                self.now.offloads.push((index, Offloads { on, off: vec![] }));
            }
        }
    }

    fn create(&mut self, resource: &Resource, name: &str, vxlan: Vxlan, alias: &str) {
        let taken = |vni: u32| self.now.links.iter().filter_map(|link| link.vxlan).any(|other| other.vni == vni);
        let vni = match resource {
            Resource::Sender(key) => sender_vnis(key).find(|vni| !taken(*vni)).expect("a VNI is free"),
            _ => vxlan.vni,
        };
        assert!(self.now.links.iter().all(|link| link.name != name), "the name {name} is free");
        self.add_link(Link {
            name: name.to_owned(),
            autoconf_disabled: true,
            mtu: DEVICE_MTU,
            group: GROUP,
            alias: alias.to_owned(),
            kind: "vxlan".to_owned(),
            vxlan: Some(Vxlan { vni, ..vxlan }),
            lower_netns: self.now.node_netns,
            ..Link::default()
        });
    }

    fn link(&mut self, index: u32) -> &mut Link {
        self.now.links.iter_mut().find(|link| link.index == index).expect("a plan refers only to existing devices")
    }
}

/// Which device of a receiver it is.
pub fn part(link: &Link) -> Option<Part> {
    match Mark::of(link) {
        Some(Mark::Receiver(mark)) => Some(mark.part),
        _ => None,
    }
}

pub fn is_raw(link: &Link) -> bool {
    matches!(Mark::of(link), Some(Mark::Receiver(mark)) if mark.raw)
}
