/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The programs of a tap: two classifiers select the frames of a pod that are mirrored, and the clamp makes mirrored frames fit
 * the underlay. */
#include "deduplicate.h"
#include "flow.h"
#include "probe.h"
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

/* The sender to which a frame belongs: cls_bpf passes on the class ID of the filter (cls_bpf_classify, net/sched/cls_bpf.c). */
INLINE __u32 sender(const struct __sk_buff *skb)
{
	return skb->tc_classid % SENDERS;
}

/* To how many bytes a frame is truncated: 0, or TRUNCATE_HEADERS. */
INLINE __u32 length_limit(const struct config *config, __u32 part)
{
	return part == WHOLE ? 0 : part == HEADERS ? TRUNCATE_HEADERS : config->truncate;
}

/* Whether the outcome of a frame depends on its headers, or its size as on the wire does. */
INLINE int needs_parser(const struct __sk_buff *skb, const struct config *config)
{
	return skb->gso_size || config->rule_count || config->flags & (HAS_INCLUDE | DEDUPLICATE | TRACK_FLOWS) ||
	       config->one_in_flows > 1 || config->truncate == TRUNCATE_HEADERS;
}

/* The outcome of a parsed frame, before the rate limit, and in `packet` which part of it is mirrored. */
INLINE __u32 decide(const struct __sk_buff *skb, const struct config *config, struct packet *packet, __u32 classid, __u32 direction)
{
	*(volatile __u32 *)&packet->selected_by = selected(config, packet, direction);
	__u32 selected_by = *(volatile __u32 *)&packet->selected_by;
	if (!(selected_by & SELECTED_HERE))
		return FILTERED;
	if (config->flags & DEDUPLICATE && selected_by & SELECTED_BY_PEER && mirrored_by_peer(config, packet, direction) &&
	    !(config->flags & BOTH_HANDSHAKES && is_handshake(packet)))
		return DEDUPLICATED;
	/* Frames that are not IP (ARP, for example) belong to no flow and are not sampled. */
	__u32 one_in_flows = config->one_in_flows;
	if (one_in_flows > 1 && packet->family && hash_flow(packet, config->sample_seed) % one_in_flows)
		return SAMPLED_OUT;
	/* What expires is not mirrored, and does not count. */
	if (!(config->flags & TRACK_FLOWS) || !has_flow(packet) || deadline_has_passed(classid))
		return MIRRORED;
	*(volatile __u32 *)&packet->part = part_to_mirror(skb, config, packet, classid, direction);
	return packet->part == NOTHING ? CUT_OFF : MIRRORED;
}

