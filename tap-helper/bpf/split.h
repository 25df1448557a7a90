/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* A full-size TCP segment that came alone: no superframe, so that its size cannot be changed; two segments are made of it. */
#pragma once
#include "parse.h"

/* Most that a second segment carries: what the tunnel's headers take, and what a path may carry less than its interface says.
 * A multiple of 4 for sums. */
#define REST 256
#define FIN_PSH 9

/* The checksum's place in the header. Where the device fills it in, it holds the sum of the pseudo-header: the kernel heeds that. */
INLINE void replace(struct __sk_buff *skb, __u32 l4, __u32 from, __u32 to, __u64 flags)
{
	bpf_l4_csum_replace(skb, l4 + 16, from, to, flags);
}

/* Writes the length to the IP header and the sums, in network byte order; `tcp` are the segments' lengths. */
INLINE void set_length(struct __sk_buff *skb, __u32 l3, __u32 l4, int ipv4, __u32 from, __u32 to)
{
	__u32 base = ipv4 ? l4 - l3 : l4 - l3 - 40;
	__u16 old = from_net16((__u16)(base + from)), new = from_net16((__u16)(base + to));
	if (ipv4)
		bpf_l3_csum_replace(skb, l3 + 10, old, new, 2);
	bpf_skb_store_bytes(skb, l3 + (ipv4 ? 2 : 4), &new, 2, 0);
	replace(skb, l4, from_net16((__u16)from), from_net16((__u16)to), BPF_F_PSEUDO_HDR | 2);
}

INLINE void set_flags(struct __sk_buff *skb, __u32 l4, __u16 from, __u16 to)
{
	replace(skb, l4, from, to, 2);
	bpf_skb_store_bytes(skb, l4 + 12, &to, 2, 0);
}

/* Sends the first part, and leaves the rest in `skb`. 0 if done, 1 if that is not possible and the frame is as it was, -1 if it
 * is damaged. */
INLINE int split(struct __sk_buff *skb, const struct packet *packet, __u32 head, __u32 limit)
{
	__u32 length = skb->len, l3 = packet->l3, l4 = packet->l4, protocol = packet->protocol;
	int ipv4 = packet->family == 4;
	if (protocol != TCP || packet->fragment || head <= l4 + 19 || head > l4 + 60 || head + 2 > limit)
		return 1;
	/* A sum is of pairs of bytes: none is to be parted. */
	__u32 end = limit - ((limit - head) & 1);
	__u32 more = length - end - 1;
	asm volatile("" : "+r"(more));
	if (more >= REST)
		return 1;
	asm volatile("" : "+r"(more));
	__u8 rest[REST] = {};
	if (bpf_skb_load_bytes(skb, end, rest, more + 1))
		return 1;
	__u16 flags, total;
	if (bpf_skb_load_bytes(skb, l4 + 12, &flags, 2) || bpf_skb_load_bytes(skb, l3 + (ipv4 ? 2 : 4), &total, 2))
		return 1;
	/* What is behind the segment, if anything, is not TCP's. */
	if (l3 + from_net16(total) + (ipv4 ? 0 : 40) != length)
		return 1;
	if (bpf_skb_change_tail(skb, end, 0))
		return 1;
	__u16 quiet = flags & from_net16((__u16)~FIN_PSH);
	set_length(skb, l3, l4, ipv4, length - l4, end - l4);
	replace(skb, l4, 0, bpf_csum_diff((void *)rest, REST, 0, 0, 0), 0);
	set_flags(skb, l4, flags, quiet);

	/* The sum of a whole segment is zero: that of all but its data is the one that its data lacks. */
	__u32 ends[8];
	for (int i = 0; i < 4; i++) {
		ends[i] = packet->source[i];
		ends[4 + i] = packet->destination[i];
	}
	__u8 header[60] = {};
	if (bpf_skb_load_bytes(skb, l4, header, 20))
		return -1;
	__u32 options = head - l4 - 21; /* one less than there are: see `load` */
	asm volatile("" : "+r"(options));
	if (options < 40) {
		asm volatile("" : "+r"(options));
		if (bpf_skb_load_bytes(skb, l4 + 20, header + 20, options + 1))
			return -1;
	}
	__u32 sum = from_net16((__u16)(end - l4)) + from_net16(TCP);
	sum = bpf_csum_diff(0, 0, ends, sizeof(ends), sum);
	sum = bpf_csum_diff(0, 0, (void *)header, sizeof(header), sum);
	sum = bpf_csum_diff(0, 0, (void *)rest, REST, sum);

	/* It passes here once more, and fits. */
	int sent = bpf_clone_redirect(skb, skb->ifindex, 0);

	if (bpf_skb_change_tail(skb, head + more + 1, 0) ||
	    bpf_skb_store_bytes(skb, head, rest, more + 1, BPF_F_RECOMPUTE_CSUM))
		return -1;
	replace(skb, l4, 0, sum, 0);
	set_length(skb, l3, l4, ipv4, end - l4, head + more + 1 - l4);
	set_flags(skb, l4, quiet, flags);
	__u32 old = *(__u32 *)(header + 4), new = from_net32(from_net32(old) + (end - head));
	replace(skb, l4, old, new, 4);
	bpf_skb_store_bytes(skb, l4 + 4, &new, 4, 0);
	return sent ? -1 : 0;
}
