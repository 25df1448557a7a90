/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Deduplication: which of two ends that the same tap mirrors leaves a flow to the other one.
 *
 * Each end decides by the frame alone, so no state of the two can differ. Both ends of a flow between two pods see the same addresses
 * and ports, and exactly one of them has the higher port. A client that uses the address of a Service sees that instead of the pod
 * behind it. It is no peer's address, so the client mirrors the flow. */
#pragma once
#include "filter.h"

INLINE int is_peer(const struct packet *packet, const __u32 *address)
{
	struct peer peer = { .family = packet->family };
	for (int i = 0; i < 4; i++)
		peer.address[i] = address[i];
	return bpf_map_lookup_elem(&peers, &peer) != 0;
}

/* Whether the local port is higher; if both are equal, or there are none, whether the local address is. Without branches, which would
 * multiply the verifier's states. */
INLINE __u64 local_is_higher(const __u32 *local, __u64 local_port, const __u32 *remote, __u64 remote_port)
{
	__u64 higher = 1;
	for (int i = 3; i >= 0; i--) {
		__u64 a = from_net32(local[i]), b = from_net32(remote[i]);
		higher = is_below(b, a) | (is_zero(a ^ b) & higher);
	}
	return is_below(remote_port, local_port) | (is_zero(local_port ^ remote_port) & higher);
}

/* Whether the other end is a peer that mirrors this frame, so that this end does not. */
INLINE int mirrored_by_peer(const struct config *config, const struct packet *packet, __u32 direction)
{
	const __u32 *remote = direction == INGRESS ? packet->source : packet->destination;
	const __u32 *local = direction == INGRESS ? packet->destination : packet->source;
	/* The other end may know the ports of the fragment: without them, both ends mirror it. */
	if (!packet->destination_valid || ports_unknown(packet))
		return 0;
	/* This pod is a peer, too: a multicast or foreign address is not its own. */
	if (!is_peer(packet, remote) || !is_peer(packet, local))
		return 0;
	__u32 remote_port = direction == INGRESS ? packet->source_port : packet->destination_port;
	__u32 local_port = direction == INGRESS ? packet->destination_port : packet->source_port;
	__u64 higher = local_is_higher(local, local_port, remote, remote_port);
	/* The higher port is usually the client's. A filter that looks at addresses or ports may select a flow through a Service at
	 * the pod behind it, and not at the client, which sees the address and port of the Service. With such a filter, the end with
	 * the lower port mirrors, so that neither leaves the flow to the other one. */
	return (is_zero(config->flags & LOWER_PORT_MIRRORS) ^ higher) != 0;
}
