use std::net::IpAddr;

use nix::errno::Errno;

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
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
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
            Err(error) if family == AF_INET6 && error.errno == Errno::EAFNOSUPPORT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Where frames for an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Number of the device.
    pub interface: u32,
    /// Largest packet, if the route says so, or the way to this address was found to be narrower.
    pub mtu: Option<u32>,
}

/// The way to an address; none if there is no route to it.
pub fn way_to(socket: &mut RouteSocket, address: IpAddr) -> Result<Option<Way>, NetlinkError> {
    match socket.ask(way_message(address), &format!("ask for the route to {address}"), read_way) {
        Ok(found) => Ok(found.first().copied()),
        // What the routes say: nowhere, rejected (`fib_props`, net/ipv4/fib_semantics.c), or a kernel without IPv6.
        Err(error)
            if matches!(
                error.errno,
                Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL | Errno::EAFNOSUPPORT
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn way_message(address: IpAddr) -> Message {
    let mut fixed = [0; FIXED];
    (fixed[0], fixed[1]) = if address.is_ipv4() { (AF_INET, 32) } else { (AF_INET6, 128) };
    Message::new(RTM_GETROUTE, 0, &fixed).put_address(RTA_DST, address)
}

fn read_way(payload: &[u8]) -> Option<Way> {
    let attributes = Attributes(payload.get(FIXED..)?);
    let metrics = attributes.nested(RTA_METRICS);
    Some(Way {
        interface: attributes.u32(RTA_OIF)?,
        mtu: metrics.and_then(|metrics| metrics.u32(RTAX_MTU)).filter(|mtu| *mtu > 0),
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::HEADER;

    /// What the kernel says of a route by `ip route add 10.0.0.2/32 dev eth0 mtu 1400`.
    #[test]
    fn a_way_is_read() {
        let message = Message::new(24, 0, &[0; FIXED]).put_u32(RTA_OIF, 3);
        assert_eq!(read_way(&message.clone().finish(1)[HEADER..]), Some(Way { interface: 3, mtu: None }));
        let message = message.nest(RTA_METRICS, |metrics| metrics.put_u32(RTAX_MTU, 1400));
        assert_eq!(read_way(&message.finish(1)[HEADER..]), Some(Way { interface: 3, mtu: Some(1400) }));
    }
}
