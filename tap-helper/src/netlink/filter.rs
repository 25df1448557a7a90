mod message;

use std::fmt;

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcMessage, TcOption},
    },
};

use super::{connection::Connection, error::NetlinkError, qdisc::tc_message};
use message::{
    PROGRAM_NAME, drop_message, loaded, mirror_program_message, read, redirect_program_message, remove_message,
    verdict_program_message,
};

/// The priority of the filter that redirects what a receiver's VXLAN device receives to its interface.
pub const REDIRECT_PRIORITY: u16 = 1;
/// The priority of the filter that drops what a device receives: behind the redirect, before all others.
pub const DROP_PRIORITY: u16 = 2;
/// The priority of the filter at a sender device's egress whose program clamps mirrored frames to the MTU.
pub const CLAMP_PRIORITY: u16 = 3;
/// Where on a device frames are classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Frames that the device received: those that enter the pod.
    Ingress,
    /// Frames that the device is about to send: those that leave the pod.
    Egress,
}

impl fmt::Display for Hook {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What identifies a filter to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterId {
    /// The device's ifindex.
    pub interface: u32,
    /// Where on it.
    pub hook: Hook,
    /// Chain; ours are all in chain 0.
    pub chain: u32,
    /// Priority, lower first.
    pub priority: u16,
    /// `ETH_P_` number, in the machine's byte order.
    pub protocol: u16,
    /// Kind of the classifier.
    pub kind: String,
    /// The classifier's own number; 0 for the classifier itself, which may hold no filter at all.
    pub handle: u32,
}

impl FilterId {
    /// The classifier that holds the filter. To remove it removes all filters of its priority: those of some kinds cannot be removed
    /// one by one.
    #[must_use]
    pub fn classifier(&self) -> Self {
        Self { handle: 0, ..self.clone() }
    }

    /// Whether one classifier holds both filters.
    #[must_use]
    pub fn same_classifier(&self, other: &Self) -> bool {
        self.classifier() == other.classifier()
    }
}

/// A filter as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its identity.
    pub id: FilterId,
    /// Whether it is the one that drops every frame.
    pub drops_all: bool,
    /// ID of its eBPF program, if it has one.
    pub program: Option<u32>,
    /// The class ID that it passes to its program.
    pub classid: u32,
    /// Its first action, if that mirrors or redirects.
    pub mirror: Option<Mirror>,
}

/// Where a filter with a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterTarget {
    /// The device's ifindex.
    pub interface: u32,
    /// Where on it.
    pub hook: Hook,
    /// Priority, lower first.
    pub priority: u16,
    /// The `cls_bpf` filter of this priority that it replaces, between two frames; 0 for a new one.
    pub handle: u32,
}

/// A program of a filter.
#[derive(Clone, Copy, Debug)]
pub struct Classifier<'a> {
    /// The program.
    pub program: BorrowedFd<'a>,
    /// The class ID that the filter passes to it, in `tc_classid`: 16 bits.
    pub classid: u32,
}

impl Classifier<'_> {
    fn loaded(self) -> Vec<TcOption> {
        loaded(self.program.as_raw_fd(), self.classid, PROGRAM_NAME)
    }
}

/// An action that mirrors or redirects frames to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The device's ifindex; 0 when the device was deleted.
    pub to: u32,
    /// Whether it mirrors to the device's egress and continues with the next filter.
    pub as_ours: bool,
    /// Whether it redirects to the device's egress.
    pub redirects: bool,
    /// Its cookie, whose meaning only its owner knows.
    pub cookie: Vec<u8>,
    /// What it counted so far.
    pub counters: Counters,
}

/// What an action counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that reached it, including those that failed; a GSO packet counts as its segments.
    pub packets: u64,
    /// Bytes; of frames that enter, without the 14 of the Ethernet header.
    pub bytes: u64,
    /// Frames that could not be mirrored, or that the device did not take; a GSO packet counts once.
    pub failed: u32,
}

/// All classifiers and filters at one hook of a device, including those of other chains and kinds.
pub async fn filters(netlink: &Connection, interface: u32, hook: Hook) -> Result<Vec<Filter>, NetlinkError> {
    let query = RouteNetlinkMessage::GetTrafficFilter(tc_message(interface, hook.parent()));
    let read = |message| match message {
        RouteNetlinkMessage::NewTrafficFilter(message) => read(&message, interface, hook),
        _ => None,
    };
    netlink.dump(query, &format!("list filters of device {interface}"), read).await
}

/// Redirects the frames for which a program returns -1 to the egress of the device `to`.
///
/// The cookie has at most 16 bytes (`TC_COOKIE_MAX_SIZE`). `ENOENT` if the kernel lacks the classifier or `mirred`.
pub async fn attach_redirect_program(
    netlink: &Connection,
    target: FilterTarget,
    classifier: Classifier<'_>,
    to: u32,
    cookie: &[u8],
) -> Result<(), NetlinkError> {
    let operation = format!("redirect what arrives on device {}", target.interface);
    let message = redirect_program_message(target, classifier.loaded(), to, cookie);
    add(netlink, target, message, &operation).await
}

/// Mirrors the frames for which a program returns -1 to the device `to`, and lets classification continue. Cookie and
/// errors as for a redirect.
pub async fn attach_mirror_program(
    netlink: &Connection,
    target: FilterTarget,
    classifier: Classifier<'_>,
    to: u32,
    cookie: &[u8],
) -> Result<(), NetlinkError> {
    let operation = format!("attach a program with mirred to device {}", target.interface);
    let message = mirror_program_message(target, classifier.loaded(), to, cookie);
    add(netlink, target, message, &operation).await
}

/// Lets a program change the frames that pass, and decide on them.
pub async fn attach_verdict_program(
    netlink: &Connection,
    target: FilterTarget,
    classifier: Classifier<'_>,
) -> Result<(), NetlinkError> {
    let operation = format!("attach a program to device {}", target.interface);
    let message = verdict_program_message(target, classifier.loaded());
    add(netlink, target, message, &operation).await
}

/// Drops every frame that a device receives and that is not redirected, before any other filter and before the network stack.
pub async fn add_drop_filter(netlink: &Connection, interface: u32) -> Result<(), NetlinkError> {
    let target = FilterTarget { interface, hook: Hook::Ingress, priority: DROP_PRIORITY, handle: 0 };
    add(netlink, target, drop_message(target), &format!("drop what arrives on device {interface}")).await
}

/// Creates a filter, or replaces the one with the target's handle.
async fn add(
    netlink: &Connection,
    target: FilterTarget,
    message: TcMessage,
    operation: &str,
) -> Result<(), NetlinkError> {
    let exclusive = if target.handle == 0 { NLM_F_EXCL } else { 0 };
    netlink.execute(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | exclusive, operation).await
}

/// Removes one filter, or a classifier with all its filters.
pub async fn remove_filter(netlink: &Connection, id: &FilterId) -> Result<(), NetlinkError> {
    let operation = format!("remove the filter of priority {} from device {}", id.priority, id.interface);
    netlink.execute(RouteNetlinkMessage::DelTrafficFilter(remove_message(id)), 0, &operation).await
}

#[cfg(test)]
mod tests;
