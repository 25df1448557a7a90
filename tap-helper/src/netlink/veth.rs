use super::{
    error::NetlinkError,
    link::{
        FIXED, IFF_MULTICAST, IFF_NOARP, IFLA_GROUP, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO,
        IFLA_MTU, RTM_NEWLINK, fixed,
    },
    message::{CREATE, EXCLUSIVE, Message},
    socket::RouteSocket,
};

/// `VETH_INFO_PEER` (include/uapi/linux/veth.h).
const VETH_INFO_PEER: u16 = 1;

/// A pair of `veth` devices to be made: what one end sends, the other one receives.
#[derive(Clone, Copy, Debug)]
pub struct NewPair<'a> {
    /// Names of the two ends.
    pub names: [&'a str; 2],
    /// Largest payload of a frame, in bytes.
    pub mtu: u32,
    /// Device group of both, in place from the first moment.
    pub group: u32,
}

/// Makes a pair, down, both ends in the socket's namespace, and silent as far as one request can say it. `EEXIST` if a name is taken.
pub fn create_pair(socket: &mut RouteSocket, new: NewPair<'_>) -> Result<(), NetlinkError> {
    socket.request(pair_message(new), &format!("create the veth pair {} and {}", new.names[0], new.names[1]))
}

fn pair_message(new: NewPair<'_>) -> Message {
    let [near, far] = new.names;
    let end = |message: Message, name: &str| {
        message.put_u32(IFLA_MTU, new.mtu).put_u32(IFLA_GROUP, new.group).put_string(IFLA_IFNAME, name)
    };
    let flags: [u8; FIXED] = fixed(0, IFF_NOARP, IFF_NOARP | IFF_MULTICAST);
    end(Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &flags), near).nest(IFLA_LINKINFO, |info| {
        info.put(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |data| {
            // The other end's attributes follow a header of its own.
            data.nest(VETH_INFO_PEER, |peer| end(peer.put_fixed(&flags), far))
        })
    })
}

#[cfg(test)]
#[path = "veth_tests.rs"]
mod tests;
