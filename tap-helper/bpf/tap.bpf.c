/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The programs of a tap: two classifiers select the frames of a pod that are mirrored, and the clamp makes mirrored frames fit
 * the underlay. */
#include "filter.h"
#include "rate_limit.h"
#include "segment.h"

/* Return values of a classifier without direct-action (net/sched/cls_bpf.c): run the filter's action with its default class, or
 * continue with the next filter. */
#define MATCH -1
#define NO_MATCH 0

/* The filter expression. The loader replaces these instructions with the translated ones: see src/bpf/object.rs. */
__attribute__((noinline)) static int expression(struct __sk_buff *skb)
{
	int result = 1;
	asm volatile("" : "+r"(result), "+r"(skb));
	return result;
}

INLINE struct config *active_config(void)
{
	__u32 zero = 0;
	__u32 *slot = bpf_map_lookup_elem(&active, &zero);
	if (!slot)
		return 0;
	__u32 index = *(volatile __u32 *)slot;
	return bpf_map_lookup_elem(&configs, &index);
}

INLINE int deadline_has_passed(void)
{
	__u32 zero = 0;
	__u64 *moment = bpf_map_lookup_elem(&deadline, &zero);
	return !moment || bpf_ktime_get_coarse_ns() >= *(volatile __u64 *)moment;
}

INLINE void count(__u32 key, __u64 frames, __u64 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(&counters, &key);
	if (counter) {
		counter->frames += frames;
		counter->bytes += bytes;
	}
}

INLINE int is_peer(const struct config *config, const struct packet *packet, const __u32 *remote)
{
	__u64 found = 0;
	__u32 family = packet->family;
	for (__u32 i = 0; i < NETWORKS; i++) {
		if (i >= config->peer_network_count)
			break;
		found |= contains(&config->peer_networks[i], family, 1, remote);
	}
	return found != 0;
}

#define SYN 2
#define ACK 16

/* Whether the local port is higher; if both are equal, whether the local address is. */
INLINE __u32 local_is_higher(const struct flow *flow)
{
	if (flow->local_port != flow->remote_port)
		return flow->local_port > flow->remote_port;
	for (int i = 0; i < 4; i++) {
		__u32 local = from_net32(flow->local[i]), remote = from_net32(flow->remote[i]);
		if (local != remote)
			return local > remote;
	}
	return 0;
}

/* Whether the peer mirrors this flow: the pod opened it, and the peer may be tapped too. */
INLINE int mirrored_by_peer(const struct config *config, const struct __sk_buff *skb, const struct packet *packet,
			    __u32 direction)
{
	const __u32 *remote = direction == INGRESS ? packet->source : packet->destination;
	const __u32 *local = direction == INGRESS ? packet->destination : packet->source;
	if (!packet->family || !packet->destination_valid || !is_peer(config, packet, remote))
		return 0;
	struct flow flow = {};
	for (int i = 0; i < 4; i++) {
		flow.remote[i] = remote[i];
		flow.local[i] = local[i];
	}
	flow.remote_port = direction == INGRESS ? packet->source_port : packet->destination_port;
	flow.local_port = direction == INGRESS ? packet->destination_port : packet->source_port;
	flow.protocol = packet->protocol;
	__u8 tcp_flags = 0;
	if (packet->protocol == TCP && packet->fragment != LATER_FRAGMENT)
		bpf_skb_load_bytes(skb, packet->l4 + 13, &tcp_flags, 1);
	__u32 opened;
	if (tcp_flags & SYN) {
		/* SYN-ACK is the reply. This replaces what an earlier connection with the same addresses and ports left. */
		opened = (direction == EGRESS) ^ !!(tcp_flags & ACK);
	} else {
		__u32 *entry = bpf_map_lookup_elem(&flows, &flow);
		if (entry)
			return *entry;
		/* The flow may be older than the tap: the end with the lower port probably accepted it. The port behind a
		 * Service address may differ, so without a handshake the pod must also have been seen to send first: if
		 * that is unknown, both ends mirror the flow. */
		opened = local_is_higher(&flow) && (packet->protocol == TCP || direction == EGRESS);
	}
	bpf_map_update_elem(&flows, &flow, &opened, 0);
	return opened;
}

