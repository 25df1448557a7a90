/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The programs of a tap: which frames of a pod are copied, and how a copy fits the wire. */
#include "filter.h"
#include "limit.h"
#include "split.h"

/* Results of a classifier without direct-action (net/sched/cls_bpf.c): the filter's own class, so that its action runs; or go on. */
#define MATCH -1
#define NO_MATCH 0

/* The user's expression. The loader puts the translated instructions in place of these; see src/bpf/object.rs. */
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

INLINE void count(__u32 which, __u64 frames, __u64 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(&counters, &which);
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
		if (i >= config->networks)
			break;
		found |= is_in(&config->network[i], family, 1, remote);
	}
	return found != 0;
}

#define SYN 2
#define ACK 16

/* Whether the pod's end has the higher port; between equal ones, the higher address. */
INLINE __u32 is_above(const struct flow *flow)
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

/* Whether the other end mirrors this flow: the pod opened it, and to a peer that is tapped like it. */
INLINE int is_others(const struct config *config, const struct __sk_buff *skb, const struct packet *packet, __u32 direction)
{
	const __u32 *remote = direction == INGRESS ? packet->source : packet->destination;
	const __u32 *local = direction == INGRESS ? packet->destination : packet->source;
	if (!packet->family || !packet->destination_known || !is_peer(config, packet, remote))
		return 0;
	struct flow flow = {};
	for (int i = 0; i < 4; i++) {
		flow.remote[i] = remote[i];
		flow.local[i] = local[i];
	}
	flow.remote_port = direction == INGRESS ? packet->source_port : packet->destination_port;
	flow.local_port = direction == INGRESS ? packet->destination_port : packet->source_port;
	flow.protocol = packet->protocol;
	__u8 bits = 0;
	if (packet->protocol == TCP && packet->fragment != LATER)
		bpf_skb_load_bytes(skb, packet->l4 + 13, &bits, 1);
	__u32 opened;
	if (bits & SYN) {
		/* With ACK it is an answer. The addresses and ports may have been those of an earlier connection. */
		opened = (direction == EGRESS) ^ !!(bits & ACK);
	} else {
		__u32 *known = bpf_map_lookup_elem(&flows, &flow);
		if (known)
			return *known;
		/* It may be older than the tap: the lower port is the service's. Behind an address of a service, it is another
		 * one; so where there are no handshakes, who opens a flow must also be seen to send first: rather twice than
		 * never. */
		opened = is_above(&flow) && (packet->protocol == TCP || direction == EGRESS);
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
	/* First of all: here the verifier has one state only to follow the expression with. */
	if (config->flags & HAS_EXPRESSION && !expression(skb))
		outcome = FILTERED;
	if (!gso && !config->rules && !(config->flags & (HAS_INCLUDE | DEDUPLICATES)) && config->one_in_flows < 2 &&
	    config->truncate != TRUNCATE_HEADERS) {
		__u64 left = config->truncate && config->truncate < skb->len ? config->truncate + tag : bytes;
		if (outcome == MIRRORED && limited(config, 1, left))
			outcome = OVER_LIMIT;
		goto done;
	}

	parse(skb, packet);
	if (config->flags & NEEDS_PORTS)
		parse_ports(skb, packet);
	__u32 head = gso || config->truncate == TRUNCATE_HEADERS ? headers(skb, packet) : 0;
	if (gso && head < skb->len) {
		/* gso_segs may be 0, where the frame is of a virtual machine. */
		frames = (skb->len - head + gso - 1) / gso;
		bytes += (__u64)(frames - 1) * (head + tag);
	}
	if (outcome != MIRRORED)
		goto done;

	const __u32 *remote = direction == INGRESS ? packet->source : packet->destination;
	__u32 known = direction == INGRESS ? packet->source_known : packet->destination_known;
	__u32 unknown = packet->fragment == LATER && has_ports(packet) && packet->destination_port == NO_PORT;
	if (!passes(config, packet, remote, known, unknown)) {
		outcome = FILTERED;
		goto done;
	}
	if (config->flags & DEDUPLICATES && is_others(config, skb, packet, direction)) {
		outcome = DEDUPLICATED;
		goto done;
	}
	/* Frames that are not IP belong to no flow. They are few (ARP), and all of them are kept. */
	__u32 share = config->one_in_flows;
	if (share > 1 && packet->family && hash_flow(packet) % share) {
		outcome = SAMPLED_OUT;
		goto done;
	}
	/* What is cut becomes one frame, and short. */
	__u32 cut = config->truncate == TRUNCATE_HEADERS ? head : config->truncate;
	int is_cut = cut && cut < (gso ? head + gso : skb->len);
	if (limited(config, is_cut ? 1 : frames, is_cut ? cut + tag : bytes))
		outcome = OVER_LIMIT;
done:
	count(direction * OUTCOMES + outcome, frames, bytes);
	return outcome == MIRRORED ? MATCH : NO_MATCH;
}

SEC("classifier") int classify_in(struct __sk_buff *skb)
{
	return classify(skb, INGRESS);
}

SEC("classifier") int classify_out(struct __sk_buff *skb)
{
	return classify(skb, EGRESS);
}

/* Cuts a copy. The kernel refuses to cut before the checksum that it still has to fill in (__bpf_skb_min_len,
 * net/core/filter.c): then through the transport header. */
INLINE int cut(struct __sk_buff *skb, __u32 size, __u32 head)
{
	if (!bpf_skb_change_tail(skb, size, 0))
		return 0;
	if (size >= head)
		return -1;
	/* An acknowledgement has nothing behind its headers, and stays as it is. */
	return head < skb->len ? bpf_skb_change_tail(skb, head, 0) : 0;
}

/* What bpf_skb_adjust_room takes at once, and how often it is asked. */
#define LARGEST_STEP 4080
#define STEPS 3

/* Makes the segments of a superframe shorter by as much. 0 if done, 1 if that is not possible and the frame is as it was, -1 if
 * it is damaged. */
INLINE int shrink(struct __sk_buff *skb, const struct config *config, __u32 excess)
{
	__u32 length = skb->len;
	if (excess > LARGEST_STEP * STEPS)
		return 1;
	if (config->flags & LINEARIZES && bpf_skb_pull_data(skb, length))
		return 1;
	for (int i = 0; i < STEPS; i++) {
		__u32 step = excess < LARGEST_STEP ? excess : LARGEST_STEP;
		if (!step)
			break;
		/* Room before the network header makes the segments smaller by as much; taken away again, with FIXED_GSO, they
		 * stay so. */
		if (bpf_skb_adjust_room(skb, step, BPF_ADJ_ROOM_MAC, 0))
			return i || skb->len != length ? -1 : 1;
		if (bpf_skb_adjust_room(skb, -step, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
			return -1;
		excess -= step;
	}
	return 0;
}

/* A copy has the pod's route with it, and the tunnel would tell that route that the path carries less: the pod's own frames would
 * become shorter (skb_tunnel_check_pmtu, net/ipv4/ip_tunnel_core.c). A route without that ear takes its place; the tunnel does not
 * look at it otherwise. */
INLINE void forget_route(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = { .tunnel_id = 1 };
	bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0);
}

SEC("classifier") int fit(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct config *config = active_config();
	struct packet *packet = bpf_map_lookup_elem(&scratch, &zero);
	if (!config || !packet)
		return TC_ACT_OK;
	__u32 tag = skb->vlan_present ? 4 : 0, limit = config->frame_limit - tag, wanted = config->truncate;
	__u32 gso = skb->gso_size, length = skb->len;
	if (!config->frame_limit)
		limit = 0xffffffff;
	if (!wanted && !gso && length <= limit)
		return TC_ACT_OK;

	parse(skb, packet);
	__u32 head = headers(skb, packet);
	if (wanted) {
		if (wanted == TRUNCATE_HEADERS)
			wanted = head;
		/* A superframe whose segments are short enough stays whole. */
		if (wanted < (gso ? head + gso : length) && wanted < length) {
			if (cut(skb, wanted, head)) {
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
		if (head + gso <= limit)
			return TC_ACT_OK;
		if (packet->protocol == TCP && head + gso - limit < gso) {
			int shrunk = shrink(skb, config, head + gso - limit);
			if (shrunk == 0)
				return TC_ACT_OK;
			if (shrunk < 0) {
				count(FAILED, 1, length);
				return TC_ACT_SHOT;
			}
		}
		/* Not TCP: as many frames that are too long as segments. */
		count(OVERSIZED, head < length ? (length - head + gso - 1) / gso : 1, length);
	} else {
		if (length <= limit)
			return TC_ACT_OK;
		int result = split(skb, packet, head, limit);
		if (result == 0)
			return TC_ACT_OK;
		if (result < 0) {
			count(FAILED, 1, length);
			return TC_ACT_SHOT;
		}
		count(OVERSIZED, 1, length);
	}
	if (!(config->flags & CUTS_OVERSIZE)) {
		forget_route(skb);
		return TC_ACT_OK;
	}
	if (cut(skb, limit, head)) {
		count(FAILED, 1, length);
		return TC_ACT_SHOT;
	}
	return TC_ACT_OK;
}

/* Of the helpers above, those that change a frame are for GPL programs. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
