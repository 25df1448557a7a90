use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use super::{
    error::NetlinkError,
    message::{Attributes, CREATE, EXCLUSIVE, Message, u16_at, u32_at},
    socket::RouteSocket,
};

/// `RTM_NEWLINK` and its neighbours (include/uapi/linux/rtnetlink.h).
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

/// `struct ifinfomsg`.
pub(super) const FIXED: usize = 16;

// include/uapi/linux/if_link.h
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
pub(super) const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT_RANGE: u16 = 10;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;

/// `AF_INET6`, as the type of an attribute.
const AF_INET6: u16 = 10;
/// `IN6_ADDR_GEN_MODE_NONE`.
const NO_ADDRESSES: u8 = 1;
/// `RTEXT_FILTER_SKIP_STATS`: half of a link's size, and nothing here needs it.
const SKIP_STATISTICS: u32 = 1 << 3;
/// `ARPHRD_LOOPBACK`.
const LOOPBACK: u16 = 772;

// include/uapi/linux/if.h
const IFF_UP: u32 = 1 << 0;
pub(super) const IFF_NOARP: u32 = 1 << 7;
pub(super) const IFF_MULTICAST: u32 = 1 << 12;

/// A network device as it was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number, unique in its namespace for the namespace's life unless somebody asks for a number on purpose.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it says nothing by itself: no ARP, no multicast, no IPv6 address of its own making.
    pub silent: bool,
    /// Whether it is a loopback device.
    pub loopback: bool,
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// Its device group.
    pub group: u32,
    /// Its alias, empty if it has none.
    pub alias: String,
    /// Its driver's name, empty for physical ones and for loopback.
    pub kind: String,
    /// What is special to VXLAN; none for others.
    pub vxlan: Option<Vxlan>,
    /// Number of the other end of a pair of `veth`, if that is in the same namespace.
    pub peer: Option<u32>,
}

/// What is special to a VXLAN device.
///
/// Its address family is missing: the kernel does not show it on a device without a default remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier of frames for the device.
    pub vni: u32,
    /// UDP port on which it listens.
    pub port: u16,
    /// UDP ports it sends from: the first one, and the first one that it does not use
    /// (`udp_flow_src_port`, include/net/udp.h).
    pub source_ports: (u16, u16),
    /// Whether it learns where hosts are from what it receives.
    pub learning: bool,
}

/// A VXLAN device to be made.
#[derive(Clone, Debug)]
pub struct NewVxlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is special to VXLAN.
    pub vxlan: Vxlan,
    /// Whether its socket is of IPv6.
    pub ipv6: bool,
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// Its device group, in place from the first moment.
    pub group: u32,
}

/// All devices of the socket's namespace.
pub fn links(socket: &mut RouteSocket) -> Result<Vec<Link>, NetlinkError> {
    let message = Message::new(RTM_GETLINK, 0, &fixed(0, 0, 0)).put_u32(IFLA_EXT_MASK, SKIP_STATISTICS);
    socket.dump(&message, "list devices", |payload| Some(read(payload)))
}

/// The MTU of a device.
pub fn link_mtu(socket: &mut RouteSocket, index: u32) -> Result<Option<u32>, NetlinkError> {
    let message = Message::new(RTM_GETLINK, 0, &fixed(index, 0, 0)).put_u32(IFLA_EXT_MASK, SKIP_STATISTICS);
    let found = socket.ask(message, &format!("ask for device {index}"), |payload| Some(read(payload).mtu))?;
    Ok(found.first().copied().filter(|mtu| *mtu > 0))
}

/// Makes a VXLAN device, down, in the namespace `target`; its UDP socket will be in the namespace of `socket`.
///
/// It is silent as far as one request can say it; [`silence_link`] does the rest. `EEXIST` means that the name is taken
/// in `target` (before Linux 6.15: or in the socket's namespace), or that another device of the socket's namespace has
/// port and VNI.
pub fn create_vxlan(socket: &mut RouteSocket, target: &impl AsFd, new: &NewVxlan<'_>) -> Result<(), NetlinkError> {
    let namespace = target.as_fd().as_raw_fd();
    socket.request(create_message(new, namespace), &format!("create VXLAN device {}", new.name))
}

fn create_message(new: &NewVxlan<'_>, namespace: i32) -> Message {
    let (low, high) = new.vxlan.source_ports;
    Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &fixed(0, IFF_NOARP, IFF_NOARP | IFF_MULTICAST))
        .put_u32(IFLA_MTU, new.mtu)
        .put_u32(IFLA_GROUP, new.group)
        .put(IFLA_NET_NS_FD, &namespace.to_ne_bytes())
        .put_string(IFLA_IFNAME, new.name)
        .nest(IFLA_LINKINFO, |info| {
            info.put(IFLA_INFO_KIND, b"vxlan").nest(IFLA_INFO_DATA, |data| {
                let range = [low.to_be_bytes(), high.to_be_bytes()].concat();
                let data = data.put(IFLA_VXLAN_PORT_RANGE, &range).put_u32(IFLA_VXLAN_ID, new.vxlan.vni);
                // The zero address: no default remote, but the family is chosen (`vxlan_nl2conf`,
                // drivers/net/vxlan/vxlan_core.c).
                let data = if new.ipv6 { data.put(IFLA_VXLAN_GROUP6, &[0; 16]) } else { data };
                data.put_u8(IFLA_VXLAN_LEARNING, u8::from(new.vxlan.learning)).put_port(IFLA_VXLAN_PORT, new.vxlan.port)
            })
        })
}

