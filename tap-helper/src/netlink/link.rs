use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVxlan,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask,
            LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
        },
    },
};

use super::{connection::Connection, error::NetlinkError, fdb::Mac};

/// A network device as observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent properties, as the kernel reports them")]
pub struct Link {
    /// Its ifindex, which is unique in its namespace and not reused there unless a program requests one on purpose.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it sends nothing of its own accord: no ARP, no multicast, no generated IPv6 address.
    pub autoconf_disabled: bool,
    /// Which headers its frames have.
    pub layer: LinkLayer,
    /// Its address; zero if that is not an Ethernet address.
    pub mac: Mac,
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// Its device group.
    pub group: u32,
    /// Its alias, empty if it has none.
    pub alias: String,
    /// Its driver's name, empty for physical devices and for loopback.
    pub kind: String,
    /// Settings of a VXLAN device; none for others.
    pub vxlan: Option<Vxlan>,
    /// Whether an XDP program sees its frames before everything else.
    pub xdp: bool,
    /// Whether something wants all of its frames: a capture, or a bridge. The flags that the kernel reports do not tell it of captures.
    pub promiscuous: bool,
    /// The ifindex of a veth device's peer, if that is in the same namespace.
    pub peer: Option<u32>,
    /// The number of the namespace that a VXLAN device's socket or a veth device's peer is in, if that is another one than its own.
    pub lower_netns: Option<i32>,
}

/// The kind of a device's frames (`ARPHRD_`, `include/uapi/linux/if_arp.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkLayer {
    /// With an Ethernet header.
    Ethernet,
    /// Those of a loopback device.
    Loopback,
    /// Any other: those of a tun device, for example.
    #[default]
    Other,
}

/// Settings of a VXLAN device.
///
/// Its address family is missing: the kernel does not report it for a device without a default remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier of frames for the device.
    pub vni: u32,
    /// UDP port on which it listens.
    pub port: u16,
    /// UDP ports it sends from: the first one, and the first one that it does not use
    /// (`udp_flow_src_port`, include/net/udp.h).
    pub source_ports: (u16, u16),
    /// Whether it learns the location of hosts from received frames.
    pub learning: bool,
    /// How many MAC addresses can have forwarding entries at the same time; 0 for any number.
    pub addresses: u32,
}

/// A VXLAN device to create.
#[derive(Clone, Debug)]
pub struct NewVxlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its settings.
    pub vxlan: Vxlan,
    /// Whether its socket is of IPv6.
    pub ipv6: bool,
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// Its device group, set from the first moment.
    pub group: u32,
}

/// All devices of the namespace.
pub async fn links(netlink: &Connection) -> Result<Vec<Link>, NetlinkError> {
    netlink.dump(RouteNetlinkMessage::GetLink(query(0)), "list devices", new_link).await
}

/// A device, if it exists.
pub async fn link(netlink: &Connection, index: u32) -> Result<Option<Link>, NetlinkError> {
    let operation = format!("get device {index}");
    netlink.get(RouteNetlinkMessage::GetLink(query(index)), &operation, new_link).await
}

/// The MTU of a device.
pub async fn link_mtu(netlink: &Connection, index: u32) -> Result<Option<u32>, NetlinkError> {
    Ok(link(netlink, index).await?.map(|link| link.mtu).filter(|mtu| *mtu > 0))
}

/// Creates a VXLAN device, down, in the namespace `target`; its UDP socket will be in the namespace of `netlink`.
///
/// Autoconfiguration is disabled as far as one request can do that; [`disable_autoconf`] does the rest. `EEXIST` means that the name
/// is taken in `target` (before Linux 6.15: or in the socket's namespace), or that another device of the socket's namespace has
/// port and VNI.
pub async fn create_vxlan(netlink: &Connection, target: &impl AsFd, new: &NewVxlan<'_>) -> Result<(), NetlinkError> {
    let message = vxlan_message(new, target.as_fd().as_raw_fd());
    create(netlink, message, &format!("create VXLAN device {}", new.name)).await
}

/// Creates a device.
pub(super) async fn create(netlink: &Connection, message: LinkMessage, operation: &str) -> Result<(), NetlinkError> {
    netlink.execute(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, operation).await
}

fn vxlan_message(new: &NewVxlan<'_>, namespace: i32) -> LinkMessage {
    let (low, high) = new.vxlan.source_ports;
    let device = LinkMessageBuilder::<LinkVxlan>::new_with_info_kind(InfoKind::Vxlan);
    let device = without_autoconf(device).mtu(new.mtu).link_group(new.group).setns_by_fd(namespace).name(new.name);
    let device = device.port_range(low, high).limit(new.vxlan.addresses).id(new.vxlan.vni);
    // The zero address: no default remote, but the family is chosen (`vxlan_nl2conf`, drivers/net/vxlan/vxlan_core.c).
    let device = if new.ipv6 { device.remote6(std::net::Ipv6Addr::UNSPECIFIED) } else { device };
    device.learning(new.vxlan.learning).port(new.vxlan.port).build()
}

/// No ARP, and no multicast of its own.
pub(super) fn without_autoconf<T>(device: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
    device.arp(false).multicast(false)
}

/// Sets a device's alias, at most 255 bytes.
pub async fn set_alias(netlink: &Connection, index: u32, alias: &str) -> Result<(), NetlinkError> {
    change(netlink, alias_message(index, alias), &format!("set the alias of device {index}")).await
}

fn alias_message(index: u32, alias: &str) -> LinkMessage {
    LinkUnspec::new_with_index(index).alias(alias).build()
}

