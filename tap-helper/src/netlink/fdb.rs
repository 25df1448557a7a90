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

/// The address whose entries are for frames to every address without entries of its own.
pub const ZERO: Mac = [0; 6];
/// The state of entries that do not age.
const STATE: NeighbourState = NeighbourState::Other(NUD_NOARP | NUD_PERMANENT);

/// A MAC address.
pub type Mac = [u8; 6];

/// A forwarding entry of a VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForwardingEntry {
    /// Sends every frame to an endpoint, until it is removed: what [`add_destination`] adds.
    Destination(Endpoint),
    /// Any other one: for frames to one MAC address, over a certain device, or for some time only.
    Other(Mac),
}

/// The forwarding entries of a device. `device` is the UDP port and VNI of the device itself, which the kernel leaves out of entries that
/// have the same.
pub async fn forwarding(
    netlink: &Connection,
    index: u32,
    device: (u16, u32),
) -> Result<Vec<ForwardingEntry>, NetlinkError> {
    let mut query = NeighbourMessage::default();
    (query.header.family, query.header.ifindex) = (AddressFamily::Bridge, index);
    let operation = format!("list the forwarding entries of device {index}");
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

/// Removes all entries of a MAC address from a device; with the zero address, all destinations.
pub async fn remove_entries(netlink: &Connection, index: u32, mac: Mac) -> Result<(), NetlinkError> {
    let operation = format!("remove the forwarding entries of {mac:02x?} from device {index}");
    netlink.execute(RouteNetlinkMessage::DelNeighbour(entries(index, mac)), 0, &operation).await
}

fn entry(index: u32, to: Endpoint) -> NeighbourMessage {
    let mut message = entries(index, ZERO);
    message.attributes.extend([
        NeighbourAttribute::Destination(to.address.into()),
        NeighbourAttribute::Port(to.port),
        NeighbourAttribute::Vni(to.vni.get()),
    ]);
    message
}

fn entries(index: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = STATE;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

fn read(message: &NeighbourMessage, (port, vni): (u16, u32)) -> Option<ForwardingEntry> {
    let (mut port, mut vni, mut address, mut mac) = (port, vni, None, None);
    // Another state is one that ages; other flags and attributes change where frames go.
    let mut plain = message.header.state == STATE && message.header.flags == NeighbourFlags::Own;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            NeighbourAttribute::Destination(to) => address = address_of(to),
            NeighbourAttribute::Port(other) => port = *other,
            NeighbourAttribute::Vni(other) => vni = *other,
            _ => plain = false,
        }
    }
    let mac = mac?;
    // No receiver has VNI 0, which only an entry made by hand can have.
    Some(match (address, vni.try_into()) {
        (Some(address), Ok(vni)) if plain && mac == ZERO => {
            ForwardingEntry::Destination(Endpoint { address, port, vni })
        }
        _ => ForwardingEntry::Other(mac),
    })
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
