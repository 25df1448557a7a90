/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* What the helper and the programs share: one set of maps per tapped pod and tap. src/bpf/layout.rs has the same. */
#pragma once
#include "kernel.h"

/* A configuration is written to a slot that is not in use, then ACTIVE is set to it. A slot is written again only after
 * three more changes: a program that had read the index before the first one has long ended. */
#define SLOTS 4
#define RULES 64
#define NETWORKS 64

#define HAS_EXPRESSION 1
#define HAS_INCLUDE 2
#define NEEDS_PORTS 4
#define DEDUPLICATES 8
#define CUTS_OVERSIZE 16
#define LINEARIZES 32

#define ANY 0
#define TRUNCATE_HEADERS 0xffffffff
/* What rules and packets have where there is no port, or no protocol. */
#define NO_PORT 0x10000
#define NO_PROTOCOL 0x100

/* Addresses are as on the wire; one of IPv4 is the first word. */
struct network {
	__u32 family; /* ANY: every frame; or 4, 6 */
	__u32 address[4];
	__u32 mask[4];
};

/* Protocol, ports and network must hold, all of them. */
struct rule {
	__u32 protocol; /* ANY, or an IP protocol number */
	__u32 first_port, last_port; /* 0 to NO_PORT: any, also none */
	struct network remote;
};

struct config {
	__u64 program; /* which program this is for: the helper's, not ours */
	__u64 bits_per_second, packets_per_second;
	__u32 flags;
	__u32 includes; /* rules before this one include, the others exclude */
	__u32 rules;
	__u32 one_in_flows;
	__u32 truncate;
	__u32 frame_limit; /* longest inner frame, Ethernet header included, that the wire carries in one piece */
	__u32 networks; /* whose peers deduplicate themselves */
	__u32 reserved;
	struct rule rule[RULES];
	struct network network[NETWORKS];
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

/* Exclusive outcomes of the classifiers, once per direction; then those of `fit`. */
enum { MIRRORED, FILTERED, SAMPLED_OUT, OVER_LIMIT, DEDUPLICATED, OUTCOMES };
enum { INGRESS, EGRESS, DIRECTIONS };
enum { TRUNCATED = OUTCOMES * DIRECTIONS, OVERSIZED, FAILED, COUNTERS };

struct counter {
	__u64 frames, bytes; /* as on the wire: a superframe is the frames that it becomes */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

/* Tokens are billionths of a bit and of a frame: nanoseconds times a rate, no division. */
struct bucket {
	struct bpf_spin_lock lock;
	__u32 reserved;
	__u64 last;
	__s64 bits, packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} bucket SEC(".maps");

/* Ports of datagrams in fragments: only the first one has them. */
struct datagram {
	__u32 source[4], destination[4];
	__u32 id, protocol;
};

struct ports {
	__u32 source, destination;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct datagram);
	__type(value, struct ports);
} fragments SEC(".maps");

/* A flow as seen from the pod. */
struct flow {
	__u32 remote[4];
	__u32 local[4];
	__u32 remote_port, local_port, protocol;
};

/* Value: whether the pod opened it. The helper makes it of one entry where nothing is deduplicated. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct flow);
	__type(value, __u32);
} flows SEC(".maps");

/* What is known of a frame. In a map and not on the stack: what the verifier knows of a value there is nothing, so that its
 * states join after the parser, however many ways lead through it. */
struct packet {
	__u32 family; /* 0: not IP, or too short */
	__u32 protocol; /* NO_PROTOCOL */
	__u32 source_known, destination_known;
	__u32 source[4], destination[4];
	__u32 source_port, destination_port; /* NO_PORT */
	__u32 fragment; /* 0, FIRST, LATER */
	__u32 id;
	__u32 l3; /* where the IP header begins */
	__u32 l4; /* where the transport header begins; where the last known header ends, if there is none */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} scratch SEC(".maps");