INLINE int classify(struct __sk_buff *skb, __u32 direction)
{
	__u32 zero = 0, classid = sender(skb);
	struct config *config = active_config();
	struct packet *packet = bpf_map_lookup_elem(&scratch, &zero);
	__u32 *selected_from = bpf_map_lookup_elem(&selection, &classid);
	if (!config || !packet || !selected_from)
		return NO_MATCH;
	__u32 outcome = MIRRORED;
	/* First, so that the verifier follows the expression with a single state. */
	if (config->flags & HAS_EXPRESSION && !expression(skb))
		outcome = FILTERED;
	/* The pod's own frames with the EtherType of probes are not mirrored: the receiver could not tell them apart. */
	if (!skb->vlan_present && has_ethertype(skb, config->probe_ethertype))
		outcome = FILTERED;
	/* What is read back after this has one state for the verifier, as after the parser. */
	if (needs_parser(skb, config)) {
		parse(skb, packet);
		packet->parsed = PARSED;
		if (config->flags & NEEDS_PORTS)
			parse_ports(skb, packet);
		if (skb->gso_size || config->truncate == TRUNCATE_HEADERS || config->flags & (TRACK_FLOWS | BOTH_HANDSHAKES))
			*(volatile __u32 *)&packet->headers = header_length(skb, packet);
		if (outcome == MIRRORED)
			outcome = decide(skb, config, packet, classid, direction);
	} else {
		packet->headers = packet->part = packet->parsed = 0;
	}
	*(volatile __u32 *)&packet->outcome = outcome;
	outcome = *(volatile __u32 *)&packet->outcome;
	__u32 hdr_len = *(volatile __u32 *)&packet->headers, part = *(volatile __u32 *)&packet->part;

	__u32 frames = 1, tag = skb->vlan_present ? 4 : 0, gso = skb->gso_size;
	__u64 bytes = skb->len + tag;
	if (gso && hdr_len < skb->len) {
		/* gso_segs may be 0 for frames of virtual machines. */
		frames = (skb->len - hdr_len + gso - 1) / gso;
		bytes += (__u64)(frames - 1) * (hdr_len + tag);
	}
	if (outcome == MIRRORED) {
		__u32 length = length_limit(config, part);
		if (length == TRUNCATE_HEADERS)
			length = hdr_len;
		/* A truncated GSO packet is a single short frame. */
		int truncated = length && length < (gso ? hdr_len + gso : skb->len);
		if (rate_limited(config, classid, truncated ? 1 : frames, truncated ? length + tag : bytes))
			outcome = RATE_LIMITED;
	}
	/* Last, so that only frames that would be mirrored count as expired. */
	if (outcome == MIRRORED && deadline_has_passed(classid))
		outcome = EXPIRED;
	count(classid, direction * DIRECTION_KEYS + outcome, frames, bytes);
	/* Also cleared, in case mirred did not pass on the last frame. */
	*selected_from = outcome == MIRRORED ? FROM(direction) + part + *(volatile __u32 *)&packet->parsed : 0;
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

/* Path MTU discovery finds at least 552 bytes (ip_rt_min_pmtu, net/ipv4/route.c), or 1280 with IPv6, and the helper knows the MTU that
 * a route sets. So frames of this length fit every path. */
#define FITS_ANY_PATH 512

/* Whether a frame carries an IPv6 route of the pod. If it is too long for the underlay, the VXLAN device lowers the path MTU of that
 * route, and so of the pod's own traffic (skb_tunnel_check_pmtu, net/ipv4/ip_tunnel_core.c). With IPv4 it does not find the route: it
 * looks for one over itself (ip_rt_build_flow_key, net/ipv4/route.c). */
INLINE int has_ipv6_route(const struct __sk_buff *skb, __u32 from)
{
	return from == FROM(EGRESS) && skb->protocol == from_net16(0x86dd);
}

/* Separates a mirrored frame from the pod's own, with which it shares its data and its route. 0, or -1: out of memory. */
INLINE int separate(struct __sk_buff *skb, const struct config *config, __u32 from, __u32 limit)
{
	/* For a receiver on this node, the frame waits in a queue as it is (encap_bypass_if_local, drivers/net/vxlan/vxlan_core.c). Until
	 * it is read, some code changes the headers of the pod's frame in place: where connections are tracked, ip_do_fragment and
	 * ip6_fragment put new ones before each fragment. For others, encapsulation makes the headers private. */
	if (config->flags & LOCAL)
		return bpf_skb_pull_data(skb, 0) ? -1 : 0;
	__u32 length = skb->len;
	if (has_ipv6_route(skb, from) && (skb->gso_size || length > FITS_ANY_PATH || length > limit)) {
		/* A metadata dst, which ignores an MTU, takes the place of the route. Of it, the device only uses that it exists: it does
		 * not take the short cut to receivers on this node then, of which there are none. */
		struct bpf_tunnel_key key = { .tunnel_id = 1 };
		bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0);
	}
	return 0;
}

/* Counts what the clamp did to a mirrored frame. */
INLINE void count_clamped(__u32 classid, __u32 from, __u32 key, __u64 frames, __u64 bytes)
{
	count(classid, (from - FROM(INGRESS)) * DIRECTION_KEYS + key, frames, bytes);
}

/* Lets a mirrored frame leave. A GSO packet becomes as many frames as its payload needs. */
INLINE int sent(const struct __sk_buff *skb, __u32 classid, __u32 hdr_len)
{
	__u32 length = skb->len, gso = skb->gso_size, frames = 1;
	if (gso && hdr_len < length)
		frames = (length - hdr_len + gso - 1) / gso;
	count(classid, SENT, frames, length + (__u64)(frames - 1) * hdr_len);
	return TC_ACT_OK;
}

