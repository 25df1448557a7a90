use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType},
};

use super::{connection::Connection, error::NetlinkError};

/// A default route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// Whether it is one of IPv6.
    pub ipv6: bool,
    /// Its metric: the lowest one is used.
    pub metric: u32,
    /// Ifindex of the device it leads to; of several, the first.
    pub interface: u32,
}

/// The default routes of the namespace.
pub async fn default_routes(netlink: &Connection) -> Result<Vec<DefaultRoute>, NetlinkError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        match netlink.dump(RouteNetlinkMessage::GetRoute(query), "list routes", default_route).await {
            Ok(routes) => found.extend(routes),
            // A kernel without IPv6 has none of its routes.
            Err(error) if family == AddressFamily::Inet6 && error.errno == Errno::EAFNOSUPPORT => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn default_route(message: RouteNetlinkMessage) -> Option<DefaultRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    if (header.destination_prefix_length, header.table) != (0, RouteHeader::RT_TABLE_MAIN)
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let find = |read: fn(&RouteAttribute) -> Option<u32>| message.attributes.iter().find_map(read);
    let first_hop = find(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    });
    let metric = find(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    Some(DefaultRoute {
        ipv6: header.address_family == AddressFamily::Inet6,
        metric: metric.unwrap_or_default(),
        interface: find(output).or(first_hop)?,
    })
}

/// The ifindex of the device a route leads to.
fn output(attribute: &RouteAttribute) -> Option<u32> {
    match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    }
}

/// The route that packets to an address take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Ifindex of the device.
    pub interface: u32,
    /// Whether the address is one of this namespace.
    pub local: bool,
    /// The source address of packets that are not bound to one.
    pub source: Option<IpAddr>,
    /// Largest packet, if the route sets it, or path MTU discovery found a narrower path to this address.
    pub mtu: Option<u32>,
}

/// The route to an address; none if there is no route to it.
pub async fn route_to(netlink: &Connection, address: IpAddr) -> Result<Option<Route>, NetlinkError> {
    let query = RouteNetlinkMessage::GetRoute(route_query(address));
    match netlink.get(query, &format!("get the route to {address}"), read_route).await {
        // The routing tables have none, or one that rejects (`fib_props`, net/ipv4/fib_semantics.c), or the kernel lacks IPv6.
        Err(error)
            if matches!(
                error.errno,
                Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL | Errno::EAFNOSUPPORT
            ) =>
        {
            Ok(None)
        }
        result => result,
    }
}

fn route_query(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (family, length, destination) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, 32, RouteAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(address)),
    };
    (message.header.address_family, message.header.destination_prefix_length) = (family, length);
    message.attributes = vec![RouteAttribute::Destination(destination)];
    message
}

fn read_route(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let mtu = |metric: &RouteMetric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    };
    Some(Route {
        interface: message.attributes.iter().find_map(output)?,
        local: message.header.kind == RouteType::Local,
        source: message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        }),
        mtu: message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(mtu),
            _ => None,
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// What the kernel reports of a route by `ip route add 10.0.0.2/32 dev eth0 mtu 1400`, and of one of the type `local`.
    #[test]
    fn a_route_is_read() {
        let mut message = RouteMessage::default();
        message.attributes = vec![RouteAttribute::Oif(3)];
        let read = |message: &RouteMessage| read_route(RouteNetlinkMessage::NewRoute(message.clone()));
        message.header.kind = RouteType::Unicast;
        assert_eq!(read(&message), Some(Route { interface: 3, local: false, source: None, mtu: None }));
        let source = Ipv4Addr::new(10, 0, 0, 1);
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(source)));
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]));
        message.header.kind = RouteType::Local;
        assert_eq!(
            read(&message),
            Some(Route { interface: 3, local: true, source: Some(source.into()), mtu: Some(1400) })
        );
    }
}
