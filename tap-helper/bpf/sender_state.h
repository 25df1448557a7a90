/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* The state of the senders of a tap that the program that sends probes shares with the programs of the tap. */
#pragma once
#include "constants.h"
#include "kernel.h"

/* When each sender stops mirroring, in nanoseconds of CLOCK_MONOTONIC. The helper sets it before it attaches the classifiers, and
 * moves it for as long as the API server confirms the sender: without a helper, an agent or an API server, the mirror stops by
 * itself. 0: nothing is mirrored. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SENDERS);
	__type(key, __u32);
	__type(value, __u64);
} deadlines SEC(".maps");

INLINE int deadline_has_passed(__u32 classid)
{
	__u64 *moment = bpf_map_lookup_elem(&deadlines, &classid);
	return !moment || bpf_ktime_get_coarse_ns() >= *(volatile __u64 *)moment;
}

/* Whether the frame of a sender that the device gets next was selected: 0, or FROM its origin, a direction or PROBE. mirred sends the
 * clone within the call that ran the classifier, on the same CPU and with bottom halves disabled: the clamp sees it next. So does the
 * program that sends probes, apart from the bottom halves on kernels before 6.3: the clamp checks what it gets. Programs that take the place of others share this map with those that still run: its shape must not
 * change. */
#define FROM(origin) ((origin) + 1)
#define ORIGIN 3
/* Added to that: the frame is truncated to its headers, or not truncated, whatever the configuration says. NOTHING of a frame that is not
 * selected is mirrored. */
#define HEADERS 4
#define WHOLE 8
#define NOTHING 16
/* Likewise: `scratch` has the frame's parsed headers. */
#define PARSED 32
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SENDERS);
	__type(key, __u32);
	__type(value, __u32);
} selection SEC(".maps");

/* As on the wire: a GSO packet counts as the frames that it is segmented into. */
struct counter {
	__u64 frames, bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SENDERS * COUNTERS);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

INLINE void count(__u32 classid, __u32 key, __u64 frames, __u64 bytes)
{
	key += classid * COUNTERS;
	struct counter *counter = bpf_map_lookup_elem(&counters, &key);
	if (counter) {
		counter->frames += frames;
		counter->bytes += bytes;
	}
}
