/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* How much of a flow was seen: for its cutoff, for beginnings that are exempt from truncation, and for handshakes. */
#pragma once
#include "parse.h"

#define FIN 1
#define SYN 2
#define RST 4

/* Types of SCTP chunks (RFC 9260). */
#define INIT 1
#define INIT_ACK 2
#define ABORT 6
#define SHUTDOWN 7
#define SHUTDOWN_ACK 8
#define SHUTDOWN_COMPLETE 14

#define DNS 53

/* How often a header of a flow that is cut off is mirrored. */
#define HEADER_INTERVAL 1000000000ULL
/* After so long without a frame, the next one starts a new flow. As long as conntrack remembers a UDP stream
 * (net/netfilter/nf_conntrack_proto_udp.c). */
#define IDLE_TIMEOUT 120000000000ULL
/* Bytes beyond every limit are not counted (MAX_BYTES_PER_FLOW of the model). */
#define COUNTED (1U << 30)

/* What the transport header, or the first SCTP chunk, says: a frame of a handshake or an end, and whether a new flow starts. Each of the
 * two frames that start one counts: a tap of one direction sees only one of them. */
#define CONTROL 1
#define NEW_FLOW 2
INLINE __u32 control(const struct __sk_buff *skb, const struct packet *packet)
{
	if (packet->fragment == LATER_FRAGMENT)
		return 0;
	if (packet->protocol == TCP) {
		__u32 flags = packet->tcp_flags;
		if (!(flags & (SYN | FIN | RST)))
			return 0;
		return flags & SYN ? CONTROL | NEW_FLOW : CONTROL;
	}
	__u8 chunk = 0;
	if (packet->protocol != SCTP || bpf_skb_load_bytes(skb, packet->l4 + 12, &chunk, 1))
		return 0;
	switch (chunk) {
	case INIT:
	case INIT_ACK:
		return CONTROL | NEW_FLOW;
	case ABORT:
	case SHUTDOWN:
	case SHUTDOWN_ACK:
	case SHUTDOWN_COMPLETE:
		return CONTROL;
	default:
		return 0;
	}
}

INLINE int is_dns(const struct packet *packet)
{
	return (packet->protocol == TCP || packet->protocol == UDP) && (packet->source_port == DNS || packet->destination_port == DNS);
}

/* Whether a frame shows who answers for a Service: SYN and SYN-ACK, and DNS. */
INLINE int is_handshake(const struct packet *packet)
{
	return is_dns(packet) || (packet->protocol == TCP && packet->tcp_flags & SYN);
}

/* Bytes after the headers, of all frames of a GSO packet together. */
INLINE __u32 payload(const struct __sk_buff *skb, const struct packet *packet)
{
	__u32 end = packet->ip_end, headers = packet->headers;
	/* The length in the header of a GSO packet may be 0 (BIG TCP). */
	if (skb->gso_size || end > skb->len)
		end = skb->len;
	return end > headers ? end - headers : 0;
}

/* What is remembered of a packet's flow; null if there is no room. */
INLINE struct flow *flow_of(const struct packet *packet, __u32 classid, __u32 direction, __u64 now)
{
	struct flow_key key = { .protocol = packet->protocol | packet->family << 16, .classid = classid };
	for (int i = 0; i < 4; i++) {
		key.local[i] = direction == INGRESS ? packet->destination[i] : packet->source[i];
		key.remote[i] = direction == INGRESS ? packet->source[i] : packet->destination[i];
	}
	key.local_port = direction == INGRESS ? packet->destination_port : packet->source_port;
	key.remote_port = direction == INGRESS ? packet->source_port : packet->destination_port;
	struct flow *flow = bpf_map_lookup_elem(&flows, &key);
	if (flow)
		return flow;
	struct flow new = { .mirrored_at = { now, now }, .seen_at = now };
	bpf_map_update_elem(&flows, &key, &new, BPF_NOEXIST);
	return bpf_map_lookup_elem(&flows, &key);
}

/* Whether the flow of a frame is known. Others are never cut off: that would be a way to evade the tap. */
INLINE int has_flow(const struct packet *packet)
{
	return packet->destination_valid && packet->protocol != NO_PROTOCOL && !ports_unknown(packet);
}

/* Which part of a frame is mirrored, by what was seen of its flow: what the configuration says (0), HEADERS, WHOLE or NOTHING. Other CPUs may
 * change the flow meanwhile, and their `now` may be later. */
INLINE __u32 part_to_mirror(const struct __sk_buff *skb, const struct config *config, const struct packet *packet, __u32 classid,
			    __u32 direction)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow *flow = flow_of(packet, classid, direction, now);
	if (!flow)
		return 0;
	__u32 flags = control(skb, packet);
	if (flags & NEW_FLOW || now > flow->seen_at + IDLE_TIMEOUT)
		flow->bytes[INGRESS] = flow->bytes[EGRESS] = 0;
	if (flow->seen_at != now)
		flow->seen_at = now;
	__u32 length = payload(skb, packet), seen = flow->bytes[direction], limit = config->bytes_per_flow;
	if (length && seen < COUNTED)
		__sync_fetch_and_add(&flow->bytes[direction], length);
	/* A segment that carries nothing acknowledges the other direction, and goes with it. */
	int acknowledges = !length && packet->protocol == TCP;
	int is_cut_off = limit && (seen >= limit || (acknowledges && flow->bytes[direction ^ 1] >= limit));
	if (is_cut_off && !flags && now < flow->mirrored_at[direction] + HEADER_INTERVAL)
		return NOTHING;
	if (flow->mirrored_at[direction] != now)
		flow->mirrored_at[direction] = now;
	if (is_cut_off)
		return HEADERS;
	return seen < config->exempt_bytes || (config->exempt_bytes && is_dns(packet)) ? WHOLE : 0;
}
