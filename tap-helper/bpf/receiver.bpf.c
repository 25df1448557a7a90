/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The program of a receiver: a classifier without direct-action at the ingress of its VXLAN device. The filter's action redirects the
 * frames that match to the interface that consumers read; probes do not match, and are dropped by the next filter, as metadata for
 * consumers that want none. */
#include "probe.h"

#define MATCH -1
#define NO_MATCH 0
/* More than a tap may have at the same time. */
#define TAP_SENDERS 16384

struct receiver {
	__u64 program_hash; /* written and read by the helper only */
	__u32 ethertype;    /* of probes */
	__u32 metadata;	    /* whether consumers get that */
	__u64 forgotten;    /* written and read by the helper only: what it removed from `pod_probes` adds up to this many frames */
	__u8 tap[UID_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct receiver);
} receiver SEC(".maps");

/* The probes of a pod that arrived. */
struct pod_probes {
	/* When the last one did, in nanoseconds of CLOCK_MONOTONIC; 0: never. */
	__u64 last, last_full_size;
	/* The frames that its sender has sent by that probe, and what to add for those that this receiver should have got: without those
	 * from before it was there, and with those of an earlier sender of the pod. */
	__u64 sent;
	__s64 correction;
};

struct pod {
	__u8 uid[UID_SIZE];
};

/* The helper removes the pods whose probes stopped. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, TAP_SENDERS);
	__type(key, struct pod);
	__type(value, struct pod_probes);
} pod_probes SEC(".maps");

/* The frames that were redirected. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} received SEC(".maps");

INLINE int same_uid(const void *one, const void *other)
{
	for (int i = 0; i < UID_SIZE / 8; i++)
		if (((const __u64 *)one)[i] != ((const __u64 *)other)[i])
			return 0;
	return 1;
}

/* Records a probe, and returns whether the frame is for the consumer: metadata, if it is to have that. */
INLINE int is_for_consumer(struct __sk_buff *skb, const struct receiver *own)
{
	struct probe probe;
	if (bpf_skb_load_bytes(skb, ETHERNET_HEADER, &probe, sizeof(probe)))
		return 0;
	/* Of another tap: the VNI is not only this one's. */
	if (!same_uid(probe.tap, own->tap))
		return 0;
	if (probe.version != PROBE_VERSION)
		return probe.version == METADATA_VERSION && own->metadata;
	__u64 now = bpf_ktime_get_coarse_ns();
	int is_full_size = probe.kind == FULL_SIZE && skb->len == from_net16(probe.length);
	__u64 sent = from_net64(probe.frames);
	struct pod_probes *known = bpf_map_lookup_elem(&pod_probes, probe.pod);
	if (known) {
		/* Another sender of the same pod counts from 0. */
		if (sent < known->sent)
			known->correction += known->sent;
		known->sent = sent;
		known->last = now;
		if (is_full_size)
			known->last_full_size = now;
		return 0;
	}
	/* What was sent before may have been sent elsewhere. */
	struct pod_probes first = { .last = now, .last_full_size = is_full_size ? now : 0, .sent = sent, .correction = -(__s64)sent };
	bpf_map_update_elem(&pod_probes, probe.pod, &first, 0);
	return 0;
}

/* What the network device merged into a GSO packet (GRO), or a sender on this node did not segment, counts as that many frames. Their
 * number may be unknown; then at least as many as there are, so that a loss is overlooked rather than invented. */
INLINE __u32 segments(const struct __sk_buff *skb)
{
	__u32 gso = skb->gso_size, segments = skb->gso_segs;
	if (!gso)
		return 1;
	return segments ? segments : (skb->len + gso - 1) / gso;
}

SEC("classifier") int podtap_receive(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct receiver *own = bpf_map_lookup_elem(&receiver, &zero);
	if (!own)
		return NO_MATCH;
	/* A pod may send tagged frames with that EtherType. */
	int is_own = has_ethertype(skb, own->ethertype);
	if (is_own && !skb->vlan_present)
		return is_for_consumer(skb, own) ? MATCH : NO_MATCH;
	__u64 *frames = bpf_map_lookup_elem(&received, &zero);
	if (frames)
		*frames += segments(skb);
	/* Packet sockets show the tag apart from the frame: consumers of metadata could take one with a tag for it. */
	return is_own && own->metadata ? NO_MATCH : MATCH;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
