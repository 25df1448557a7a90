//! The actions that a plan consists of.

use std::{fmt, net::SocketAddr};

use podtap_model::Endpoint;

use crate::{
    bpf::{ReceiveSettings, Settings},
    marks::Cookie,
    netlink::{FilterId, FilterTarget, Mac, Vxlan},
    resource::Resource,
};

/// One change to one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What it is for.
    pub resource: Resource,
    /// What it does.
    pub step: Step,
}

/// What one action does. Devices are given by their ifindex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create a VXLAN device: down, marked, with autoconfiguration disabled.
    CreateDevice {
        /// Its name.
        name: String,
        /// Its attributes; for a sender device, all but the VNI.
        vxlan: Vxlan,
        /// Whether its socket is IPv6.
        ipv6: bool,
        /// Its alias.
        alias: String,
    },
    /// Create a veth pair: down, marked, with autoconfiguration disabled.
    CreatePair {
        /// Names of the peer, which gets the frames from the VXLAN device, and of the interface that consumers read.
        names: [String; 2],
        /// Their aliases.
        aliases: [String; 2],
    },
    /// Turn offload settings of a receiver's interface off.
    TurnOffloadsOff(u32, Vec<String>),
    /// Turn offload settings of a receiver's peer off.
    StartSegmenting(u32, Vec<String>),
    /// Turn offload settings of a receiver's peer on.
    StopSegmenting(u32, Vec<String>),
    /// Set the alias of a receiver's peer to one that says that its interface had a reader that the kernel does not report.
    RecordUnreportedReader(u32, String),
    /// Set a device's alias.
    SetAlias(u32, String),
    /// Disable autoconfiguration of a device, and set its MTU.
    DisableAutoconf(u32),
    /// Add a clsact qdisc to a device of ours.
    AddDeviceClsact(u32),
    /// Remove the root qdisc of a device of ours.
    RemoveRootQdisc(u32),
    /// Drop what arrives on a device of ours.
    AddDrop(u32),
    /// Redirect what arrives on a receiver's VXLAN device to its veth peer, but probes.
    AttachRedirect {
        /// Where it is attached, and which filter it replaces.
        target: FilterTarget,
        /// The veth peer.
        to: u32,
        /// Settings of its program.
        settings: ReceiveSettings,
        /// Marks the filter as ours.
        cookie: Cookie,
    },
    /// Add a destination to a sender device.
    AddDestination(u32, Endpoint),
    /// Remove a destination from a sender device.
    RemoveDestination(u32, Endpoint),
    /// Remove all forwarding entries of a MAC address from a VXLAN device of ours; with the zero address, all destinations.
    RemoveEntries(u32, Mac),
    /// Give a receiver's interface, which is down, its final name.
    Rename(u32, String),
    /// Set a device up.
    Up(u32),
    /// Set a device down.
    Down(u32),
    /// Add a clsact qdisc to a pod's interface.
    AddClsact {
        /// The interface.
        interface: u32,
        /// The sender device whose alias records that PodTap added the clsact.
        device: u32,
        /// The alias it gets if another program added one first.
        alias_if_theirs: String,
    },
    /// Remove the clsact of a pod's interface, if it still has no filter.
    RemoveClsact(u32),
    /// Get programs for the steps of the same resource that follow: those of a set of its tap, which is loaded if necessary.
    LoadPrograms {
        /// Their settings.
        settings: Box<Settings>,
        /// A program whose counters they continue, and whose maps they share if it has the same code.
        predecessor: Option<Predecessor>,
    },
    /// Attach the program that clamps mirrored frames to the path MTU to a sender device.
    AttachClamp(FilterTarget),
    /// Mirror the frames at a hook of an interface that match a program.
    AttachMirror {
        /// Where it is attached, and which filter it replaces.
        target: FilterTarget,
        /// The sender device.
        device: u32,
        /// Marks the filter as ours.
        cookie: Cookie,
    },
    /// Change the settings of running programs.
    Configure {
        /// One of them, by its program ID.
        program: u32,
        /// The settings.
        settings: Box<Settings>,
    },
    /// Remove a filter, or a classifier with all its filters.
    RemoveFilter(FilterId),
    /// Remove a device.
    DeleteDevice(u32),
}