/// Disables what a device sends of its own accord, and sets its MTU.
pub async fn disable_autoconf(netlink: &Connection, index: u32, mtu: u32) -> Result<(), NetlinkError> {
    let operation = format!("disable autoconfiguration of device {index}");
    change(netlink, no_autoconf_message(index, mtu), &operation).await?;
    match change(netlink, no_addresses_message(index), &operation).await {
        // A kernel started with ipv6.disable=1 generates no addresses either.
        Err(error) if error.errno == Errno::EAFNOSUPPORT => Ok(()),
        result => result,
    }
}

fn no_autoconf_message(index: u32, mtu: u32) -> LinkMessage {
    without_autoconf(LinkUnspec::new_with_index(index)).mtu(mtu).build()
}

fn no_addresses_message(index: u32) -> LinkMessage {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let device = LinkUnspec::new_with_index(index);
    device.append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode])).build()
}

/// Renames a device that is down.
pub async fn rename_link(netlink: &Connection, index: u32, name: &str) -> Result<(), NetlinkError> {
    change(netlink, rename_message(index, name), &format!("rename device {index} to {name}")).await
}

fn rename_message(index: u32, name: &str) -> LinkMessage {
    LinkUnspec::new_with_index(index).name(name).build()
}

/// Sets a device up. For a VXLAN device this opens its UDP socket: `EADDRINUSE` if another program has the port.
pub async fn up_link(netlink: &Connection, index: u32) -> Result<(), NetlinkError> {
    change(netlink, up_message(index), &format!("set device {index} up")).await
}

fn up_message(index: u32) -> LinkMessage {
    LinkUnspec::new_with_index(index).up().build()
}

/// Sets a device down. A VXLAN device keeps its permanent forwarding entries, and closes its UDP socket.
pub async fn down_link(netlink: &Connection, index: u32) -> Result<(), NetlinkError> {
    change(netlink, down_message(index), &format!("set device {index} down")).await
}

fn down_message(index: u32) -> LinkMessage {
    LinkUnspec::new_with_index(index).down().build()
}

/// `RTM_NEWLINK` without `NLM_F_CREATE`, as `ip` sends it.
async fn change(netlink: &Connection, message: LinkMessage, operation: &str) -> Result<(), NetlinkError> {
    netlink.execute(RouteNetlinkMessage::NewLink(message), 0, operation).await
}

/// Deletes a device and everything attached to it.
pub async fn delete_link(netlink: &Connection, index: u32) -> Result<(), NetlinkError> {
    let message = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build());
    netlink.execute(message, 0, &format!("delete device {index}")).await
}

/// Asks for a device, or with 0 for all, without statistics: they are half of a link's size, and nothing here needs them.
fn query(index: u32) -> LinkMessage {
    let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    LinkUnspec::new_with_index(index).append_extra_attribute(mask).build()
}

fn new_link(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
        _ => None,
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let quiet = flags.contains(LinkFlags::Noarp) && !flags.contains(LinkFlags::Multicast);
        let mut link = Self {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            autoconf_disabled: quiet,
            layer: match message.header.link_layer_type {
                LinkLayerType::Ether => LinkLayer::Ethernet,
                LinkLayerType::Loopback => LinkLayer::Loopback,
                _ => LinkLayer::Other,
            },
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Address(address) => link.mac = address.try_into().unwrap_or_default(),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkNetNsId(id) => link.lower_netns = Some(id),
                LinkAttribute::Promiscuity(count) => link.promiscuous = count > 0,
                LinkAttribute::Xdp(settings) => link.xdp = settings.iter().any(is_attached),
                LinkAttribute::AfSpecUnspec(families) => link.autoconf_disabled &= generates_no_addresses(&families),
                LinkAttribute::LinkInfo(info) => (link.kind, link.vxlan) = driver(info),
                _ => {}
            }
        }
        link.peer = link.peer.filter(|_| link.kind == "veth" && link.lower_netns.is_none());
        link
    }
}

/// Without the family's part, there is no IPv6 on the device at all.
fn generates_no_addresses(families: &[AfSpecUnspec]) -> bool {
    families.iter().all(|family| match family {
        AfSpecUnspec::Inet6(settings) => settings.iter().all(|setting| match setting {
            AfSpecInet6::AddrGenMode(mode) => *mode == In6AddrGenMode::None,
            _ => true,
        }),
        _ => true,
    })
}

fn is_attached(setting: &LinkXdp) -> bool {
    matches!(setting, LinkXdp::Attached(attached) if *attached != XdpAttached::None)
}

fn driver(info: Vec<LinkInfo>) -> (String, Option<Vxlan>) {
    let (mut kind, mut vxlan) = (String::new(), None);
    for part in info {
        match part {
            LinkInfo::Kind(driver) => kind = driver.to_string(),
            LinkInfo::Data(InfoData::Vxlan(settings)) => vxlan = Some(read_vxlan(settings)),
            _ => {}
        }
    }
    (kind, vxlan)
}

fn read_vxlan(settings: Vec<InfoVxlan>) -> Vxlan {
    let mut vxlan = Vxlan { vni: 0, port: 0, source_ports: (0, 0), learning: false, addresses: 0 };
    for setting in settings {
        match setting {
            InfoVxlan::Id(vni) => vxlan.vni = vni,
            InfoVxlan::Port(port) => vxlan.port = port,
            InfoVxlan::PortRange(ports) => vxlan.source_ports = ports,
            InfoVxlan::Learning(learning) => vxlan.learning = learning,
            InfoVxlan::Limit(addresses) => vxlan.addresses = addresses,
            _ => {}
        }
    }
    vxlan
}

#[cfg(test)]
mod tests;
