//! `tap-helper inspect`: everything on the node that carries PodTap's marks.

use std::{collections::BTreeSet, path::PathBuf, rc::Rc};

use podtap_model::{Count, Direction};
use serde::Serialize;
use tracing::warn;

use crate::{
    bpf::{Counters, Maps, Monotonic},
    marks::{Cookie, Mark, Part, SenderMark, config_hash, is_ours},
    names::sender_hash,
    namespace::{Namespace, NamespaceId, Source, sources},
    netlink::{CLAMP_PRIORITY, Connection, Filter, Hook, Link, NetnsError, SourceFilter},
    node::NodeError,
    observe::{NetnsKind, Observed, Program, observe},
    readers::is_read,
    resource::SenderKey,
};

/// PodTap's resources in one namespace.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceContents {
    /// Inode number of the namespace, as `lsns` shows it.
    pub namespace: u64,
    /// A process in it, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// Where it is mounted, if no process is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Filters on other devices.
    pub filters: Vec<MirrorFilter>,
    /// Interfaces whose clsact PodTap created.
    pub clsacts: Vec<String>,
    /// In the node's own namespace with receivers: what the table `podtap` of nftables, which filters by source, has dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Count>,
    /// Differences from what PodTap configured; empty if there is no drift.
    pub drift: Vec<String>,
}

/// A device of PodTap.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its ifindex.
    pub index: u32,
    /// `sender`, `receiver`, or `unfinished`. `receiver-vxlan` and `receiver-peer` are the VXLAN device and the veth peer behind the
    /// interface of a receiver that is not raw.
    pub role: &'static str,
    /// UID of the tap, empty if not known.
    pub tap: String,
    /// UID of the pod that is tapped, empty for receivers.
    pub pod: String,
    /// The interface that is tapped, empty for receivers.
    pub interface: String,
    /// VXLAN network identifier; for senders, the node-local one.
    pub vni: u32,
    /// UDP port on which it listens; 0 if it is not a VXLAN device.
    pub port: u16,
    /// Whether it is up.
    pub up: bool,
    /// Destinations of a sender's mirrored frames: address, UDP port and VNI.
    pub destinations: Vec<String>,
    /// The counters of a sender's programs; none if they cannot be read, and for receivers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// Seconds until a sender stops mirroring unless it is renewed; 0 if it has stopped. None for receivers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

/// A filter of PodTap.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorFilter {
    /// The interface it is on.
    pub interface: String,
    /// `Ingress`: frames that enter the pod. `Egress`: frames that leave it.
    pub direction: &'static str,
    /// Its priority.
    pub priority: u16,
    /// The device it mirrors to, empty if that was deleted.
    pub device: String,
    /// Mirrored frames, including those that failed.
    pub packets: u64,
    /// Bytes of these; of frames that enter the pod, without the 14 of the Ethernet header.
    pub bytes: u64,
    /// Mirrored frames that the device did not take, including those that its program dropped.
    pub failed: u32,
}

impl NamespaceContents {
    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.filters.is_empty() && self.clsacts.is_empty() && self.rejected.is_none()
    }
}

/// Inspects every namespace that some process is in, or that is mounted. Omits those that contain nothing of PodTap.
pub async fn inspect() -> Result<Vec<NamespaceContents>, NodeError> {
    let own = Namespace::node().map_err(NodeError::Namespace)?.id();
    let (mut seen, mut all) = (BTreeSet::new(), Vec::new());
    for source in sources().map_err(NodeError::Processes)? {
        let namespace = match source.open() {
            Ok(Some(namespace)) => namespace,
            Ok(None) => continue,
            Err(error) => {
                warn!(?source, %error, "cannot open");
                continue;
            }
        };
        let id = namespace.id();
        if !seen.insert(id) {
            continue;
        }
        let kind = if id == own { NetnsKind::Node } else { NetnsKind::Pod };
        match inspect_namespace(namespace, &source, kind).await {
            Ok(contents) => all.push(contents),
            Err(error) => warn!(?source, %error, "cannot inspect"),
        }
    }
    all.sort_by_key(|contents| contents.namespace);
    all.retain(|contents| !contents.is_empty());
    Ok(all)
}

