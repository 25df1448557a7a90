/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Rate limit. */
#pragma once
#include "maps.h"

/* The size of a burst. The helper caps rates at 10^11 per second, so no value here needs more than 63 bits. */
#define BURST_NANOSECONDS 50000000ULL
#define BILLION 1000000000LL

/* A full bucket holds one burst. An empty one is at most a packet in debt: a bucket without tokens passes none. */
INLINE __s64 refill(__s64 tokens, __u64 rate, __u64 elapsed)
{
	__s64 full = rate * BURST_NANOSECONDS;
	/* What a higher rate left. */
	if (tokens > full)
		tokens = full;
	__u64 missing = full - tokens;
	return !rate || elapsed > missing / rate ? full : tokens + (__s64)(rate * elapsed);
}

/* Whether to drop a mirrored frame. A bucket with tokens passes a frame of any size and may go into debt, so the long-term rate
 * is exact even where a single GSO packet exceeds the burst. */
INLINE int rate_limited(const struct config *config, __u32 classid, __u32 frames, __u64 bytes)
{
	__u64 bits_rate = config->bits_per_second, packets_rate = config->packets_per_second;
	if (!bits_rate && !packets_rate)
		return 0;
	struct bucket *state = bpf_map_lookup_elem(&buckets, &classid);
	if (!state)
		return 0;
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&state->lock);
	/* The clocks of two CPUs may differ slightly. */
	__u64 elapsed = now > state->last ? now - state->last : 0;
	if (elapsed)
		state->last = now;
	__s64 bits = refill(state->bits, bits_rate, elapsed);
	__s64 packets = refill(state->packets, packets_rate, elapsed);
	int limited = (bits_rate && bits <= 0) || (packets_rate && packets <= 0);
	if (!limited) {
		bits -= bits_rate ? (__s64)bytes * 8 * BILLION : 0;
		packets -= packets_rate ? frames * BILLION : 0;
	}
	state->bits = bits;
	state->packets = packets;
	bpf_spin_unlock(&state->lock);
	return limited;
}