INLINE int classify(struct __sk_buff *skb, __u32 direction)
{
	__u32 zero = 0;
	struct config *config = active_config();
	struct packet *packet = bpf_map_lookup_elem(&scratch, &zero);
	if (!config || !packet)
		return NO_MATCH;
	__u32 frames = 1, tag = skb->vlan_present ? 4 : 0, gso = skb->gso_size;
	__u64 bytes = skb->len + tag;
	__u32 outcome = MIRRORED;
	/* First, so that the verifier follows the expression with a single state. */
	if (config->flags & HAS_EXPRESSION && !expression(skb))
		outcome = FILTERED;
	if (!gso && !config->rule_count && !(config->flags & (HAS_INCLUDE | DEDUPLICATE)) && config->one_in_flows < 2 &&
	    config->truncate != TRUNCATE_HEADERS) {
		__u64 mirrored = config->truncate && config->truncate < skb->len ? config->truncate + tag : bytes;
		if (outcome == MIRRORED && rate_limited(config, 1, mirrored))
			outcome = RATE_LIMITED;
		goto done;
	}

	parse(skb, packet);
	if (config->flags & NEEDS_PORTS)
		parse_ports(skb, packet);
	__u32 hdr_len = gso || config->truncate == TRUNCATE_HEADERS ? header_length(skb, packet) : 0;
	if (gso && hdr_len < skb->len) {
		/* gso_segs may be 0 for frames of virtual machines. */
		frames = (skb->len - hdr_len + gso - 1) / gso;
		bytes += (__u64)(frames - 1) * (hdr_len + tag);
	}
	if (outcome != MIRRORED)
		goto done;

	const __u32 *remote = direction == INGRESS ? packet->source : packet->destination;
	__u32 remote_valid = direction == INGRESS ? packet->source_valid : packet->destination_valid;
	__u32 ports_missing = packet->fragment == LATER_FRAGMENT && has_ports(packet) && packet->destination_port == NO_PORT;
	if (!selected(config, packet, remote, remote_valid, ports_missing)) {
		outcome = FILTERED;
		goto done;
	}
	if (config->flags & DEDUPLICATE && mirrored_by_peer(config, skb, packet, direction)) {
		outcome = DEDUPLICATED;
		goto done;
	}
	/* Frames that are not IP (ARP, for example) belong to no flow and are not sampled. */
	__u32 one_in_flows = config->one_in_flows;
	if (one_in_flows > 1 && packet->family && hash_flow(packet) % one_in_flows) {
		outcome = SAMPLED_OUT;
		goto done;
	}
	/* A truncated GSO packet is a single short frame. */
	__u32 length = config->truncate == TRUNCATE_HEADERS ? hdr_len : config->truncate;
	int truncated = length && length < (gso ? hdr_len + gso : skb->len);
	if (rate_limited(config, truncated ? 1 : frames, truncated ? length + tag : bytes))
		outcome = RATE_LIMITED;
done:
	/* Last, so that only frames that would be mirrored count as expired. */
	if (outcome == MIRRORED && deadline_has_passed())
		outcome = EXPIRED;
	count(direction * OUTCOMES + outcome, frames, bytes);
	return outcome == MIRRORED ? MATCH : NO_MATCH;
}

SEC("classifier") int podtap_ingress(struct __sk_buff *skb)
{
	return classify(skb, INGRESS);
}

SEC("classifier") int podtap_egress(struct __sk_buff *skb)
{
	return classify(skb, EGRESS);
}

/* Truncates a mirrored frame, if necessary after the transport header: the kernel does not truncate before a checksum that it
 * still has to fill in (__bpf_skb_min_len, net/core/filter.c). */
INLINE int truncate(struct __sk_buff *skb, __u32 size, __u32 hdr_len)
{
	if (!bpf_skb_change_tail(skb, size, 0))
		return 0;
	if (size >= hdr_len)
		return -1;
	/* A frame without payload stays as it is. */
	return hdr_len < skb->len ? bpf_skb_change_tail(skb, hdr_len, 0) : 0;
}

