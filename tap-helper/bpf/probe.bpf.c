/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Sends probes: run by the helper (BPF_PROG_TEST_RUN), once for each, in the namespace and with the ifindex of the sender device. No
 * process of the pod can send one: only what this program redirects is FROM(PROBE). */
#include "sender_state.h"

/* cb[0]: the sender's class ID. cb[1]: the length of the frame, which is padded with zeroes. cb[2]: whether it is metadata instead. */
SEC("classifier") int podtap_probe(struct __sk_buff *skb)
{
	__u32 classid = skb->cb[0] % SENDERS, length = skb->cb[1];
	__u32 *selected_from = bpf_map_lookup_elem(&selection, &classid);
	/* It would prove that a mirror delivers that has stopped. */
	if (!selected_from || deadline_has_passed(classid))
		return TC_ACT_SHOT;
	/* Before it is known whether the device takes it: the next one has the other size. */
	if (!skb->cb[2])
		count(classid, PROBES, 1, length > skb->len ? length : skb->len);
	if (length > skb->len && bpf_skb_change_tail(skb, length, 0))
		return TC_ACT_SHOT;
	*selected_from = FROM(PROBE);
	long result = bpf_clone_redirect(skb, skb->ifindex, 0);
	/* In case the device did not pass it to the clamp. */
	*selected_from = 0;
	return result ? TC_ACT_SHOT : TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
