//! The state of one network namespace, as far as PodTap needs it.

use std::collections::BTreeSet;

use podtap_model::Endpoint;

use crate::{
    bpf::{BpfError, Fingerprint, Maps, Monotonic, ReceiveMaps, TcxProgram, tcx_programs},
    marks::{Cookie, Mark, ReceiverMark, is_ours},
    namespace::{Namespace, within},
    netlink::{
        Connection, DefaultRoute, Filter, ForwardingEntry, Hook, InterfaceAddress, Link, Mac, NetlinkError, Offloads,
        Qdisc, QdiscKind, addresses, default_routes, filters, forwarding, links, node_nsid, offloads, qdiscs,
    },
};

/// A snapshot of one network namespace. Not atomic: a concurrent change shows in the next observation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All devices.
    pub links: Vec<Link>,
    /// The number by which this namespace refers to the node's; none in the node's own. Not looked up without devices of ours.
    pub node_netns: Option<i32>,
    /// Qdiscs for classification.
    pub qdiscs: Vec<Qdisc>,
    /// Filters of these qdiscs, within the limits of the [`NetnsKind`].
    pub filters: Vec<Filter>,
    /// Our programs in these filters. Those that cannot be read are missing.
    pub programs: Vec<Program>,
    /// The receivers' programs in these filters, likewise: the ID and the fingerprint of each.
    pub receive_programs: Vec<(u32, u64)>,
    /// Programs that run before the filters of interfaces with filters of ours, by their ifindex.
    pub tcx: Vec<(u32, TcxProgram)>,
    /// Forwarding entries of our VXLAN devices, by the device's ifindex.
    pub forwarding: Vec<(u32, ForwardingEntry)>,
    /// Offload settings of the veth pairs of receivers that show frames as on the wire, by the device's ifindex.
    pub offloads: Vec<(u32, Offloads)>,
    /// Addresses; none in the node's own namespace.
    pub addresses: Vec<InterfaceAddress>,
    /// Default routes, if [`Observed::read_default_routes`] was called.
    pub default_routes: Vec<DefaultRoute>,
}

/// A running program of ours in a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its ID.
    pub id: u32,
    /// The class ID that the filter passes to it: that of the sender.
    pub classid: u32,
    /// The same for programs that share their configuration and maps: those of one set.
    pub group: u32,
    /// Identifies the program and its configuration.
    pub fingerprint: Fingerprint,
    /// When the sender stops mirroring; none if it mirrors nothing, and for a clamp.
    pub deadline: Option<Monotonic>,
}

impl Program {
    fn of(id: u32, classid: u32) -> Result<Self, BpfError> {
        let maps = Maps::adopt(id)?;
        let (group, fingerprint, deadline) = (maps.id()?, maps.fingerprint()?, maps.deadline(classid)?);
        Ok(Self { id, classid, group, fingerprint, deadline })
    }
}

/// The kind of a network namespace, which decides how much of it is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetnsKind {
    /// A pod's namespace: everything.
    Pod,
    /// The node's own namespace: only PodTap's devices, since PodTap never adds filters to other devices there, and there may be hundreds
    /// of them.
    Node,
}

