/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The part of the kernel's interface (include/uapi/linux/bpf.h) that the programs use, so that they build with clang alone. */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef long long __s64;

/* Up to the last field in use; all of them exist since 5.7. */
struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
	__u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id;
	__u32 family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
	__u64 flow_keys, tstamp;
	__u32 wire_len, gso_segs;
	__u64 sk;
	__u32 gso_size;
};

struct bpf_spin_lock {
	__u32 val;
};

/* As it was in 4.3; newer kernels accept this size too. */
struct bpf_tunnel_key {
	__u32 tunnel_id, remote;
};

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9

#define BPF_F_NO_PREALLOC 1
#define BPF_NOEXIST 1

#define BPF_ADJ_ROOM_MAC 1
#define BPF_F_ADJ_ROOM_FIXED_GSO 1

#define BPF_F_RECOMPUTE_CSUM 1
#define BPF_F_PSEUDO_HDR 16

#define TC_ACT_OK 0
#define TC_ACT_SHOT 2

static void *(*const bpf_map_lookup_elem)(const void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(const void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 size,
					 __u64 flags) = (void *)9;
static long (*const bpf_l3_csum_replace)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)10;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*const bpf_clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) = (void *)13;
static long (*const bpf_skb_set_tunnel_key)(struct __sk_buff *skb, const struct bpf_tunnel_key *key, __u32 size,
					    __u64 flags) = (void *)21;
static long (*const bpf_skb_load_bytes)(const struct __sk_buff *skb, __u32 offset, void *to, __u32 size) = (void *)26;
static __s64 (*const bpf_csum_diff)(const __u32 *from, __u32 from_size, const __u32 *to, __u32 to_size,
				    __u32 seed) = (void *)28;
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 size, __u64 flags) = (void *)38;
static long (*const bpf_skb_pull_data)(struct __sk_buff *skb, __u32 size) = (void *)39;
static long (*const bpf_skb_adjust_room)(struct __sk_buff *skb, int difference, __u32 mode, __u64 flags) = (void *)50;
static long (*const bpf_spin_lock)(struct bpf_spin_lock *lock) = (void *)93;
static long (*const bpf_spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;
/* CLOCK_MONOTONIC as of the last tick, without a read of the clock source; since 5.11. */
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)160;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* BTF-defined maps: the loader reads type, size and key and value types from the types of these members. */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

#define swap16(x) __builtin_bswap16(x)
#define swap32(x) __builtin_bswap32(x)
#define swap64(x) __builtin_bswap64(x)
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define from_net16(x) swap16(x)
#define from_net32(x) swap32(x)
#define from_net64(x) swap64(x)
#else
#define from_net16(x) (x)
#define from_net32(x) (x)
#define from_net64(x) (x)
#endif