/* Most that one call of bpf_skb_adjust_room adds, and the number of calls. */
#define MAX_STEP 4080
#define STEPS 3

/* Reduces gso_size by `excess`. 0: done; 1: not possible, the frame is unchanged; -1: the frame is damaged. */
INLINE int reduce_gso_size(struct __sk_buff *skb, const struct config *config, __u32 excess)
{
	__u32 length = skb->len;
	if (excess > MAX_STEP * STEPS)
		return 1;
	if (config->flags & LINEARIZE && bpf_skb_pull_data(skb, length))
		return 1;
	for (int i = 0; i < STEPS; i++) {
		__u32 step = excess < MAX_STEP ? excess : MAX_STEP;
		if (!step)
			break;
		/* Adding room before the network header reduces gso_size; removing it with FIXED_GSO does not raise it again. */
		if (bpf_skb_adjust_room(skb, step, BPF_ADJ_ROOM_MAC, 0))
			return i || skb->len != length ? -1 : 1;
		if (bpf_skb_adjust_room(skb, -step, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
			return -1;
		excess -= step;
	}
	return 0;
}

/* A mirrored frame still carries the dst entry of the pod's route. The VXLAN device would lower the path MTU of that route, and
 * so of the pod's own traffic (skb_tunnel_check_pmtu, net/ipv4/ip_tunnel_core.c). A metadata dst, which ignores that, replaces
 * it; the device does not use it for anything else. */
INLINE void detach_route(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = { .tunnel_id = 1 };
	bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0);
}

SEC("classifier") int podtap_clamp(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct config *config = active_config();
	struct packet *packet = bpf_map_lookup_elem(&scratch, &zero);
	if (!config || !packet)
		return TC_ACT_OK;
	__u32 tag = skb->vlan_present ? 4 : 0, limit = config->frame_limit - tag, size = config->truncate;
	__u32 gso = skb->gso_size, length = skb->len;
	if (!config->frame_limit)
		limit = 0xffffffff;
	if (!size && !gso && length <= limit)
		return TC_ACT_OK;

	parse(skb, packet);
	__u32 hdr_len = header_length(skb, packet);
	if (size) {
		if (size == TRUNCATE_HEADERS)
			size = hdr_len;
		/* A GSO packet whose segments are short enough is not truncated. */
		if (size < (gso ? hdr_len + gso : length) && size < length) {
			if (truncate(skb, size, hdr_len)) {
				count(FAILED, 1, length);
				return TC_ACT_SHOT;
			}
			if (skb->len < length) {
				count(TRUNCATED, 1, length - skb->len);
				gso = 0;
			}
			length = skb->len;
		}
	}
	if (gso) {
		if (hdr_len + gso <= limit)
			return TC_ACT_OK;
		if (packet->protocol == TCP && hdr_len + gso - limit < gso) {
			int result = reduce_gso_size(skb, config, hdr_len + gso - limit);
			if (result == 0)
				return TC_ACT_OK;
			if (result < 0) {
				count(FAILED, 1, length);
				return TC_ACT_SHOT;
			}
		}
		/* Each segment becomes a frame that is too long. */
		count(OVERSIZED, hdr_len < length ? (length - hdr_len + gso - 1) / gso : 1, length);
	} else {
		if (length <= limit)
			return TC_ACT_OK;
		int result = segment(skb, packet, hdr_len, limit);
		if (result == 0)
			return TC_ACT_OK;
		if (result < 0) {
			count(FAILED, 1, length);
			return TC_ACT_SHOT;
		}
		count(OVERSIZED, 1, length);
	}
	if (!(config->flags & TRUNCATE_OVERSIZE)) {
		detach_route(skb);
		return TC_ACT_OK;
	}
	if (truncate(skb, limit, hdr_len)) {
		count(FAILED, 1, length);
		return TC_ACT_SHOT;
	}
	return TC_ACT_OK;
}

/* The kernel offers some of these helpers to GPL-compatible programs only. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
