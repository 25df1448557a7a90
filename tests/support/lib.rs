//! What the tiers share: captures compared as multisets, waiting with a deadline, nodes made of namespaces, and a client of the lab.
#![allow(clippy::must_use_candidate, reason = "tests call most of these for their effect")]

pub mod capture;
pub mod checksum;
pub mod cluster;
pub mod namespace;
pub mod net;
pub mod pcap;
pub mod streams;
pub mod wait;

/// Whether the kernel is emulated (tests/vm). Large tests are smaller then, because everything takes a hundred times as long.
pub fn emulated() -> bool {
    std::env::var_os("PODTAP_EMULATED").is_some()
}