async fn inspect_namespace(
    namespace: Namespace,
    source: &Source,
    kind: NetnsKind,
) -> Result<NamespaceContents, NetnsError> {
    let namespace = Rc::new(namespace);
    let netlink = Connection::open(&namespace)?;
    let netlink = if kind == NetnsKind::Node { netlink.unlimited() } else { netlink };
    let observed = observe(&netlink, kind).await?;
    let rejected = match kind {
        NetnsKind::Node => SourceFilter::read(&namespace)?.map(|table| table.dropped()),
        NetnsKind::Pod => None,
    };
    Ok(NamespaceContents { rejected, ..contents(namespace.id(), source, &observed) })
}

fn contents(id: NamespaceId, source: &Source, observed: &Observed) -> NamespaceContents {
    let devices: Vec<Device> = observed.ours().map(|link| device(link, observed)).collect();
    let filters: Vec<MirrorFilter> = observed.filters.iter().filter_map(|filter| mirror(filter, observed)).collect();
    let marks: Vec<(&Link, SenderMark)> = observed
        .ours()
        .filter_map(|link| match Mark::of(link) {
            Some(Mark::Sender(mark)) => Some((link, mark)),
            _ => None,
        })
        .collect();
    let clsacts = observed
        .qdiscs
        .iter()
        .filter(|qdisc| observed.clsact_is_ours(qdisc.interface))
        .map(|qdisc| name(observed, qdisc.interface))
        .collect();
    let mut drift: Vec<String> = marks.iter().flat_map(|(link, mark)| drift(link, mark, observed)).collect();
    drift.extend(observed.ours().flat_map(|link| device_drift(link, observed)));
    drift.extend(filters.iter().filter(|filter| filter.device.is_empty()).map(|filter| {
        format!("the {} filter on {} mirrors to a device that was deleted", filter.direction, filter.interface)
    }));
    let (process, mount) = match source {
        Source::Process(pid) => (Some(*pid), None),
        Source::Mount(path) => (None, Some(path.clone())),
    };
    NamespaceContents { namespace: id.inode(), process, mount, devices, filters, clsacts, rejected: None, drift }
}

fn device(link: &Link, observed: &Observed) -> Device {
    let (role, tap, pod, interface) = match Mark::of(link) {
        Some(Mark::Sender(mark)) => ("sender", mark.tap, mark.pod, mark.interface),
        Some(Mark::Receiver(mark)) => (mark.part.role(), mark.tap, String::new(), String::new()),
        None => ("unfinished", String::new(), String::new(), String::new()),
    };
    let destinations = observed.destinations(link.index).into_iter();
    let of_mark = match Mark::of(link) {
        Some(Mark::Receiver(mark)) => mark.vni,
        _ => 0,
    };
    Device {
        counters: counters(link, observed),
        seconds_left: programs(link, observed)
            .into_iter()
            .find_map(|program| program?.deadline)
            .map(|deadline| deadline.left(Monotonic::now()).as_secs()),
        name: link.name.clone(),
        index: link.index,
        role,
        tap,
        pod,
        interface,
        vni: link.vxlan.map_or(of_mark, |vxlan| vxlan.vni),
        port: link.vxlan.map_or(0, |vxlan| vxlan.port),
        up: link.up,
        destinations: destinations.map(|to| format!("{} port {} vni {}", to.address, to.port, to.vni)).collect(),
    }
}

/// The counters of the programs that mirror to a device. The programs share them.
fn counters(link: &Link, observed: &Observed) -> Option<Counters> {
    let program = programs(link, observed).into_iter().flatten().next()?;
    Maps::adopt(program.id).and_then(|maps| maps.counters(program.classid)).ok()
}

/// The programs of a sender, as far as they are known; none for a filter without one.
fn programs<'a>(link: &Link, observed: &'a Observed) -> Vec<Option<&'a Program>> {
    let of_sender = |filter: &&Filter| {
        let is_clamp =
            (filter.id.interface, filter.id.hook, filter.id.priority) == (link.index, Hook::Egress, CLAMP_PRIORITY);
        is_clamp || Cookie::of(filter).is_some() && filter.mirror.as_ref().is_some_and(|mirror| mirror.to == link.index)
    };
    let is_sender = matches!(Mark::of(link), Some(Mark::Sender(_)));
    let filters = observed.filters.iter().filter(|filter| is_sender && filter.id.handle != 0 && of_sender(filter));
    filters.map(|filter| observed.program(filter)).collect()
}

