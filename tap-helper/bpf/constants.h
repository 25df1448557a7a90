/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Constants that the programs share with the tap-helper: build.rs turns every `#define NAME NUMBER` of this file into a Rust
 * constant. */
#pragma once

/* Entries of `configs`. The helper writes the next slot and then sets `active` to it. So a program that runs while a slot is
 * reused has been running since SLOTS - 1 changes: each takes several system calls, and the program, which the kernel does not
 * preempt, microseconds. */
#define SLOTS 16
/* Senders that share the programs and the maps of a tap. A power of two. The state of each is at its class ID. */
#define SENDERS 32
#define RULES 64
#define PEERS 1024
/* Flows of all senders of a set that are remembered, if the tap's options depend on how much of a flow was seen. */
#define FLOWS 16384

/* config.flags */
#define HAS_EXPRESSION 1
#define HAS_INCLUDE 2
#define NEEDS_PORTS 4
#define DEDUPLICATE 8
#define TRUNCATE_OVERSIZE 16
#define LINEARIZE 32
#define LOWER_PORT_MIRRORS 64
/* Destinations on this node, and elsewhere. */
#define LOCAL 128
#define REMOTE 256
#define TRACK_FLOWS 512
/* SYN segments and DNS are mirrored at both ends, whatever DEDUPLICATE says. */
#define BOTH_HANDSHAKES 1024

/* config.truncate: to the headers */
#define TRUNCATE_HEADERS 0xffffffff
/* rule.protocol, network.family: matches every packet */
#define ANY 0
/* Port and protocol of packets that have none. A rule for ports 0 to NO_PORT matches every packet. */
#define NO_PORT 0x10000
#define NO_PROTOCOL 0x100

/* Keys of `counters`. Those of a direction are at direction * DIRECTION_KEYS. */
#define INGRESS 0
#define EGRESS 1
/* The origin of probes, which have no outcome. */
#define PROBE 2
/* Each frame that a classifier sees has one outcome. */
#define MIRRORED 0
#define FILTERED 1
#define SAMPLED_OUT 2
#define RATE_LIMITED 3
#define DEDUPLICATED 4
#define EXPIRED 5
#define CUT_OFF 6
/* What the clamp did to mirrored frames. */
#define TRUNCATED 7
#define OVERSIZED 8
#define FAILED 9
#define DIRECTION_KEYS 10
/* The frames that the clamp dropped because no classifier selected them. */
#define FORGED 20
/* The mirrored frames that left through the sender device, once for each and not for each destination, and the probes. */
#define SENT 21
#define PROBES 22
#define COUNTERS 23

/* Fields of probes. UIDs are text of at most MAX_UID bytes of the model. */
#define ETHERNET_HEADER 14
#define PROBE_VERSION 1
#define SMALL 0
#define FULL_SIZE 1
/* Frames with metadata have the same header, and their JSON after it. */
#define METADATA_VERSION 2
#define UID_SIZE 64
