/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Probes: frames that the helper sends through each sender device, and that the receivers count and drop. They prove that mirrored
 * frames arrive. */
#pragma once
#include "constants.h"
#include "kernel.h"

/* What follows the Ethernet header. In network byte order; UIDs are text, padded with zeroes. The Rust side is src/bpf/probe.rs. */
struct probe {
	__u8 version, kind;
	__u16 length; /* of the frame, with its Ethernet header */
	__u32 reserved;
	__u64 sequence;	     /* of the sender's probes, from 0 */
	__u64 time;	     /* nanoseconds since 1970, by the clock of the sending node */
	__u64 frames, bytes; /* SENT by the sender so far */
	__u8 tap[UID_SIZE], pod[UID_SIZE];
};

_Static_assert(__builtin_offsetof(struct probe, sequence) == 8 && __builtin_offsetof(struct probe, tap) == 40 &&
	       sizeof(struct probe) == 40 + 2 * UID_SIZE, "as src/bpf/probe.rs writes it");

#define PROBE_LENGTH (ETHERNET_HEADER + sizeof(struct probe))

/* Whether a frame has the EtherType of probes, which is in network byte order. */
INLINE int has_ethertype(const struct __sk_buff *skb, __u32 ethertype)
{
	const __u8 *data = (const __u8 *)(long)skb->data, *end = (const __u8 *)(long)skb->data_end;
	return data + ETHERNET_HEADER <= end && *(const __u16 *)(data + 12) == (__u16)ethertype;
}
