use std::net::IpAddr;

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
};

use super::{connection::Connection, error::NetlinkError};

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The device's ifindex.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Whether it is valid beyond the link.
    pub global: bool,
}

/// All addresses of the namespace.
pub async fn addresses(netlink: &Connection) -> Result<Vec<InterfaceAddress>, NetlinkError> {
    let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let read = |message| match message {
        RouteNetlinkMessage::NewAddress(message) => read(&message),
        _ => None,
    };
    netlink.dump(query, "list addresses", read).await
}

fn read(message: &AddressMessage) -> Option<InterfaceAddress> {
    // On a point-to-point device, Address is the peer's and Local the own; IPv6 usually has Address alone.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let global = message.header.scope == AddressScope::Universe;
    Some(InterfaceAddress { interface: message.header.index, address: local.or(address)?, global })
}