/// Sets a device's alias, at most 255 bytes.
pub fn set_alias(socket: &mut RouteSocket, index: u32, alias: &str) -> Result<(), NetlinkError> {
    socket.request(alias_message(index, alias), &format!("set the alias of device {index}"))
}

fn alias_message(index: u32, alias: &str) -> Message {
    Message::new(RTM_NEWLINK, 0, &fixed(index, 0, 0)).put(IFLA_IFALIAS, alias.as_bytes())
}

/// Makes a device say nothing by itself, and gives it an MTU.
pub fn silence_link(socket: &mut RouteSocket, index: u32, mtu: u32) -> Result<(), NetlinkError> {
    let operation = format!("silence device {index}");
    socket.request(silence_message(index, mtu), &operation)?;
    match socket.request(no_addresses_message(index), &operation) {
        // A kernel started with ipv6.disable=1 makes no addresses either.
        Err(error) if error.errno == Errno::EAFNOSUPPORT => Ok(()),
        result => result,
    }
}

fn silence_message(index: u32, mtu: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &fixed(index, IFF_NOARP, IFF_NOARP | IFF_MULTICAST)).put_u32(IFLA_MTU, mtu)
}

fn no_addresses_message(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &fixed(index, 0, 0)).nest(IFLA_AF_SPEC, |families| {
        families.nest(AF_INET6, |inet6| inet6.put_u8(IFLA_INET6_ADDR_GEN_MODE, NO_ADDRESSES))
    })
}

/// Renames a device that is down.
pub fn rename_link(socket: &mut RouteSocket, index: u32, name: &str) -> Result<(), NetlinkError> {
    socket.request(rename_message(index, name), &format!("rename device {index} to {name}"))
}

fn rename_message(index: u32, name: &str) -> Message {
    Message::new(RTM_NEWLINK, 0, &fixed(index, 0, 0)).put_string(IFLA_IFNAME, name)
}

/// Sets a device up. For a VXLAN device this opens its UDP socket: `EADDRINUSE` if another program has the port.
pub fn up_link(socket: &mut RouteSocket, index: u32) -> Result<(), NetlinkError> {
    socket.request(up_message(index), &format!("set device {index} up"))
}

fn up_message(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &fixed(index, IFF_UP, IFF_UP))
}

/// Removes a device and everything attached to it.
pub fn delete_link(socket: &mut RouteSocket, index: u32) -> Result<(), NetlinkError> {
    socket.request(delete_message(index), &format!("delete device {index}"))
}

fn delete_message(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &fixed(index, 0, 0))
}

/// `struct ifinfomsg` of any family.
pub(super) fn fixed(index: u32, flags: u32, change: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// Reads a link without its statistics.
pub(super) fn read(payload: &[u8]) -> Link {
    let flags = u32_at(payload, 8);
    let attributes = Attributes(payload.get(FIXED..).unwrap_or_default());
    let info = attributes.nested(IFLA_LINKINFO);
    let kind = info.and_then(|info| info.string(IFLA_INFO_KIND)).unwrap_or_default();
    let data = info.and_then(|info| info.nested(IFLA_INFO_DATA));
    Link {
        index: u32_at(payload, 4),
        name: attributes.string(IFLA_IFNAME).unwrap_or_default(),
        up: flags & IFF_UP != 0,
        silent: flags & IFF_NOARP != 0 && flags & IFF_MULTICAST == 0 && makes_no_addresses(attributes),
        loopback: u16_at(payload, 2) == LOOPBACK,
        mtu: attributes.u32(IFLA_MTU).unwrap_or_default(),
        group: attributes.u32(IFLA_GROUP).unwrap_or_default(),
        alias: attributes.string(IFLA_IFALIAS).unwrap_or_default(),
        vxlan: data.filter(|_| kind == "vxlan").map(read_vxlan),
        peer: attributes.u32(IFLA_LINK).filter(|_| kind == "veth" && attributes.get(IFLA_LINK_NETNSID).is_none()),
        kind,
    }
}

fn makes_no_addresses(attributes: Attributes<'_>) -> bool {
    let inet6 = attributes.nested(IFLA_AF_SPEC).and_then(|families| families.nested(AF_INET6));
    // Without the family's part there is no IPv6 on the device at all.
    inet6.and_then(|inet6| inet6.u8(IFLA_INET6_ADDR_GEN_MODE)).is_none_or(|mode| mode == NO_ADDRESSES)
}

fn read_vxlan(data: Attributes<'_>) -> Vxlan {
    let range = data.get(IFLA_VXLAN_PORT_RANGE).unwrap_or_default();
    let port = |offset: usize| {
        range.get(offset..offset + 2).and_then(|value| value.try_into().ok()).map_or(0, u16::from_be_bytes)
    };
    Vxlan {
        vni: data.u32(IFLA_VXLAN_ID).unwrap_or_default(),
        port: data.port(IFLA_VXLAN_PORT).unwrap_or_default(),
        source_ports: (port(0), port(2)),
        learning: data.u8(IFLA_VXLAN_LEARNING).unwrap_or_default() != 0,
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
