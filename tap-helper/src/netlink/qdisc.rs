use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcHandle, TcMessage},
    },
};

use super::{connection::Connection, error::NetlinkError};

const CLSACT: &str = "clsact";
/// What a device without a queue shows in the root position, as those that PodTap creates.
const NOQUEUE: &str = "noqueue";

/// The kind of a qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QdiscKind {
    /// `clsact`: classifiers for both directions.
    Clsact,
    /// `ingress`, the older one, or something unknown: egress filters sent to it land silently in ingress.
    Ingress,
    /// One in the root position, which may delay, drop or repeat what the device sends.
    Root,
}

/// A qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// The device's ifindex.
    pub interface: u32,
    /// Its kind.
    pub kind: QdiscKind,
}

/// All qdiscs for classification or in the root position in the namespace.
pub async fn qdiscs(netlink: &Connection) -> Result<Vec<Qdisc>, NetlinkError> {
    let query = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let read = |message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(message) => {
            let kind = match (message.header.parent, kind(&message)?) {
                (TcHandle::CLSACT, CLSACT) => QdiscKind::Clsact,
                (TcHandle::CLSACT, _) => QdiscKind::Ingress,
                (TcHandle::ROOT, kind) if kind != NOQUEUE => QdiscKind::Root,
                _ => return None,
            };
            Some(Qdisc { interface: ifindex(&message), kind })
        }
        _ => None,
    };
    netlink.dump(query, "list qdiscs", read).await
}

/// Adds a `clsact` to a device. `EEXIST` if it has one, or an `ingress` qdisc.
pub async fn add_clsact(netlink: &Connection, interface: u32) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::NewQueueDiscipline(clsact_message(interface));
    netlink.execute(message, NLM_F_CREATE | NLM_F_EXCL, &format!("add clsact to device {interface}")).await
}

/// Removes the `clsact` of a device with all filters in it.
pub async fn remove_clsact(netlink: &Connection, interface: u32) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(clsact_message(interface));
    netlink.execute(message, 0, &format!("remove clsact from device {interface}")).await
}

/// Removes the qdisc in the root position of a device, which has no queue then.
pub async fn remove_root_qdisc(netlink: &Connection, interface: u32) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::DelQueueDiscipline(tc_message(interface, TcHandle::ROOT));
    netlink.execute(message, 0, &format!("remove the root qdisc of device {interface}")).await
}

fn clsact_message(interface: u32) -> TcMessage {
    let handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
    let mut message = tc_message(interface, TcHandle::CLSACT);
    message.header.handle = handle;
    message.attributes = vec![TcAttribute::Kind(CLSACT.to_owned())];
    message
}

/// A message about something on a device. An ifindex is never negative (`dev_new_index`, net/core/dev.c).
pub(super) fn tc_message(interface: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(interface.cast_signed());
    message.header.parent = parent;
    message
}

pub(super) fn ifindex(message: &TcMessage) -> u32 {
    message.header.index.cast_unsigned()
}

/// The kind of a qdisc or filter.
pub(super) fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
