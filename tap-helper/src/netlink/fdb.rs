use std::net::IpAddr;

use nix::libc::{NUD_NOARP, NUD_PERMANENT};
use podtap_model::Endpoint;
use rtnetlink::{
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, parse_ip},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};

use super::{connection::Connection, error::NetlinkError};

/// The default entries (those of the zero MAC address) of a device: the endpoints that it sends every frame to. `device` is the
/// UDP port and VNI of the device itself, which the kernel leaves out of entries that have the same.
pub async fn destinations(netlink: &Connection, index: u32, device: (u16, u32)) -> Result<Vec<Endpoint>, NetlinkError> {
    let mut query = NeighbourMessage::default();
    (query.header.family, query.header.ifindex) = (AddressFamily::Bridge, index);
    let operation = format!("list the destinations of device {index}");
    let read = |message| match message {
        // The kernel takes the ifindex for that of a bridge port and may list other devices, too.
        RouteNetlinkMessage::NewNeighbour(message) if message.header.ifindex == index => read(&message, device),
        _ => None,
    };
    netlink.dump(RouteNetlinkMessage::GetNeighbour(query), &operation, read).await
}

/// Adds a destination to a device. It must be of the address family of the device.
pub async fn add_destination(netlink: &Connection, index: u32, to: Endpoint) -> Result<(), NetlinkError> {
    // APPEND alone, without CREATE, is refused for the first one (`vxlan_fdb_update`, drivers/net/vxlan/vxlan_core.c).
    let operation = format!("add destination {} port {} VNI {} to device {index}", to.address, to.port, to.vni);
    let message = RouteNetlinkMessage::NewNeighbour(entry(index, to));
    netlink.execute(message, NLM_F_CREATE | NLM_F_APPEND, &operation).await
}

/// Removes a destination from a device.
pub async fn remove_destination(netlink: &Connection, index: u32, to: Endpoint) -> Result<(), NetlinkError> {
    let operation = format!("remove destination {} port {} VNI {} from device {index}", to.address, to.port, to.vni);
    netlink.execute(RouteNetlinkMessage::DelNeighbour(entry(index, to)), 0, &operation).await
}

fn entry(index: u32, to: Endpoint) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Other(NUD_NOARP | NUD_PERMANENT);
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(vec![0; 6]),
        NeighbourAttribute::Destination(to.address.into()),
        NeighbourAttribute::Port(to.port),
        NeighbourAttribute::Vni(to.vni.get()),
    ];
    message
}

fn read(message: &NeighbourMessage, (port, vni): (u16, u32)) -> Option<Endpoint> {
    let (mut port, mut vni, mut address, mut is_default) = (port, vni, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => is_default = *mac == [0; 6],
            NeighbourAttribute::Destination(to) => address = address_of(to),
            NeighbourAttribute::Port(other) => port = *other,
            NeighbourAttribute::Vni(other) => vni = *other,
            _ => {}
        }
    }
    // No receiver has VNI 0, which only an entry made by hand can have.
    let endpoint = Endpoint { address: address?, port, vni: vni.try_into().ok()? };
    is_default.then_some(endpoint)
}

/// The address of an entry: its family is that of bridges, so only the length tells IPv4 from IPv6.
fn address_of(destination: &NeighbourAddress) -> Option<IpAddr> {
    match destination {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => parse_ip(bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
