/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* One small program for each feature that a kernel may lack. */
#include "kernel.h"

SEC("classifier") int probe_ebpf(struct __sk_buff *skb)
{
	return skb->gso_size ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("classifier") int probe_clamp(struct __sk_buff *skb)
{
	/* The kernel checks the flags at run time, not at load time. */
	if (bpf_skb_adjust_room(skb, 40, BPF_ADJ_ROOM_MAC, 0))
		return 1;
	return bpf_skb_adjust_room(skb, -40, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ? 2 : 0;
}

struct locked {
	struct bpf_spin_lock lock;
	__u32 value;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct locked);
} locked SEC(".maps");

SEC("classifier") int probe_rate_limit(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct locked *value = bpf_map_lookup_elem(&locked, &zero);
	if (!value)
		return 1;
	bpf_spin_lock(&value->lock);
	value->value = skb->len;
	bpf_spin_unlock(&value->lock);
	return 0;
}

/* A filter expression is a function of its own (a BPF-to-BPF call). */
__attribute__((noinline)) static int function(struct __sk_buff *skb)
{
	int result = 0;
	asm volatile("" : "+r"(result), "+r"(skb));
	return result;
}

SEC("classifier") int probe_expression(struct __sk_buff *skb)
{
	return function(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
