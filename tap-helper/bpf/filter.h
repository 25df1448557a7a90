/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* No branches in here but the loop's: each one would double what the verifier has to look at, per rule. */
#pragma once
#include "parse.h"

/* clang makes branches of comparisons when it sees that it may. */
#define hidden(x)                                \
	({                                       \
		__u64 hidden_ = (x);             \
		asm volatile("" : "+r"(hidden_)); \
		hidden_;                         \
	})
/* 1 or 0; of values below 2^63 */
#define is_zero(x) (hidden((__u64)(x)-1) >> 63)
#define is_below(a, b) (hidden((__u64)(a) - (__u64)(b)) >> 63)

INLINE __u64 is_in(const struct network *network, __u32 family, __u64 known, const __u32 *address)
{
	__u64 differs = 0;
	for (int i = 0; i < 4; i++)
		differs |= (address[i] & network->mask[i]) ^ network->address[i];
	__u64 here = is_zero(network->family ^ family);
	/* A rule for a family only, as of ICMP, does not need the address. */
	__u64 any_address = is_zero(network->mask[0]);
	return is_zero(network->family) | (here & is_zero(differs) & (known | any_address));
}

INLINE __u64 is_port(const struct rule *rule, __u64 port)
{
	return 1 ^ (is_below(port, rule->first_port) | is_below(rule->last_port, port));
}

/* Whether the rules let a packet through. `unknown`: it is a fragment whose ports nobody knows. It is taken for one that an
 * include wants and no exclude: rather too much than too little. */
INLINE __u64 passes(const struct config *config, const struct packet *packet, const __u32 *remote, __u64 remote_known,
		    __u64 unknown)
{
	__u64 included = 0, excluded = 0;
	__u32 family = packet->family, protocol = packet->protocol;
	__u64 source = packet->source_port, destination = packet->destination_port;
	for (__u32 i = 0; i < RULES; i++) {
		if (i >= config->rules)
			break;
		const struct rule *rule = &config->rule[i];
		__u64 hit = is_zero(rule->protocol) | is_zero(rule->protocol ^ protocol);
		hit &= is_in(&rule->remote, family, remote_known, remote);
		__u64 includes = is_below(i, config->includes);
		__u64 ports = is_port(rule, source) | is_port(rule, destination);
		included |= hit & includes & (ports | unknown);
		excluded |= hit & (includes ^ 1) & ports;
	}
	return (included | is_zero(config->flags & HAS_INCLUDE)) & (excluded ^ 1);
}

INLINE __u64 mix(__u64 x)
{
	/* The finaliser of MurmurHash3, in the public domain. */
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

INLINE __u64 hash_end(const __u32 *address, __u64 port)
{
	__u64 hash = mix((__u64)from_net32(address[0]) << 32 | from_net32(address[1]));
	hash = mix(hash ^ ((__u64)from_net32(address[2]) << 32 | from_net32(address[3])));
	return mix(hash + port + 1);
}

/* The same on every node and for both directions of a flow. */
INLINE __u32 hash_flow(const struct packet *packet)
{
	__u64 ends = hash_end(packet->source, packet->source_port) + hash_end(packet->destination, packet->destination_port);
	return mix(ends + packet->protocol) >> 32;
}
