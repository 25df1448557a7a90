//! The actions that a plan consists of.

use podtap_model::Endpoint;

use crate::{
    bpf::Settings,
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
    /// Turn offload settings of a device off.
    TurnOff(u32, Vec<String>),
    /// Set a device's alias.
    SetAlias(u32, String),
    /// Disable autoconfiguration of a device, and set its MTU.
    DisableAutoconf(u32),
    /// Add a clsact qdisc to a device of ours.
    AddDeviceClsact(u32),
    /// Drop what arrives on a device of ours.
    AddDrop(u32),
    /// Redirect what arrives on a receiver's VXLAN device to its veth peer.
    AddRedirect {
        /// The VXLAN device.
        from: u32,
        /// The veth peer.
        to: u32,
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
        before: Option<Predecessor>,
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
