//! Requests to the kernel's routing netlink family, to ethtool's and to nftables, behind types of this crate.
//!
//! Messages and their builders are those of `rtnetlink` and `netlink-packet-route`; no other module names these crates, since their API
//! changes every few months. [`nla`] adds what they lack, [`decode`] says why replies are parsed attribute by attribute. Unit
//! tests compare each request with the bytes that `ip`, `bridge`, `tc` and `ethtool` send for the same thing.

mod address;
#[cfg(test)]
mod captured;
mod connection;
mod conntrack;
mod decode;
mod error;
mod ethtool;
mod fdb;
mod filter;
mod generic;
mod link;
mod netfilter;
mod nftables;
mod nla;
mod nsid;
mod qdisc;
mod route;
mod subscription;
mod veth;

pub use address::{InterfaceAddress, addresses};
pub use connection::Connection;
pub use conntrack::{ExistingTranslations, Translations};
pub use error::{NetlinkError, NetnsError};
pub use ethtool::{Offloads, offloads, turn};
pub use fdb::{ForwardingEntry, Mac, ZERO, add_destination, forwarding, remove_destination, remove_entries};
pub use filter::{
    CLAMP_PRIORITY, Classifier, DROP_PRIORITY, Filter, FilterId, FilterTarget, Hook, REDIRECT_PRIORITY,
    add_drop_filter, attach_mirror_program, attach_redirect_program, attach_verdict_program, filters, remove_filter,
};
#[cfg(test)]
pub use filter::{Counters, Mirror};
pub use link::{
    Link, LinkLayer, NewVxlan, Vxlan, create_vxlan, delete_link, disable_autoconf, down_link, link, link_mtu, links,
    rename_link, set_alias, up_link,
};
pub use nftables::SourceFilter;
pub use nsid::node_nsid;
pub use qdisc::{Qdisc, QdiscKind, add_clsact, qdiscs, remove_clsact, remove_root_qdisc};
pub use route::{DefaultRoute, default_routes, route_to};
pub use subscription::{Event, Subscription};
pub use veth::{NewPair, create_pair};
