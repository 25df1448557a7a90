//! Offload settings of devices, through ethtool's family of generic netlink (Documentation/networking/ethtool-netlink.rst; since
//! Linux 5.8). The numbers of features differ between kernels, their names do not.

use nix::errno::Errno;

use super::{
    error::NetlinkError,
    message::{Attributes, Message},
    socket::RouteSocket,
};

/// `GENL_ID_CTRL`, the family that knows the numbers of the others (include/uapi/linux/genetlink.h).
const CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// `struct genlmsghdr`.
const FIXED: usize = 4;

// include/uapi/linux/ethtool_netlink.h
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_HEADER_FLAGS: u16 = 3;
const ETHTOOL_FLAG_OMIT_REPLY: u32 = 1 << 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
/// `NLA_F_NESTED`, which this family insists on.
const NESTED: u16 = 1 << 15;

/// The settings by which a device lets superframes pass, makes them, or leaves checksums to whoever comes next: those of them that are
/// on and can be turned off, by the names that `ethtool -k` shows.
pub fn offloads(socket: &mut RouteSocket, index: u32) -> Result<Vec<String>, NetlinkError> {
    let family = family(socket)?;
    let message = header(family, ETHTOOL_MSG_FEATURES_GET, index, 0);
    let found = socket.generic.ask(message, &format!("read the offloads of device {index}"), |payload| {
        let attributes = Attributes(payload.get(FIXED..)?);
        let changeable = names(attributes, ETHTOOL_A_FEATURES_HW);
        let active = names(attributes, ETHTOOL_A_FEATURES_ACTIVE).into_iter();
        Some(active.filter(|name| is_offload(name) && changeable.contains(name)).collect())
    })?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// Turns settings of a device off.
pub fn turn_off(socket: &mut RouteSocket, index: u32, names: &[String]) -> Result<(), NetlinkError> {
    let family = family(socket)?;
    let operation = format!("turn off {} of device {index}", names.join(", "));
    socket.generic.ask(off_message(family, index, names), &operation, |_| None::<()>).map(drop)
}

/// Whether a setting is one of those by which frames differ from those on a wire (net/ethtool/common.c has all names).
fn is_offload(name: &str) -> bool {
    name.starts_with("tx-checksum-")
        || name.ends_with("-segmentation")
        || name.starts_with("tx-gso")
        || name.starts_with("rx-gro")
}

fn off_message(family: u16, index: u32, names: &[String]) -> Message {
    // A bit that is listed without a value is turned off; those that are not listed stay.
    let bit = |bits: Message, name: &String| {
        bits.nest(ETHTOOL_A_BITSET_BITS_BIT | NESTED, |bit| bit.put_string(ETHTOOL_A_BITSET_BIT_NAME, name))
    };
    header(family, ETHTOOL_MSG_FEATURES_SET, index, ETHTOOL_FLAG_OMIT_REPLY)
        .nest(ETHTOOL_A_FEATURES_WANTED | NESTED, |wanted| {
            wanted.nest(ETHTOOL_A_BITSET_BITS | NESTED, |bits| names.iter().fold(bits, bit))
        })
}

fn header(family: u16, command: u8, index: u32, flags: u32) -> Message {
    Message::new(family, 0, &[command, 1, 0, 0]).nest(ETHTOOL_A_FEATURES_HEADER | NESTED, |header| {
        header.put_u32(ETHTOOL_A_HEADER_DEV_INDEX, index).put_u32(ETHTOOL_A_HEADER_FLAGS, flags)
    })
}

/// The names in a set of features.
fn names(attributes: Attributes<'_>, set: u16) -> Vec<String> {
    let bits = attributes.nested(set).and_then(|set| set.nested(ETHTOOL_A_BITSET_BITS));
    let bits = bits.into_iter().flat_map(Attributes::iter);
    bits.filter_map(|(_, bit)| Attributes(bit).string(ETHTOOL_A_BITSET_BIT_NAME)).collect()
}

/// The number of ethtool's family. `ENOENT` if the kernel lacks it.
fn family(socket: &mut RouteSocket) -> Result<u16, NetlinkError> {
    if let Some(known) = socket.ethtool {
        return Ok(known);
    }
    let operation = "find ethtool's family of generic netlink";
    let message =
        Message::new(CONTROLLER, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0]).put_string(CTRL_ATTR_FAMILY_NAME, "ethtool");
    let found = socket.generic.ask(message, operation, |payload| {
        let number = Attributes(payload.get(FIXED..)?).get(CTRL_ATTR_FAMILY_ID)?;
        number.try_into().ok().map(u16::from_ne_bytes)
    })?;
    socket.ethtool = found.into_iter().next();
    socket.ethtool.ok_or_else(|| NetlinkError { operation: operation.to_owned(), errno: Errno::ENOENT, text: None })
}

#[cfg(test)]
#[path = "ethtool_tests.rs"]
mod tests;
