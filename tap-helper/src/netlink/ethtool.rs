//! Offload settings of devices, through ethtool's family of generic netlink (Documentation/networking/ethtool-netlink.rst; since
//! Linux 5.8). The numbers of features differ between kernels, their names do not.
//!
//! The crate `ethtool` is not used: it changes no features, and needs another version of `netlink-proto` than `rtnetlink`.

use nix::errno::Errno;
use rtnetlink::packet_core::{DefaultNla, parse_u16};

use super::{
    connection::Connection,
    error::NetlinkError,
    generic::GenericMessage,
    nla::{child, children, nested, number, string, text},
};

/// `GENL_ID_CTRL`, the family that knows the numbers of the others (include/uapi/linux/genetlink.h).
const CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

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
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

/// The settings by which a device passes or builds GSO packets, or leaves checksums to the next device: those that can be changed, by the
/// names that `ethtool -k` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Those that are on.
    pub on: Vec<String>,
    /// Those that are off.
    pub off: Vec<String>,
}

/// Reads the offload settings of a device.
pub async fn offloads(netlink: &Connection, index: u32) -> Result<Offloads, NetlinkError> {
    let message = GenericMessage::new(family(netlink).await?, ETHTOOL_MSG_FEATURES_GET, &[header(index, 0)]);
    let read = |reply: GenericMessage| {
        let changeable = names(&reply.attributes, ETHTOOL_A_FEATURES_HW).into_iter();
        let active = names(&reply.attributes, ETHTOOL_A_FEATURES_ACTIVE);
        let (on, off) = changeable.filter(|name| is_offload(name)).partition(|name| active.contains(name));
        Some(Offloads { on, off })
    };
    let operation = format!("read the offloads of device {index}");
    Ok(netlink.generic(message, &operation, read).await?.unwrap_or_default())
}

/// Turns settings of a device on or off.
pub async fn turn(netlink: &Connection, index: u32, names: &[String], on: bool) -> Result<(), NetlinkError> {
    let message = turn_message(family(netlink).await?, index, names, on);
    let operation = format!("turn {} {} of device {index}", if on { "on" } else { "off" }, names.join(", "));
    netlink.generic(message, &operation, |_| None::<()>).await.map(drop)
}

/// Whether a setting is one of those by which frames differ from those on a wire (net/ethtool/common.c has all names).
fn is_offload(name: &str) -> bool {
    name.starts_with("tx-checksum-")
        || name.ends_with("-segmentation")
        || name.starts_with("tx-gso")
        || name.starts_with("rx-gro")
}

fn turn_message(family: u16, index: u32, names: &[String], on: bool) -> GenericMessage {
    // A bit that is listed without a value is turned off; those that are not listed stay.
    let value = on.then(|| DefaultNla::new(ETHTOOL_A_BITSET_BIT_VALUE, vec![]));
    let bit = |name: &String| {
        let attributes: Vec<DefaultNla> =
            [string(ETHTOOL_A_BITSET_BIT_NAME, name)].into_iter().chain(value.clone()).collect();
        nested(ETHTOOL_A_BITSET_BITS_BIT, &attributes)
    };
    let bits: Vec<DefaultNla> = names.iter().map(bit).collect();
    let wanted = nested(ETHTOOL_A_FEATURES_WANTED, &[nested(ETHTOOL_A_BITSET_BITS, &bits)]);
    GenericMessage::new(family, ETHTOOL_MSG_FEATURES_SET, &[header(index, ETHTOOL_FLAG_OMIT_REPLY), wanted])
}

fn header(index: u32, flags: u32) -> DefaultNla {
    let device = number(ETHTOOL_A_HEADER_DEV_INDEX, index);
    nested(ETHTOOL_A_FEATURES_HEADER, &[device, number(ETHTOOL_A_HEADER_FLAGS, flags)])
}

/// The names in a set of features.
fn names(attributes: &[u8], set: u16) -> Vec<String> {
    let Some(set) = child(attributes, set) else { return Vec::new() };
    let Some(bits) = child(set.value(), ETHTOOL_A_BITSET_BITS) else { return Vec::new() };
    let bits = children(bits.value());
    bits.filter_map(|bit| Some(text(child(bit.value(), ETHTOOL_A_BITSET_BIT_NAME)?.value()))).collect()
}

/// The number of ethtool's family. `ENOENT` if the kernel lacks it.
async fn family(netlink: &Connection) -> Result<u16, NetlinkError> {
    if let Some(known) = netlink.ethtool.get() {
        return Ok(known);
    }
    let operation = "find ethtool's family of generic netlink";
    let message = GenericMessage::new(CONTROLLER, CTRL_CMD_GETFAMILY, &[string(CTRL_ATTR_FAMILY_NAME, "ethtool")]);
    let read = |reply: GenericMessage| parse_u16(child(&reply.attributes, CTRL_ATTR_FAMILY_ID)?.value()).ok();
    let found = netlink.generic(message, operation, read).await?;
    netlink.ethtool.set(found);
    found.ok_or_else(|| NetlinkError::new(operation, Errno::ENOENT))
}

#[cfg(test)]
mod tests;
