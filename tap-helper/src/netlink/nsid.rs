use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{connection::Connection, error::NetlinkError};

/// The process whose network namespace is the node's: the helper's pod has hostPID.
const INIT: u32 = 1;

/// The number by which the namespace of the connection refers to the node's: [`Link::lower_netns`](super::Link::lower_netns) of the
/// devices whose socket is there. Negative if no device refers to it.
pub async fn node_nsid(netlink: &Connection) -> Result<i32, NetlinkError> {
    let mut query = NsidMessage::default();
    query.attributes = vec![NsidAttribute::Pid(INIT)];
    let read = |message| match message {
        RouteNetlinkMessage::NewNsId(message) => message.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    };
    let id = netlink.get(RouteNetlinkMessage::GetNsId(query), "look up the node's network namespace", read).await?;
    Ok(id.unwrap_or(-1))
}
