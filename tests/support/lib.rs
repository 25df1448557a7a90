//! Shared by the test tiers: captures compared as multisets, waiting with a deadline, nodes made of namespaces, and a client of
//! the lab.
#![allow(clippy::must_use_candidate, reason = "tests call most of these for their effects")]

pub mod browser;
pub mod capture;
pub mod checksum;
pub mod child;
pub mod cluster;
pub mod collector;
pub mod cores;
pub mod exporter;
pub mod frames;
pub mod http;
pub mod https;
pub mod mmdb;
pub mod namespace;
pub mod net;
pub mod pcap;
pub mod rpcap;
pub mod shop;
pub mod streams;
pub mod wait;
pub mod yardstick;

/// Whether the kernel is emulated (tests/vm). Everything takes a hundred times as long then, so large tests are scaled down.
pub fn emulated() -> bool {
    std::env::var_os("PODTAP_EMULATED").is_some()
}