SEC("classifier") int podtap_clamp(struct __sk_buff *skb)
{
	__u32 zero = 0, classid = sender(skb);
	struct config *config = active_config();
	struct packet *packet = bpf_map_lookup_elem(&scratch, &zero);
	__u32 *selected_from = bpf_map_lookup_elem(&selection, &classid);
	/* It would be left in tc_index of the mirrored frame (tc_run, net/core/dev.c). */
	skb->tc_classid = 0;
	if (!config || !packet || !selected_from)
		return TC_ACT_SHOT;
	/* Only probes and what a classifier selected leaves: the pod can send frames to the device, too. mirred sets skb_iif to the
	 * interface that it mirrors from (tcf_mirred_to_dev, net/sched/act_mirred.c); frames of sockets have none. */
	__u32 selected = *selected_from, from = selected & ORIGIN;
	if (!from || (from != FROM(PROBE) && !skb->ingress_ifindex)) {
		count(classid, FORGED, 1, skb->len);
		return TC_ACT_SHOT;
	}
	*selected_from = 0;
	/* As long as it is to be, and without a route. Any other frame came in between: BPF_PROG_TEST_RUN disables bottom halves since 6.3
	 * only (bpf_test_run, net/bpf/test_run.c). */
	if (from == FROM(PROBE)) {
		if (!skb->ingress_ifindex && skb->len >= PROBE_LENGTH && has_ethertype(skb, config->probe_ethertype))
			return TC_ACT_OK;
		count(classid, FORGED, 1, skb->len);
		return TC_ACT_SHOT;
	}
	__u32 tag = skb->vlan_present ? 4 : 0, limit = config->frame_limit - tag, size = length_limit(config, selected & (HEADERS | WHOLE));
	__u32 gso = skb->gso_size, length = skb->len;
	if (!config->frame_limit)
		limit = 0xffffffff;
	if (separate(skb, config, from, limit)) {
		count_clamped(classid, from, FAILED, 1, length);
		return TC_ACT_SHOT;
	}
	if (!size && !gso && length <= limit)
		return sent(skb, classid, 0);

	/* The classifier may have parsed it: nothing has used `scratch` since. */
	if (!(selected & PARSED))
		parse(skb, packet);
	packet->from = from;
	if (!packet->headers)
		packet->headers = header_length(skb, packet);
	__u32 hdr_len = *(volatile __u32 *)&packet->headers;
	if (size) {
		if (size == TRUNCATE_HEADERS)
			size = hdr_len;
		/* A GSO packet whose segments are short enough is not truncated. */
		if (size < (gso ? hdr_len + gso : length) && size < length) {
			if (truncate(skb, size, hdr_len)) {
				count_clamped(classid, packet->from, FAILED, 1, length);
				return TC_ACT_SHOT;
			}
			if (skb->len < length) {
				count_clamped(classid, packet->from, TRUNCATED, 1, length - skb->len);
				gso = 0;
			}
			length = skb->len;
		}
	}
	if (gso) {
		if (hdr_len + gso <= limit)
			return sent(skb, classid, hdr_len);
		if (packet->protocol == TCP && hdr_len + gso - limit < gso) {
			int result = reduce_gso_size(skb, config, hdr_len + gso - limit);
			if (result == 0)
				return sent(skb, classid, hdr_len);
			if (result < 0) {
				count_clamped(classid, packet->from, FAILED, 1, length);
				return TC_ACT_SHOT;
			}
		}
		/* Each segment becomes a frame that is too long. */
		count_clamped(classid, packet->from, OVERSIZED, hdr_len < length ? (length - hdr_len + gso - 1) / gso : 1, length);
	} else {
		if (length <= limit)
			return sent(skb, classid, hdr_len);
		int result = segment(skb, packet, hdr_len, limit, selected_from, selected);
		if (result == 0)
			return sent(skb, classid, hdr_len);
		if (result < 0) {
			count_clamped(classid, packet->from, FAILED, 1, length);
			return TC_ACT_SHOT;
		}
		count_clamped(classid, packet->from, OVERSIZED, 1, length);
	}
	/* With destinations here and elsewhere, the route stays, and the frame must not exceed the MTU. */
	int keeps_route = config->flags & LOCAL && config->flags & REMOTE && packet->family == 6 && packet->from == FROM(EGRESS);
	if (!(config->flags & TRUNCATE_OVERSIZE) && !keeps_route)
		return sent(skb, classid, hdr_len);
	if (truncate(skb, limit, hdr_len)) {
		count_clamped(classid, packet->from, FAILED, 1, length);
		return TC_ACT_SHOT;
	}
	return sent(skb, classid, hdr_len);
}

/* The kernel offers some of these helpers to GPL-compatible programs only. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