/// Observes a network namespace.
pub async fn observe(netlink: &Connection, kind: NetnsKind) -> Result<Observed, NetlinkError> {
    let _shared = netlink.share_allowance();
    let mut observed = Observed { links: links(netlink).await?, ..Observed::default() };
    let all = kind == NetnsKind::Pod;
    let relevant: Vec<u32> = observed.links.iter().filter(|link| all || is_ours(link)).map(|link| link.index).collect();
    if relevant.is_empty() {
        return Ok(observed);
    }
    // After the list of devices, for which the kernel assigns the numbers.
    if all && observed.ours().next().is_some() {
        observed.node_netns = Some(node_nsid(netlink).await?);
    }
    observed.qdiscs = qdiscs(netlink).await?;
    let ours: Vec<u32> = observed.ours().map(|link| link.index).collect();
    observed.qdiscs.retain(|qdisc| match qdisc.kind {
        QdiscKind::Root => ours.contains(&qdisc.interface),
        QdiscKind::Clsact | QdiscKind::Ingress => relevant.contains(&qdisc.interface),
    });
    for qdisc in observed.qdiscs.iter().filter(|qdisc| qdisc.kind == QdiscKind::Clsact) {
        for hook in [Hook::Ingress, Hook::Egress] {
            observed.filters.extend(unless_gone(filters(netlink, qdisc.interface, hook).await)?);
        }
    }
    let programs = observed
        .filters
        .iter()
        .filter(|filter| Cookie::of(filter).is_some() || observed.link(filter.id.interface).is_some_and(is_ours));
    // A program that cannot be read, for whatever reason, is not known to be right, and is replaced.
    observed.programs = programs.filter_map(|filter| Program::of(filter.program?, filter.classid).ok()).collect();
    observed.receive_programs = receive_programs(&observed);
    observed.tcx = tcx(netlink.namespace(), &observed);
    for link in &observed.links {
        if let Some(vxlan) = link.vxlan.filter(|_| is_ours(link)) {
            let found = unless_gone(forwarding(netlink, link.index, (vxlan.port, vxlan.vni)).await)?;
            observed.forwarding.extend(found.into_iter().map(|entry| (link.index, entry)));
        }
    }
    for link in observed.links.iter().filter(|link| is_ours(link) && has_offloads(link)) {
        match offloads(netlink, link.index).await {
            Ok(found) => observed.offloads.push((link.index, found)),
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    if all {
        observed.addresses = addresses(netlink).await?;
    }
    Ok(observed)
}

fn receive_programs(observed: &Observed) -> Vec<(u32, u64)> {
    let redirects = |filter: &&Filter| filter.mirror.as_ref().is_some_and(|mirror| mirror.redirects);
    let ours = observed.filters.iter().filter(|filter| Cookie::of(filter).is_some()).filter(redirects);
    let fingerprint = |id| ReceiveMaps::adopt(id).and_then(|maps| maps.fingerprint()).ok();
    ours.filter_map(|filter| filter.program).filter_map(|id| Some((id, fingerprint(id)?))).collect()
}

/// Whether the offloads of a device of ours matter.
fn has_offloads(link: &Link) -> bool {
    link.kind == "veth" && !matches!(Mark::of(link), Some(Mark::Receiver(ReceiverMark { raw: true, .. })))
}

/// Programs of others at the interfaces with filters of ours.
fn tcx(namespace: &Namespace, observed: &Observed) -> Vec<(u32, TcxProgram)> {
    let interfaces = observed.filters.iter().filter(|filter| Cookie::of(filter).is_some());
    let interfaces: BTreeSet<u32> = interfaces.map(|filter| filter.id.interface).collect();
    let foreign = |index: u32| observed.link(index).filter(|link| !is_ours(link));
    let names: Vec<(u32, &str)> =
        interfaces.into_iter().filter_map(|index| Some((index, foreign(index)?.name.as_str()))).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let query = || {
        let programs = |(index, name)| {
            let programs = [Hook::Ingress, Hook::Egress].into_iter().flat_map(move |hook| tcx_programs(name, hook));
            programs.map(move |program| (index, program))
        };
        names.into_iter().flat_map(programs).collect()
    };
    // bpf(2) looks for the interface in the namespace of the caller. Nothing is known if it cannot be entered.
    within(namespace, query).unwrap_or_default()
}

/// Nothing of a device that is deleted while it is observed.
pub(crate) fn unless_gone<T>(result: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match result {
        // EINVAL: the qdisc was deleted, the device was not (`tc_dump_tfilter`, net/sched/cls_api.c).
        Err(error) if error.is_gone() || error.errno == nix::errno::Errno::EINVAL => Ok(Vec::new()),
        result => result,
    }
}

impl Observed {
    /// Reads the default routes, which only decide where a pod has no known address. The kernel lists all routes for that; of a pod that
    /// is a router and has too many, none count.
    pub async fn read_default_routes(&mut self, netlink: &Connection) -> Result<(), NetlinkError> {
        self.default_routes = match default_routes(netlink).await {
            Err(error) if error.too_much => Vec::new(),
            result => result?,
        };
        Ok(())
    }

    /// The device with an ifindex.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Whether a VXLAN device was created from the node's namespace, so that its socket is there. One that a pod creates for itself may have
    /// every other mark.
    #[must_use]
    pub fn is_genuine(&self, link: &Link) -> bool {
        link.vxlan.is_none() || link.lower_netns == self.node_netns
    }

    /// The qdisc in a device's position for classification.
    #[must_use]
    pub fn qdisc(&self, interface: u32) -> Option<QdiscKind> {
        let mut qdiscs = self.qdiscs.iter().filter(|qdisc| qdisc.interface == interface).map(|qdisc| qdisc.kind);
        qdiscs.find(|kind| *kind != QdiscKind::Root)
    }

    /// Whether a device of ours has a root qdisc. PodTap adds none.
    #[must_use]
    pub fn has_root_qdisc(&self, device: u32) -> bool {
        self.qdiscs.contains(&Qdisc { interface: device, kind: QdiscKind::Root })
    }

    /// The program in a filter, if it is one of ours.
    #[must_use]
    pub fn program(&self, filter: &Filter) -> Option<&Program> {
        self.programs.iter().find(|program| (Some(program.id), program.classid) == (filter.program, filter.classid))
    }

    /// The fingerprint of a receiver's program in a filter, if it has one.
    #[must_use]
    pub fn receive_program(&self, filter: &Filter) -> Option<u64> {
        self.receive_programs.iter().find(|(id, _)| Some(*id) == filter.program).map(|(_, fingerprint)| *fingerprint)
    }

    /// A classifier of the sender with a hash, if it has one.
    #[must_use]
    pub fn classifier(&self, sender: u64) -> Option<&Program> {
        let of_sender = |filter: &&Filter| Cookie::of(filter).is_some_and(|cookie| cookie.owner == sender);
        self.filters.iter().filter(of_sender).find_map(|filter| self.program(filter))
    }

    /// The destinations of a device.
    #[must_use]
    pub fn destinations(&self, device: u32) -> Vec<Endpoint> {
        let entries = self.forwarding.iter().filter(|(index, _)| *index == device);
        entries
            .filter_map(|(_, entry)| match entry {
                ForwardingEntry::Destination(to) => Some(*to),
                ForwardingEntry::Other(_) => None,
            })
            .collect()
    }

    /// The MAC addresses with forwarding entries of a device that are no destinations.
    #[must_use]
    pub fn diverted(&self, device: u32) -> BTreeSet<Mac> {
        let entries = self.forwarding.iter().filter(|(index, _)| *index == device);
        entries
            .filter_map(|(_, entry)| match entry {
                ForwardingEntry::Destination(_) => None,
                ForwardingEntry::Other(mac) => Some(*mac),
            })
            .collect()
    }

    /// The offload settings of a device, if they matter.
    #[must_use]
    pub fn offloads(&self, device: u32) -> Option<&Offloads> {
        self.offloads.iter().find(|(index, _)| *index == device).map(|(_, offloads)| offloads)
    }

    /// Whether PodTap created the clsact of an interface. The marks of the sender that created it record that, and later senders copy it.
    #[must_use]
    pub fn clsact_is_ours(&self, interface: u32) -> bool {
        let genuine = self.links.iter().filter(|link| self.is_genuine(link));
        let by_device = genuine
            .filter_map(Mark::of)
            .any(|mark| matches!(mark, Mark::Sender(mark) if mark.interface_index == interface && mark.clsact_ours));
        let mut cookies = self.filters.iter().filter(|filter| filter.id.interface == interface).filter_map(Cookie::of);
        by_device || cookies.any(|cookie| cookie.clsact_ours)
    }

    /// Whether anything carries PodTap's marks.
    #[must_use]
    pub fn has_ours(&self) -> bool {
        self.links.iter().any(is_ours) || self.filters.iter().any(|filter| Cookie::of(filter).is_some())
    }

    /// The devices of PodTap.
    pub fn ours(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| is_ours(link))
    }
}
