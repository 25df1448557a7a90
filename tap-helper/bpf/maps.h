/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The maps: one set for up to SENDERS pods of a tap on a node. The layout of config, rule, network, counter and peer is repeated in
 * src/bpf/layout.rs, where a test compares both. */
#pragma once
#include "sender_state.h"

/* Addresses are in network byte order; an IPv4 address is the first word. */
struct network {
	__u32 family; /* ANY, 4 or 6 */
	__u32 address[4];
	__u32 mask[4];
};

/* Matches if protocol, ports and network all match. */
struct rule {
	__u32 protocol; /* ANY or an IP protocol number */
	__u32 first_port, last_port;
	struct network remote;
};

struct config {
	__u64 program_hash; /* written and read by the helper only */
	__u64 peers_hash; /* likewise: of the keys of `peers` */
	__u64 bits_per_second, packets_per_second;
	__u64 sample_seed; /* the same for all senders of a tap, on every node */
	__u32 flags;
	__u16 include_count; /* the first rules include, the others exclude */
	__u16 rule_count;
	__u32 one_in_flows;
	__u32 truncate; /* bytes, 0 or TRUNCATE_HEADERS */
	__u32 frame_limit; /* longest inner frame that fits the underlay, with its Ethernet header; 0: unknown */
	__u32 probe_ethertype; /* in network byte order */
	/* Payload bytes of each direction of a flow, at most 2^30. */
	__u32 bytes_per_flow; /* after which the flow is cut off; 0: never */
	__u32 exempt_bytes; /* what begins within them is not truncated */
	struct rule rules[RULES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct config);
} configs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} active SEC(".maps");

_Static_assert(FORGED == DIRECTION_KEYS * 2, "the counters of both directions come first");

/* Token bucket. Tokens are billionths of a bit and of a frame: nanoseconds times a rate, without a division. */
struct bucket {
	struct bpf_spin_lock lock;
	__u32 reserved;
	__u64 last;
	__s64 bits, packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SENDERS);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

/* Ports of fragmented datagrams: only the first fragment carries them. They are the same whichever pod sees the datagram. */
struct datagram {
	__u32 source[4], destination[4];
	__u32 id, protocol;
};

struct ports {
	__u32 source, destination;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct datagram);
	__type(value, struct ports);
} fragments SEC(".maps");

struct peer {
	__u32 family; /* 4 or 6 */
	__u32 address[4];
};

/* The addresses of the pods that the same tap mirrors now. The values mean nothing. An entry takes memory only while it exists. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PEERS);
	__type(key, struct peer);
	__type(value, __u32);
} peers SEC(".maps");

/* The two ends of a flow, as its pod sees them. */
struct flow_key {
	__u32 local[4], remote[4];
	__u32 local_port, remote_port; /* or NO_PORT */
	__u32 protocol; /* with the family */
	__u32 classid;
};

/* What was seen of a flow. Times are nanoseconds of CLOCK_MONOTONIC as of the last tick. */
struct flow {
	__u32 bytes[2]; /* payload of each direction */
	__u64 mirrored_at[2]; /* the last mirrored frame of each direction */
	__u64 seen_at; /* the last frame */
};

/* With a single entry if no option needs it: see src/bpf/object.rs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* The parsed headers of a frame. They are in a map and not on the stack: the verifier tracks the value of each stack slot but
 * not of map values, so its states join after the parser, however many paths lead through it. */
struct packet {
	__u32 family; /* 4, 6, or 0: not IP, or too short */
	__u32 protocol; /* or NO_PROTOCOL */
	__u32 source_valid, destination_valid;
	__u32 source[4], destination[4];
	__u32 source_port, destination_port; /* or NO_PORT */
	__u32 fragment; /* 0, FIRST_FRAGMENT, LATER_FRAGMENT */
	__u32 id;
	__u32 selected_by; /* SELECTED_HERE, SELECTED_BY_PEER */
	__u32 from; /* the origin in `selection`; set by the clamp */
	__u32 l3; /* offset of the IP header */
	__u32 l4; /* offset of the transport header; without one, the end of the last header that was parsed */
	__u32 ip_end; /* offset of what follows the IP packet, such as padding, by the length in its header */
	__u32 headers; /* length of all headers through the transport header, if it is needed */
	__u32 tcp_flags; /* set by header_length */
	__u32 part; /* that is mirrored: HEADERS, WHOLE, NOTHING, or 0 */
	__u32 parsed; /* PARSED, or 0 */
	__u32 outcome;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} scratch SEC(".maps");
