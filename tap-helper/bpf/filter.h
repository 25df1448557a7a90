/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Filter rules and the flow hash. The loop is the only branch: any other would double the verifier's states for each rule. */
#pragma once
#include "parse.h"

/* Keeps clang from turning comparisons into branches. */
#define hidden(x)                                \
	({                                       \
		__u64 hidden_ = (x);             \
		asm volatile("" : "+r"(hidden_)); \
		hidden_;                         \
	})
/* 1 or 0, for values below 2^63 */
#define is_zero(x) (hidden((__u64)(x)-1) >> 63)
#define is_below(a, b) (hidden((__u64)(a) - (__u64)(b)) >> 63)

INLINE __u64 contains(const struct network *network, __u32 family, __u64 address_valid, const __u32 *address)
{
	__u64 differs = 0;
	for (int i = 0; i < 4; i++)
		differs |= (address[i] & network->mask[i]) ^ network->address[i];
	__u64 same_family = is_zero(network->family ^ family);
	/* A rule for a whole family, such as ICMP without a CIDR, does not need the address. */
	__u64 any_address = is_zero(network->mask[0]);
	return is_zero(network->family) | (same_family & is_zero(differs) & (address_valid | any_address));
}

INLINE __u64 port_matches(const struct rule *rule, __u64 port)
{
	return 1 ^ (is_below(port, rule->first_port) | is_below(rule->last_port, port));
}

#define SELECTED_HERE 1
#define SELECTED_BY_PEER 2

/* Which ends' rules select a packet: this one's, and those of the same tap at the other end. Where the ports are missing, in a fragment
 * whose first one was not seen, include rules for ports match and exclude rules for ports do not: the fragment is mirrored. Without the
 * address of this pod, the frame is never left to the other end. */
INLINE __u32 selected(const struct config *config, const struct packet *packet, __u32 direction)
{
	__u64 included = 0, excluded = 0;
	__u32 family = packet->family, protocol = packet->protocol;
	__u64 source = packet->source_port, destination = packet->destination_port;
	const __u32 *remote = direction == INGRESS ? packet->source : packet->destination;
	const __u32 *local = direction == INGRESS ? packet->destination : packet->source;
	__u64 remote_valid = direction == INGRESS ? packet->source_valid : packet->destination_valid;
	__u64 ports_missing = packet->fragment == LATER_FRAGMENT && ports_unknown(packet);
	for (__u32 i = 0; i < RULES; i++) {
		if (i >= config->rule_count)
			break;
		const struct rule *rule = &config->rules[i];
		__u64 hit = is_zero(rule->protocol) | is_zero(rule->protocol ^ protocol);
		__u64 ends = contains(&rule->remote, family, remote_valid, remote) * SELECTED_HERE;
		ends |= contains(&rule->remote, family, 1, local) * SELECTED_BY_PEER;
		__u64 includes = is_below(i, config->include_count);
		__u64 ports = port_matches(rule, source) | port_matches(rule, destination);
		included |= ends * (hit & includes & (ports | ports_missing));
		excluded |= ends * (hit & (includes ^ 1) & ports);
	}
	__u64 both = SELECTED_HERE | SELECTED_BY_PEER;
	return (included | (is_zero(config->flags & HAS_INCLUDE) * both)) & (excluded ^ both);
}

INLINE __u64 mix(__u64 x)
{
	/* Finalizer of MurmurHash3, public domain. */
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

INLINE __u64 hash_endpoint(const __u32 *address, __u64 port)
{
	__u64 hash = mix((__u64)from_net32(address[0]) << 32 | from_net32(address[1]));
	hash = mix(hash ^ ((__u64)from_net32(address[2]) << 32 | from_net32(address[3])));
	return mix(hash + port + 1);
}

/* The same on every node and in both directions of a flow. Who does not know the seed cannot choose ports that no sample contains. */
INLINE __u32 hash_flow(const struct packet *packet, __u64 seed)
{
	__u64 endpoints = hash_endpoint(packet->source, packet->source_port) +
			  hash_endpoint(packet->destination, packet->destination_port);
	return mix((endpoints + packet->protocol) ^ seed) >> 32;
}
