use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage},
};

use super::{
    connection::Connection,
    error::NetlinkError,
    link::{create, without_autoconf},
};

/// A veth pair to create: what one device sends, its peer receives.
#[derive(Clone, Copy, Debug)]
pub struct NewPair<'a> {
    /// Names of the two devices.
    pub names: [&'a str; 2],
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// Device group of both, set from the first moment.
    pub group: u32,
}

/// Creates a pair, down, both devices in the namespace of `netlink`, with autoconfiguration disabled as far as one request can do that.
/// `EEXIST` if a name is taken.
pub async fn create_pair(netlink: &Connection, new: NewPair<'_>) -> Result<(), NetlinkError> {
    let operation = format!("create the veth pair {} and {}", new.names[0], new.names[1]);
    create(netlink, pair_message(new), &operation).await
}

fn pair_message(new: NewPair<'_>) -> LinkMessage {
    let [name, peer] = new.names;
    let peer = configured(LinkMessageBuilder::<LinkUnspec>::new(), new, peer).build();
    let device = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth);
    configured(device, new, name).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build()
}

fn configured<T>(device: LinkMessageBuilder<T>, new: NewPair<'_>, name: &str) -> LinkMessageBuilder<T> {
    without_autoconf(device).mtu(new.mtu).link_group(new.group).name(name)
}

#[cfg(test)]
mod tests;