/// A running program of a sender, and the sender's class ID in its maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// Its program ID.
    pub program: u32,
    /// The class ID.
    pub classid: u32,
}

/// For logs: what it does, without every detail.
impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateDevice { name, .. } => write!(formatter, "create the device {name}"),
            Self::CreatePair { names: [_, name], .. } => write!(formatter, "create the interface {name}"),
            Self::TurnOffloadsOff(device, _) => write!(formatter, "turn offloads of device {device} off"),
            Self::StartSegmenting(device, _) => write!(formatter, "segment what device {device} sends"),
            Self::StopSegmenting(device, _) => write!(formatter, "no longer segment what device {device} sends"),
            Self::RecordUnreportedReader(device, _) => {
                write!(formatter, "record that the receiver of device {device} is read")
            }
            Self::SetAlias(device, _) => write!(formatter, "mark device {device} as PodTap's"),
            Self::DisableAutoconf(device) => write!(formatter, "disable autoconfiguration of device {device}"),
            Self::AddDeviceClsact(device) => write!(formatter, "add a clsact to device {device}"),
            Self::RemoveRootQdisc(device) => write!(formatter, "remove the root qdisc of device {device}"),
            Self::AddDrop(device) => write!(formatter, "drop what arrives on device {device}"),
            Self::AttachRedirect { target, to, .. } => {
                write!(formatter, "redirect device {} to device {to}", target.interface)
            }
            Self::AddDestination(_, to) => write!(formatter, "add the destination {}", destination(to)),
            Self::RemoveDestination(_, to) => write!(formatter, "remove the destination {}", destination(to)),
            Self::RemoveEntries(device, _) => write!(formatter, "remove forwarding entries of device {device}"),
            Self::Rename(device, name) => write!(formatter, "rename device {device} to {name}"),
            Self::Up(device) => write!(formatter, "set device {device} up"),
            Self::Down(device) => write!(formatter, "set device {device} down"),
            Self::AddClsact { interface, .. } => write!(formatter, "add a clsact to interface {interface}"),
            Self::RemoveClsact(interface) => write!(formatter, "remove the clsact of interface {interface}"),
            Self::LoadPrograms { .. } => formatter.write_str("prepare the eBPF programs"),
            Self::AttachClamp(_) => formatter.write_str("make mirrored frames fit the path MTU"),
            Self::AttachMirror { target: FilterTarget { interface, hook, .. }, .. } => {
                write!(formatter, "mirror the {hook} of interface {interface}")
            }
            Self::Configure { .. } => formatter.write_str("change the options of the running programs"),
            Self::RemoveFilter(FilterId { interface, hook, .. }) => {
                write!(formatter, "remove the {hook} filter of interface {interface}")
            }
            Self::DeleteDevice(device) => write!(formatter, "delete device {device}"),
        }
    }
}

fn destination(Endpoint { address, port, vni }: &Endpoint) -> String {
    format!("{} with VNI {vni}", SocketAddr::new(*address, *port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Hook;

    #[test]
    fn steps_are_short_in_logs() {
        let to = Endpoint {
            address: "fd00::2".parse().expect("an address"),
            port: 14789,
            vni: 7.try_into().expect("a VNI"),
        };
        assert_eq!(Step::AddDestination(3, to).to_string(), "add the destination [fd00::2]:14789 with VNI 7");
        let names = ["ptap-7".to_owned(), "mirror".to_owned()];
        let pair = Step::CreatePair { names, aliases: ["…".repeat(200), "…".repeat(200)] };
        assert_eq!(pair.to_string(), "create the interface mirror");
        let target = FilterTarget { interface: 2, hook: Hook::Egress, priority: 1, handle: 0 };
        assert_eq!(Step::AttachClamp(target).to_string(), "make mirrored frames fit the path MTU");
    }
}
