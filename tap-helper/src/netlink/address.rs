use std::net::IpAddr;

use super::{
    error::NetlinkError,
    message::{Attributes, Message, u32_at},
    socket::RouteSocket,
};

/// `RTM_NEWADDR` and its neighbours.
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// `struct ifaddrmsg`.
const FIXED: usize = 8;
// include/uapi/linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `RT_SCOPE_UNIVERSE`.
const GLOBAL: u8 = 0;

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The device's number.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// Whether it is valid beyond the link.
    pub global: bool,
}

/// All addresses of the socket's namespace.
pub fn addresses(socket: &mut RouteSocket) -> Result<Vec<InterfaceAddress>, NetlinkError> {
    socket.dump(&Message::new(RTM_GETADDR, 0, &[0; FIXED]), "list addresses", read)
}

fn read(payload: &[u8]) -> Option<InterfaceAddress> {
    let attributes = Attributes(payload.get(FIXED..)?);
    // On a point-to-point device ADDRESS is the peer's and LOCAL the own; IPv6 usually has ADDRESS alone.
    let address = attributes.address(IFA_LOCAL).or_else(|| attributes.address(IFA_ADDRESS))?;
    Some(InterfaceAddress { interface: u32_at(payload, 4), address, global: payload[3] == GLOBAL })
}
