/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Deduplication: which of two ends that the same tap mirrors leaves a flow to the other one.
 *
 * Each end decides by the frame alone, so no state of the two can differ. Both ends of a flow between two pods see the same addresses
 * and ports, and exactly one of them has the higher port. A client that uses the address of a Service sees that instead of the pod
 * behind it. It is no peer's address, so the client mirrors the flow. */
#pragma once
#include "parse.h"

INLINE int is_peer(const struct packet *packet, const __u32 *remote)
{
	struct peer peer = { .family = packet->family };
	for (int i = 0; i < 4; i++)
		peer.address[i] = remote[i];
	return bpf_map_lookup_elem(&peers, &peer) != 0;
}

/* Whether the local port is higher; if both are equal, or there are none, whether the local address is. */
INLINE int local_is_higher(const __u32 *local, __u32 local_port, const __u32 *remote, __u32 remote_port)
{
	if (local_port != remote_port)
		return local_port > remote_port;
	for (int i = 0; i < 4; i++) {
		__u32 a = from_net32(local[i]), b = from_net32(remote[i]);
		if (a != b)
			return a > b;
	}
	return 1;
}

/* Whether the other end is a peer that mirrors this frame, so that this end does not. */
INLINE int mirrored_by_peer(const struct config *config, const struct packet *packet, __u32 direction)
{
	const __u32 *remote = direction == INGRESS ? packet->source : packet->destination;
	const __u32 *local = direction == INGRESS ? packet->destination : packet->source;
	/* The other end may know the ports of the fragment: without them, both ends mirror it. */
	if (!packet->destination_valid || ports_unknown(packet) || !is_peer(packet, remote))
		return 0;
	__u32 remote_port = direction == INGRESS ? packet->source_port : packet->destination_port;
	__u32 local_port = direction == INGRESS ? packet->destination_port : packet->source_port;
	int higher = local_is_higher(local, local_port, remote, remote_port);
	/* The higher port is usually the client's. A filter that looks at addresses or ports may select a flow through a Service at
	 * the pod behind it, and not at the client, which sees the address and port of the Service. With such a filter, the end with
	 * the lower port mirrors, so that neither leaves the flow to the other one. */
	return config->flags & LOWER_PORT_MIRRORS ? higher : !higher;
}
