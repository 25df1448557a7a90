//! Requests to the kernel's routing netlink family, behind types of this crate.
//!
//! The only module that knows how messages are laid out. Sockets and framing come from `netlink-sys` and
//! `netlink-packet-core`. The messages themselves are built and read here and not with `netlink-packet-route`: that crate
//! refuses a whole dump when one attribute of somebody else's device or filter has a form it does not know, it lacks
//! three of the attributes of `cls_bpf`, and its API changes every few months. Unit tests compare each message with the
//! bytes that `ip`, `bridge` and `tc` send for the same thing.

mod address;
mod error;
mod ethtool;
mod fdb;
mod filter;
mod link;
mod message;
mod monitor;
mod qdisc;
mod route;
mod socket;
mod veth;

pub use address::{InterfaceAddress, addresses};
pub use error::NetlinkError;
pub use ethtool::{offloads, turn_off};
pub use fdb::{Destination, add_destination, destinations, remove_destination};
pub use filter::{
    Counters, DROP_PRIORITY, FIT_PRIORITY, Filter, FilterId, Hook, Mirror, REDIRECT_PRIORITY, Slot, add_drop_filter,
    add_mirror_filter, add_redirect_filter, filters, put_mirror_program, put_verdict_program, remove_filter,
};
pub use link::{
    Link, NewVxlan, Vxlan, create_vxlan, delete_link, link_mtu, links, rename_link, set_alias, silence_link, up_link,
};
pub use monitor::{Event, Monitor};
pub use qdisc::{Qdisc, QdiscKind, add_clsact, qdiscs, remove_clsact};
pub use route::{DefaultRoute, Way, default_routes, way_to};
pub use socket::RouteSocket;
pub use veth::{NewPair, create_pair};
