//! The vocabulary of plans.

use tap_wire::Endpoint;

use crate::{
    bpf::Settings,
    marks::Cookie,
    netlink::{FilterId, FilterTarget, Hook, Vxlan},
};

/// Identity of a sender.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SenderKey {
    /// UID of the tap.
    pub tap: String,
    /// UID of the pod.
    pub pod: String,
}

impl SenderKey {
    /// That of a wanted sender.
    #[must_use]
    pub fn of(sender: &tap_wire::Sender) -> Self {
        Self { tap: sender.tap.clone(), pod: sender.pod.uid.clone() }
    }
}

/// On whose behalf something is done. Failures of one resource do not touch the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A sender.
    Sender(SenderKey),
    /// A receiver: UID of its tap, and its VNI.
    Receiver(String, u32),
    /// Something of ours that does not say, or no longer, whose it is.
    Leftover,
}

/// One change to one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// On whose behalf.
    pub resource: Resource,
    /// What.
    pub step: Step,
}

/// What one action does. Devices are named by their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create a VXLAN device: down, marked, with autoconfiguration disabled.
    CreateDevice {
        /// Its name.
        name: String,
        /// Everything but, for a sender, the VNI.
        vxlan: Vxlan,
        /// Whether its tunnel is of IPv6.
        ipv6: bool,
        /// Its alias.
        alias: String,
    },
    /// Create a veth pair: down, marked, with autoconfiguration disabled.
    CreatePair {
        /// Names of the near and the far end.
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
    /// Put a clsact on a device of ours.
    AddDeviceClsact(u32),
    /// Drop what arrives on a device of ours.
    AddDrop(u32),
    /// Send what arrives on a receiver's VXLAN device to the near end of its pair.
    AddRedirect {
        /// The VXLAN device.
        from: u32,
        /// The near end.
        to: u32,
        /// The mark.
        cookie: Cookie,
    },
    /// One more destination of a sender device.
    AddDestination(u32, Endpoint),
    /// One less.
    RemoveDestination(u32, Endpoint),
    /// Give a receiver's interface, which is down, its final name.
    Rename(u32, String),
    /// Set a device up.
    Up(u32),
    /// Put a clsact on a pod's interface.
    AddClsact {
        /// The interface.
        interface: u32,
        /// The sender device whose alias says that PodTap made the clsact.
        device: u32,
        /// The alias it gets if somebody else was faster.
        alias_if_theirs: String,
    },
    /// Remove the clsact of a pod's interface, if there is still no filter in it.
    RemoveClsact(u32),
    /// Copy what passes a hook of an interface.
    AddFilter {
        /// The interface.
        interface: u32,
        /// Where on it.
        hook: Hook,
        /// Priority of the filter.
        priority: u16,
        /// The sender device.
        device: u32,
        /// The mark.
        cookie: Cookie,
    },
    /// Load programs for the steps of the same resource that follow.
    LoadPrograms {
        /// What they are told.
        settings: Box<Settings>,
        /// A program whose counters they go on with, and which they join if it is of the same kind.
        before: Option<u32>,
    },
    /// Attach the program that clamps mirrored frames to the path MTU to a sender device.
    AttachClamp(FilterTarget),
    /// Copy what passes a hook of an interface, and what a program wants.
    PutFilter {
        /// Where, and in whose place.
        target: FilterTarget,
        /// The sender device.
        device: u32,
        /// The mark.
        cookie: Cookie,
    },
    /// Tell running programs something else.
    Configure {
        /// One of them.
        program: u32,
        /// What.
        settings: Box<Settings>,
    },
    /// Remove a filter.
    RemoveFilter(FilterId),
    /// Remove a device.
    DeleteDevice(u32),
}
