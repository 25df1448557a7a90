/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Splits a single TCP segment that is too long into two. It is not a GSO packet, so there is no gso_size to reduce. */
#pragma once
#include "parse.h"

/* Longest payload of the second segment: the VXLAN overhead, and by how much a path MTU may be below the interface's.
 * bpf_csum_diff takes multiples of 4. */
#define TAIL 256
#define FIN_PSH 9
#define CWR 0x80

/* Updates the TCP checksum. For CHECKSUM_PARTIAL it covers the pseudo-header only, which the kernel takes into account. */
INLINE void update_checksum(struct __sk_buff *skb, __u32 l4, __u32 from, __u32 to, __u64 flags)
{
	bpf_l4_csum_replace(skb, l4 + 16, from, to, flags);
}

/* Changes the length of the segment from `from` to `to` in the IP header and the checksums. */
INLINE void set_length(struct __sk_buff *skb, __u32 l3, __u32 l4, int ipv4, __u32 from, __u32 to)
{
	__u32 base = ipv4 ? l4 - l3 : l4 - l3 - 40;
	__u16 old = from_net16((__u16)(base + from)), new = from_net16((__u16)(base + to));
	if (ipv4)
		bpf_l3_csum_replace(skb, l3 + 10, old, new, 2);
	bpf_skb_store_bytes(skb, l3 + (ipv4 ? 2 : 4), &new, 2, 0);
	update_checksum(skb, l4, from_net16((__u16)from), from_net16((__u16)to), BPF_F_PSEUDO_HDR | 2);
}

INLINE void set_flags(struct __sk_buff *skb, __u32 l4, __u16 from, __u16 to)
{
	update_checksum(skb, l4, from, to, 2);
	bpf_skb_store_bytes(skb, l4 + 12, &to, 2, 0);
}

INLINE void set_id(struct __sk_buff *skb, __u32 l3, __u16 from, __u16 to)
{
	bpf_l3_csum_replace(skb, l3 + 10, from, to, 2);
	bpf_skb_store_bytes(skb, l3 + 4, &to, 2, 0);
}

/* Sends the first segment and leaves the second in `skb`. 0: done; 1: not possible, the frame is unchanged; -1: the frame is
 * damaged. */
INLINE int segment(struct __sk_buff *skb, const struct packet *packet, __u32 hdr_len, __u32 limit, __u32 *selected_from, __u32 selected)
{
	__u32 length = skb->len, l3 = packet->l3, l4 = packet->l4, protocol = packet->protocol;
	int ipv4 = packet->family == 4;
	if (protocol != TCP || packet->fragment || hdr_len <= l4 + 19 || hdr_len > l4 + 60 || hdr_len + 2 > limit)
		return 1;
	/* The checksum is over 16-bit words: the first payload must have an even length. */
	__u32 end = limit - ((limit - hdr_len) & 1);
	__u32 last = length - end - 1; /* see `load` */
	asm volatile("" : "+r"(last));
	if (last >= TAIL)
		return 1;
	asm volatile("" : "+r"(last));
	__u8 tail[TAIL] = {};
	if (bpf_skb_load_bytes(skb, end, tail, last + 1))
		return 1;
	__u16 flags, total, id = 0;
	if (bpf_skb_load_bytes(skb, l4 + 12, &flags, 2) || bpf_skb_load_bytes(skb, l3 + (ipv4 ? 2 : 4), &total, 2) ||
	    (ipv4 && bpf_skb_load_bytes(skb, l3 + 4, &id, 2)))
		return 1;
	/* Bytes after the IP packet, such as padding, are not part of the segment. */
	if (l3 + from_net16(total) + (ipv4 ? 0 : 40) != length)
		return 1;
	if (bpf_skb_change_tail(skb, end, 0))
		return 1;
	__u16 first_flags = flags & from_net16((__u16)~FIN_PSH);
	set_length(skb, l3, l4, ipv4, length - l4, end - l4);
	update_checksum(skb, l4, 0, bpf_csum_diff((void *)tail, TAIL, 0, 0, 0), 0);
	set_flags(skb, l4, flags, first_flags);

	/* The checksum of the second segment, from pseudo-header, header and payload. */
	__u32 addresses[8];
	for (int i = 0; i < 4; i++) {
		addresses[i] = packet->source[i];
		addresses[4 + i] = packet->destination[i];
	}
	__u8 header[60] = {};
	if (bpf_skb_load_bytes(skb, l4, header, 20))
		return -1;
	__u32 last_option = hdr_len - l4 - 21; /* see `load` */
	asm volatile("" : "+r"(last_option));
	if (last_option < 40) {
		asm volatile("" : "+r"(last_option));
		if (bpf_skb_load_bytes(skb, l4 + 20, header + 20, last_option + 1))
			return -1;
	}
	__u32 sum = from_net16((__u16)(end - l4)) + from_net16(TCP);
	sum = bpf_csum_diff(0, 0, addresses, sizeof(addresses), sum);
	sum = bpf_csum_diff(0, 0, (void *)header, sizeof(header), sum);
	sum = bpf_csum_diff(0, 0, (void *)tail, TAIL, sum);

	/* The clone passes this program again, which accepts it: it is selected, and short enough. */
	*selected_from = selected;
	int error = bpf_clone_redirect(skb, skb->ifindex, 0);

	if (bpf_skb_change_tail(skb, hdr_len + last + 1, 0) ||
	    bpf_skb_store_bytes(skb, hdr_len, tail, last + 1, BPF_F_RECOMPUTE_CSUM))
		return -1;
	update_checksum(skb, l4, 0, sum, 0);
	set_length(skb, l3, l4, ipv4, end - l4, hdr_len + last + 1 - l4);
	/* As the kernel segments (tcp_gso_segment, net/ipv4/tcp_offload.c; inet_gso_segment, net/ipv4/af_inet.c): only the first segment
	 * has CWR, and the IPv4 ID counts up. */
	set_flags(skb, l4, first_flags, flags & from_net16((__u16)~CWR));
	if (ipv4)
		set_id(skb, l3, id, from_net16((__u16)(from_net16(id) + 1)));
	__u32 old = *(__u32 *)(header + 4), new = from_net32(from_net32(old) + (end - hdr_len));
	update_checksum(skb, l4, old, new, 4);
	bpf_skb_store_bytes(skb, l4 + 4, &new, 4, 0);
	return error ? -1 : 0;
}
