use super::{
    error::NetlinkError,
    message::{Attributes, Message, u32_at},
    socket::RouteSocket,
};

/// `RTM_GETROUTE`.
const RTM_GETROUTE: u16 = 26;
/// `struct rtmsg`.
const FIXED: usize = 12;
// include/uapi/linux/rtnetlink.h
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A default route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// Whether it is one of IPv6.
    pub ipv6: bool,
    /// Its metric: the lowest one is used.
    pub metric: u32,
    /// Number of the device it leads to; of several, the first.
    pub interface: u32,
}

/// The default routes of the socket's namespace.
pub fn default_routes(socket: &mut RouteSocket) -> Result<Vec<DefaultRoute>, NetlinkError> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut fixed = [0; FIXED];
        fixed[0] = family;
        let message = Message::new(RTM_GETROUTE, 0, &fixed);
        match socket.dump(&message, "list routes", read) {
            Ok(routes) => found.extend(routes),
            // A kernel without IPv6 has none of its routes.
            Err(error) if family == AF_INET6 && error.errno == nix::errno::Errno::EAFNOSUPPORT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn read(payload: &[u8]) -> Option<DefaultRoute> {
    let attributes = Attributes(payload.get(FIXED..)?);
    let (family, prefix, table, kind) = (payload[0], payload[1], payload[4], payload[7]);
    if prefix != 0 || table != RT_TABLE_MAIN || kind != RTN_UNICAST {
        return None;
    }
    let interface = attributes.u32(RTA_OIF).or_else(|| {
        // struct rtnexthop: length, flags, hops, then the device.
        attributes.get(RTA_MULTIPATH).filter(|hops| hops.len() >= 8).map(|hops| u32_at(hops, 4))
    })?;
    Some(DefaultRoute { ipv6: family == AF_INET6, metric: attributes.u32(RTA_PRIORITY).unwrap_or_default(), interface })
}
