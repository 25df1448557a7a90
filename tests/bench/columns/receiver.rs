//! A receiving node that drops mirrored frames on arrival.
//!
//! The `ingress` hook of nftables is the first hook after the driver that does not affect the sender: XDP on a veth device would disable
//! GSO packets, and so change what is measured. Later fragments have no ports, so all of them are dropped.

use std::path::{Path, PathBuf};

use super::{PLAIN_PORT, PODTAP_PORT, ipv6};
use crate::{programs::bounded, stage::Stage};

const TABLE: &str = "podtap_bench";

/// The rule. Removed when dropped.
pub struct Drop(PathBuf);

impl Drop {
    pub fn begin(stage: &Stage) -> Result<Self, String> {
        let from = stage.n1_address;
        let rules = format!(
            "add table netdev {TABLE} {{ chain arrived {{ type filter hook ingress device eth0 priority -500; \
             ip saddr {from} udp dport {{ {PLAIN_PORT}, {PODTAP_PORT} }} drop; \
             ip saddr {from} ip protocol udp ip frag-off & 0x1fff != 0 drop; \
             ip6 saddr {} udp dport {} drop; }} ; }}",
            ipv6::FROM,
            ipv6::PORT,
        );
        let rule = Self(stage.n2.clone());
        bounded(&stage.n2, 5, &["nft", &rules])?;
        Ok(rule)
    }
}

impl std::ops::Drop for Drop {
    fn drop(&mut self) {
        clean_up(&self.0);
    }
}

/// Removes the rule, if it exists.
pub fn clean_up(n2: &Path) {
    let _ = bounded(n2, 5, &["nft", "delete", "table", "netdev", TABLE]);
}
