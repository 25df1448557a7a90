use std::net::IpAddr;

use super::{
    error::NetlinkError,
    message::{APPEND, Attributes, CREATE, Message, u32_at},
    socket::RouteSocket,
};

/// `RTM_NEWNEIGH` and its neighbours.
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
/// `struct ndmsg`.
const FIXED: usize = 12;
// include/uapi/linux/neighbour.h
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NTF_SELF: u8 = 1 << 1;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
/// Family of forwarding entries.
pub(super) const PF_BRIDGE: u8 = 7;

/// A VXLAN endpoint to which a device sends every frame that it has no better entry for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Its address.
    pub address: IpAddr,
    /// Its UDP port.
    pub port: u16,
    /// Network identifier that it expects.
    pub vni: u32,
}

/// The default entries (those of the zero MAC address) of a device; `device` says what the device itself has as
/// UDP port and VNI, which the kernel leaves out of entries that have the same.
pub fn destinations(
    socket: &mut RouteSocket,
    index: u32,
    device: (u16, u32),
) -> Result<Vec<Destination>, NetlinkError> {
    let message = Message::new(RTM_GETNEIGH, 0, &fixed(index, 0, 0));
    let operation = format!("list the destinations of device {index}");
    socket.dump(&message, &operation, |payload| {
        // The kernel takes the number for that of a bridge port and may list other devices, too.
        (u32_at(payload, 4) == index).then(|| read(payload, device)).flatten()
    })
}

/// Sends all frames of a device to one more destination. It must be of the address family of the device.
pub fn add_destination(socket: &mut RouteSocket, index: u32, to: Destination) -> Result<(), NetlinkError> {
    // APPEND alone, without CREATE, is refused for the first one (`vxlan_fdb_update`, drivers/net/vxlan/vxlan_core.c).
    let operation = format!("send the frames of device {index} to {} port {} VNI {}", to.address, to.port, to.vni);
    socket.request(entry(RTM_NEWNEIGH, CREATE | APPEND, index, to), &operation)
}

/// Sends no frames of a device to a destination any more.
pub fn remove_destination(socket: &mut RouteSocket, index: u32, to: Destination) -> Result<(), NetlinkError> {
    let operation = format!("end sending the frames of device {index} to {} port {}", to.address, to.port);
    socket.request(entry(RTM_DELNEIGH, 0, index, to), &operation)
}

fn entry(kind: u16, flags: u16, index: u32, to: Destination) -> Message {
    Message::new(kind, flags, &fixed(index, NUD_NOARP | NUD_PERMANENT, NTF_SELF))
        .put(NDA_LLADDR, &[0; 6])
        .put_address(NDA_DST, to.address)
        .put_port(NDA_PORT, to.port)
        .put_u32(NDA_VNI, to.vni)
}

fn fixed(index: u32, state: u16, flags: u8) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[0] = PF_BRIDGE;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

fn read(payload: &[u8], device: (u16, u32)) -> Option<Destination> {
    let attributes = Attributes(payload.get(FIXED..)?);
    if attributes.get(NDA_LLADDR)? != [0; 6] {
        return None;
    }
    Some(Destination {
        address: attributes.address(NDA_DST)?,
        port: attributes.port(NDA_PORT).unwrap_or(device.0),
        vni: attributes.u32(NDA_VNI).unwrap_or(device.1),
    })
}

#[cfg(test)]
#[path = "fdb_tests.rs"]
mod tests;