fn mirror(filter: &Filter, observed: &Observed) -> Option<MirrorFilter> {
    Cookie::of(filter)?;
    if observed.link(filter.id.interface).is_some_and(is_ours) {
        return None;
    }
    let mirror = filter.mirror.as_ref()?;
    Some(MirrorFilter {
        interface: name(observed, filter.id.interface),
        direction: match filter.id.hook {
            Hook::Ingress => "Ingress",
            Hook::Egress => "Egress",
        },
        priority: filter.id.priority,
        device: name(observed, mirror.to),
        packets: mirror.counters.packets,
        bytes: mirror.counters.bytes,
        failed: mirror.counters.failed,
    })
}

/// Differences between a sender and its mark.
fn drift(link: &Link, mark: &SenderMark, observed: &Observed) -> Vec<String> {
    let key = SenderKey { tap: mark.tap.clone(), pod: mark.pod.clone() };
    let has = |hook: Hook| {
        observed.filters.iter().any(|filter| {
            let mirrors = filter.mirror.as_ref().is_some_and(|mirror| mirror.to == link.index && mirror.as_ours);
            let own = Cookie::of(filter).is_some_and(|cookie| cookie.owner == sender_hash(&key) && cookie.hook == hook);
            mirrors && own && filter.id.interface == mark.interface_index
        })
    };
    let direction = match (has(Hook::Ingress), has(Hook::Egress)) {
        (true, true) => Some(Direction::Both),
        (true, false) => Some(Direction::Ingress),
        (false, true) => Some(Direction::Egress),
        (false, false) => None,
    };
    let mut found = Vec::new();
    match direction {
        None => found.push(format!("{} has no filter on {}", link.name, mark.interface)),
        Some(direction) if config_hash(direction, &observed.destinations(link.index)) != mark.config => {
            found.push(format!("the filters or destinations of {} differ from its mark", link.name));
        }
        Some(direction) => {
            let filters = 1 + usize::from(direction.has_ingress()) + usize::from(direction.has_egress());
            let programs = programs(link, observed);
            let group = |program: Option<&Program>| program.map(|program| (program.group, program.classid));
            let groups: BTreeSet<_> = programs.iter().copied().map(group).collect();
            if groups.len() != 1 || groups.contains(&None) || programs.len() < filters {
                found.push(format!("the programs of {} are incomplete, or of different kinds", link.name));
            }
        }
    }
    found
}

/// Differences between a device and its role.
fn device_drift(link: &Link, observed: &Observed) -> Vec<String> {
    let mut found = Vec::new();
    if !link.up {
        found.push(format!("{} is down", link.name));
    }
    let mut filters = observed.filters.iter().filter(|filter| filter.id.interface == link.index);
    let redirects = |filter: &Filter| {
        let mirror = filter.mirror.as_ref().filter(|mirror| mirror.redirects);
        mirror.and_then(|mirror| observed.link(mirror.to)).is_some_and(is_ours)
    };
    let should_redirect = matches!(Mark::of(link), Some(Mark::Receiver(mark)) if mark.part == Part::Vxlan);
    if should_redirect && !filters.any(redirects) {
        found.push(format!("{} does not redirect what it receives to the receiver's interface", link.name));
    }
    if !observed.is_genuine(link) {
        found.push(format!("{} was created by another program", link.name));
    }
    for mac in observed.diverted(link.index) {
        found.push(format!("{} has forwarding entries of another program for the address {mac:02x?}", link.name));
    }
    if let Some(offloads) = observed.offloads(link.index).filter(|offloads| !offloads.on.is_empty())
        && must_be_off(link, observed)
    {
        found.push(format!("offloads of {} are on: {}", link.name, offloads.on.join(", ")));
    }
    let drops = observed.filters.iter().any(|filter| filter.id.interface == link.index && filter.drops_all);
    if !drops {
        found.push(format!("{} does not drop what it receives", link.name));
    }
    found
}

/// Whether the offloads of a device have to be off: those of an interface, and those of its peer while it has a reader.
fn must_be_off(link: &Link, observed: &Observed) -> bool {
    match Mark::of(link) {
        Some(Mark::Receiver(mark)) if mark.part == Part::Peer => {
            let interface = link.peer.and_then(|interface| observed.link(interface));
            mark.unreported_reader || interface.is_some_and(|interface| is_read(interface, observed))
        }
        _ => true,
    }
}

fn name(observed: &Observed, index: u32) -> String {
    observed.link(index).map(|link| link.name.clone()).unwrap_or_default()
}
