//! Every limit, once: the schema, the controller, the tap-helper and the eBPF programs use these.

use std::ops::RangeInclusive;

/// Entries of `include`, and of `exclude`, of a filter. Also port ranges and CIDRs of one entry.
pub const MAX_MATCHES: usize = 16;

/// Rules of a filter, `include` and `exclude` together. Each combination of a port range and a CIDR is one rule.
pub const MAX_RULES: usize = 64;

/// Bytes of a filter expression.
pub const MAX_EXPRESSION: usize = 1024;

/// Instructions of a compiled filter expression. One of [`MAX_EXPRESSION`] bytes compiles to about 400.
pub const MAX_INSTRUCTIONS: usize = 512;

/// Addresses of peers of a tap with `deduplicate`: two of each pod that a tap of a namespace may have.
pub const MAX_PEERS: usize = 1024;

/// Bytes to which frames can be truncated: at least the Ethernet header.
pub const TRUNCATE_BYTES: RangeInclusive<u32> = 14..=65_535;

/// `sample.oneInFlows`.
pub const ONE_IN_FLOWS: RangeInclusive<u32> = 1..=1_000_000;

/// `limit.bitsPerSecond`: 100 Gbit/s.
pub const MAX_BITS_PER_SECOND: u64 = 100_000_000_000;

/// `limit.packetsPerSecond`.
pub const MAX_PACKETS_PER_SECOND: u64 = 1_000_000_000;

/// `limit.bytesPerFlow`: 1 GiB. The programs count in 32 bits.
pub const MAX_BYTES_PER_FLOW: u32 = 1 << 30;

/// `truncate.exemptBytes`: 1 MiB.
pub const MAX_EXEMPT_BYTES: u32 = 1 << 20;

/// MTU of the path between nodes. The minimum is what every IPv4 host must accept (RFC 791); the maximum is the longest
/// IPv4 packet.
pub const UNDERLAY_MTU: RangeInclusive<u32> = 576..=65_535;

/// Seconds after which a mirror stops that is not renewed: a minute to 30 days.
pub const ORPHAN_TIMEOUT_SECONDS: RangeInclusive<u32> = 60..=2_592_000;

/// The orphan timeout unless the policy says otherwise: an hour.
pub const DEFAULT_ORPHAN_TIMEOUT_SECONDS: u32 = 3600;

/// Destinations of a tap.
pub const DESTINATIONS: RangeInclusive<usize> = 1..=4;

/// Senders of a node, however large it is.
pub const MAX_SENDERS: usize = 1000;

/// Most memory that the flow table of a program set takes, in bytes: besides [`SENDER_MEMORY`], if the options of a tap
/// [depend on flows](crate::MirrorOptions::track_flows).
pub const FLOW_TABLE_MEMORY: u64 = 2560 << 10;

/// Most memory that one sender takes, in bytes, besides [`SENDER_MEMORY_PER_CPU`]: its device, its programs and their maps, with
/// [`MAX_PEERS`] peers. That is if it shares the programs, which have room for 32 senders of its tap, with no other. The kernel charges
/// them to the memory cgroup of the tap-helper. A test of the dataplane tier measures it.
pub const SENDER_MEMORY: u64 = 1 << 20;

/// What the maps of its programs take for each CPU that the kernel has room for: counters of 32 senders, and the parsed headers.
pub const SENDER_MEMORY_PER_CPU: u64 = 12 << 10;

/// Source addresses that a node reports: more than the routes to the destinations of a node usually select.
pub const MAX_SOURCE_ADDRESSES: usize = 16;

/// Pods whose probes a receiver reports: as many as a tap of a namespace may have. Of a tap of the cluster with more, nothing is known of
/// the others.
pub const MAX_PODS_WITH_PROBES: usize = 512;

/// Addresses that a node is asked to check: more than one is rare.
pub const MAX_CHECKED_ADDRESSES: usize = 16;

/// Networks from which the receivers of a node accept frames: three times the nodes of the largest supported cluster (5,000), each with
/// addresses of both families, fit. They are one transaction of nftables, for which the kernel allocates memory at once.
pub const MAX_SOURCES: usize = 32_768;

/// Bytes of the labels that metadata tell of a pod, keys and values. So a sender with its details and its status takes no more of a node's
/// budget than its part, with names of a usual length.
pub const MAX_METADATA_LABELS: usize = 150;

/// Bytes of an interface name: `IFNAMSIZ` without the terminating zero (include/uapi/linux/if.h).
pub const MAX_INTERFACE_NAME: usize = 15;

/// Bytes of a UID. Two of them and their separators fit in the alias of a device (`IFALIASZ`, include/uapi/linux/if.h).
pub const MAX_UID: usize = 64;

/// Bytes of all messages in the status of a node. Those of a node on which everything fails are shortened to it: the status shares an
/// object with the spec.
pub const MAX_STATUS_TEXT: usize = 64 << 10;

/// The largest VXLAN network identifier: 24 bits (RFC 7348).
pub const MAX_VNI: u32 = (1 << 24) - 1;

/// UDP port at which nodes and pods receive mirrored frames unless the policy says otherwise. Not 4789 or 8472, which CNIs use.
pub const RECEIVER_PORT: u16 = 14_789;

/// UDP port that the sending side keeps for itself.
pub const SENDER_PORT: u16 = 14_788;
