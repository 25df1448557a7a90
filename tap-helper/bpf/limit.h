/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
#pragma once
#include "maps.h"

/* How much of a pause may be made up for. Rates are at most 10^11 per second (the helper sees to that), so that nothing here
 * needs more than 63 bits. */
#define BURST_NANOSECONDS 50000000ULL
#define BILLION 1000000000LL

/* A debt is paid back however long that takes; what is saved is at most a burst. */
INLINE __s64 refill(__s64 tokens, __u64 rate, __u64 elapsed)
{
	__s64 full = rate * BURST_NANOSECONDS;
	__u64 lacks = full - tokens;
	return !rate || elapsed > lacks / rate ? full : tokens + (__s64)(rate * elapsed);
}

/* Whether a copy is one too many. A bucket that is not empty lets any frame pass and goes into debt: the rate is right in the
 * long run, whatever the frames' size, also where one superframe is more than a bucket holds. */
INLINE int limited(const struct config *config, __u32 frames, __u64 bytes)
{
	__u64 bits_rate = config->bits_per_second, packets_rate = config->packets_per_second;
	if (!bits_rate && !packets_rate)
		return 0;
	__u32 zero = 0;
	struct bucket *state = bpf_map_lookup_elem(&bucket, &zero);
	if (!state)
		return 0;
	__u64 now = bpf_ktime_get_ns();
	bpf_spin_lock(&state->lock);
	/* The clocks of two cores may differ by a little. */
	__u64 elapsed = now > state->last ? now - state->last : 0;
	if (elapsed)
		state->last = now;
	__s64 bits = refill(state->bits, bits_rate, elapsed);
	__s64 packets = refill(state->packets, packets_rate, elapsed);
	int over = (bits_rate && bits <= 0) || (packets_rate && packets <= 0);
	if (!over) {
		bits -= bits_rate ? (__s64)bytes * 8 * BILLION : 0;
		packets -= packets_rate ? frames * BILLION : 0;
	}
	state->bits = bits;
	state->packets = packets;
	bpf_spin_unlock(&state->lock);
	return over;
}
