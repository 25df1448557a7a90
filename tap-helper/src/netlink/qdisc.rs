use super::{
    error::NetlinkError,
    message::{Attributes, CREATE, EXCLUSIVE, Message, u32_at},
    socket::RouteSocket,
};

/// `RTM_NEWQDISC` and its neighbours.
pub(super) const RTM_NEWQDISC: u16 = 36;
pub(super) const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
/// `struct tcmsg`.
pub(super) const TC_FIXED: usize = 20;
/// `TCA_KIND`.
pub(super) const TCA_KIND: u16 = 1;
/// `TCA_OPTIONS`.
pub(super) const TCA_OPTIONS: u16 = 2;
/// `TC_H_CLSACT`, which is `TC_H_INGRESS` (`include/uapi/linux/pkt_sched.h`).
const CLSACT_PARENT: u32 = 0xffff_fff1;
/// `TC_H_MAKE(TC_H_CLSACT, 0)`.
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// What stands at a device's place for ingress classification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QdiscKind {
    /// `clsact`: classifiers for both directions.
    Clsact,
    /// `ingress`, the older one, or something unknown: egress filters sent to it land silently in ingress.
    Ingress,
}

/// A qdisc for ingress classification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// Number of the device.
    pub interface: u32,
    /// Its kind.
    pub kind: QdiscKind,
}

/// All qdiscs for ingress classification in the socket's namespace.
pub fn qdiscs(socket: &mut RouteSocket) -> Result<Vec<Qdisc>, NetlinkError> {
    let message = Message::new(RTM_GETQDISC, 0, &tc_fixed(0, 0, 0, 0));
    socket.dump(&message, "list qdiscs", |payload| {
        let kind = Attributes(payload.get(TC_FIXED..)?).string(TCA_KIND)?;
        (u32_at(payload, 12) == CLSACT_PARENT).then(|| Qdisc {
            interface: u32_at(payload, 4),
            kind: if kind == "clsact" { QdiscKind::Clsact } else { QdiscKind::Ingress },
        })
    })
}

/// Puts a `clsact` on a device. `EEXIST` if there is one, or an `ingress` qdisc.
pub fn add_clsact(socket: &mut RouteSocket, interface: u32) -> Result<(), NetlinkError> {
    socket.request(
        clsact_message(RTM_NEWQDISC, CREATE | EXCLUSIVE, interface),
        &format!("add clsact to device {interface}"),
    )
}

/// Removes the `clsact` of a device with all filters in it.
pub fn remove_clsact(socket: &mut RouteSocket, interface: u32) -> Result<(), NetlinkError> {
    socket.request(clsact_message(RTM_DELQDISC, 0, interface), &format!("remove clsact from device {interface}"))
}

fn clsact_message(kind: u16, flags: u16, interface: u32) -> Message {
    Message::new(kind, flags, &tc_fixed(interface, CLSACT_HANDLE, CLSACT_PARENT, 0)).put_string(TCA_KIND, "clsact")
}

/// `struct tcmsg`.
pub(super) fn tc_fixed(interface: u32, handle: u32, parent: u32, info: u32) -> [u8; TC_FIXED] {
    let mut bytes = [0; TC_FIXED];
    bytes[4..8].copy_from_slice(&interface.to_ne_bytes());
    bytes[8..12].copy_from_slice(&handle.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes[16..20].copy_from_slice(&info.to_ne_bytes());
    bytes
}

#[cfg(test)]
#[path = "qdisc_tests.rs"]
mod tests;
